"""Real logins for tests of rights: each is a member of the roles that it is given, and is gone with its test."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from wqcore.db import roles

_numbers = itertools.count(1)
Connection = psycopg.Connection[Any]


@contextmanager
def logins(admin: Connection, dsn: str) -> Iterator[Callable[..., Connection]]:
    """`login("role a", attributes="createrole")` is a connection of a fresh login role that is a member of these roles."""
    made: list[tuple[sql.Identifier, Connection]] = []

    def login(*member_of: str, attributes: str = "") -> Connection:
        name = new_login(admin, *member_of, attributes=attributes)
        conn = psycopg.connect(make_conninfo(dsn, user=name), autocommit=True)
        made.append((sql.Identifier(name), conn))
        return conn

    yield login
    for role, conn in made:
        backend = conn.info.backend_pid
        conn.close()
        _wait_for_the_end_of(admin, backend)
        admin.execute(sql.SQL("reassign owned by {} to postgres").format(role))
        admin.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def new_login(admin: Connection, *member_of: str, attributes: str = "") -> str:
    """A fresh role that may log in; who calls this drops it."""
    name = f"somebody {os.getpid()} {next(_numbers)}"
    role = sql.Identifier(name)
    admin.execute(sql.SQL("create role {} login " + attributes).format(role))  # type: ignore[arg-type]
    for group in member_of:
        admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), role))
    return name


def drop_roles(admin: Connection, schema: str) -> None:
    """Drops the roles of a schema; what the owner has is the administrator's again."""
    for what in roles.ROLES:
        role = sql.Identifier(roles.role_of(schema, what))
        if admin.execute("select from pg_roles where rolname = %s", (roles.role_of(schema, what),)).fetchone() is None:
            continue
        admin.execute(sql.SQL("reassign owned by {} to postgres").format(role))
        admin.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def let_create(admin: Connection, user: str) -> None:
    """Lets a user create schemas in this database."""
    database = sql.Identifier(admin.info.dbname)
    admin.execute(sql.SQL("grant create on database {} to {}").format(database, sql.Identifier(user)))


def _wait_for_the_end_of(admin: Connection, backend: int) -> None:
    """A backend drops its temporary tables after its client has gone; they must not vanish under `drop owned`."""
    until = time.monotonic() + 30
    while admin.execute("select from pg_stat_activity where pid = %s", (backend,)).fetchone() is not None:
        assert time.monotonic() < until, "the backend of a closed connection does not end"
        time.sleep(0.01)
