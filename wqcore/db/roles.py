"""The producer role: who is granted it can insert jobs with the SQL function `enqueue`, and do nothing else in the schema.

Protocol, in one transaction: make the role if it is missing (NOLOGIN: people and programs are granted it), take from it
everything in the schema, then give it the schema's usage and that one function. So a repeated call also repairs what
somebody has granted too much. A crash leaves the old or the new state.

The function runs with its owner's rights and a fixed search_path, so the role needs no right on any table.
"""

from __future__ import annotations

import hashlib
from typing import LiteralString

from psycopg import errors, sql

from wqcore.db.connect import Connection
from wqcore.errors import SchemaError

SUFFIX = "_producer"
ROLE_BYTES_MAX = 63
"""PostgreSQL cuts longer names off, and two schemas could then share a role."""

_GRANTS: tuple[LiteralString, ...] = (
    "revoke all on schema {schema} from {role}",
    "revoke all on all tables in schema {schema} from {role}",
    "revoke all on all sequences in schema {schema} from {role}",
    "revoke all on all functions in schema {schema} from {role}",
    "grant usage on schema {schema} to {role}",
    "grant execute on function {schema}.enqueue to {role}",
)


def producer_of(schema: str) -> str:
    """The name of the schema's producer role: `<schema>_producer`, with a hash in it where that is too long."""
    name = schema + SUFFIX
    if len(name.encode()) <= ROLE_BYTES_MAX:
        return name
    suffix = f"_{hashlib.sha256(schema.encode()).hexdigest()[:8]}{SUFFIX}"
    return schema.encode()[: ROLE_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix


def make_producer(conn: Connection, schema: str) -> str:
    """Makes the producer role and its rights; returns its name. May be repeated.

    `conn` must be in autocommit mode, its user must own the schema's tables. Raises SchemaError, which says what an
    administrator has to run, when the user may not make roles or grant rights here.
    """
    role = producer_of(schema)
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    with conn.transaction():
        _make(conn, role)
        try:
            with conn.transaction():
                for grant in _GRANTS:
                    conn.execute(sql.SQL(grant).format(**names))
        except errors.InsufficientPrivilege as error:
            raise SchemaError(_not_owner(conn, schema, role)) from error
        # PostgreSQL only warns when somebody grants what is not his to grant
        granted = conn.execute(
            "select has_schema_privilege(%(role)s, n.oid, 'usage') and has_function_privilege(%(role)s, p.oid, 'execute')"
            "  from pg_namespace n join pg_proc p on p.pronamespace = n.oid"
            " where n.nspname = %(schema)s and p.proname = 'enqueue'",
            {"role": role, "schema": schema},
        ).fetchone()
        if granted is None or not granted[0]:
            raise SchemaError(_not_owner(conn, schema, role))
    return role


def _make(conn: Connection, role: str) -> None:
    if conn.execute("select from pg_roles where rolname = %s", (role,)).fetchone() is not None:
        return
    create = sql.SQL("create role {} nologin").format(sql.Identifier(role))
    try:
        with conn.transaction():
            conn.execute(create)
    except (errors.DuplicateObject, errors.UniqueViolation):
        pass  # another migrator was faster
    except errors.InsufficientPrivilege:
        raise SchemaError(
            f"user {conn.info.user!r} may not create roles: let an administrator run {create.as_string(conn)!r} once, "
            "then repeat this"
        ) from None


def _not_owner(conn: Connection, schema: str, role: str) -> str:
    return (
        f"user {conn.info.user!r} may not grant rights in schema {schema!r} to {role!r}: repeat this as the owner of the "
        "schema, who has migrated it"
    )
