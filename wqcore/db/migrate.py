"""Brings a schema to the version of this code: one transaction a step, one migrator at a time, repeatable after a crash.

Protocol: take an advisory lock named after the schema, read the version, apply each missing file in a transaction that
also records it. A migrator killed midway leaves whole steps and no lock (advisory locks die with their session). A
schema newer than the code is refused: an old program must not write into tables it does not know.

A schema that belongs to another role than the user (`db/roles.py`) is migrated as that role, if the user is a member of it:
what a step adds then has the same owner.

A program on top has its own line of migrations, with a folder and a schema of its own, which it declares by
`wqcore.migrations`; masters, `wqcore migrate` and `wqcore.testing.prepare` apply it after wqcore's.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from psycopg import errors, sql

from wqcore.db.bounded import BoundedConnection
from wqcore.db.connect import Connection
from wqcore.db.statements import compose, without_comments
from wqcore.errors import SchemaError

LOCK_TIMEOUT_MS = 3000
LOCK_ATTEMPTS_MAX = 20


@dataclass(frozen=True)
class Step:
    """One numbered file of a line: `0001_queue.sql`."""

    version: int
    name: str
    text: str


@dataclass(frozen=True)
class Line:
    """A line of migrations: where its files are and which schema they build."""

    folder: Traversable
    schema: str

    def steps(self) -> list[Step]:
        """All steps in order. Raises SchemaError if their numbers are not 1, 2, 3 …"""
        found = []
        for entry in self.folder.iterdir():
            match = re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name)
            if match:
                found.append(Step(int(match[1]), match[2], entry.read_text("utf-8")))
        found.sort(key=lambda step: step.version)
        if [step.version for step in found] != list(range(1, len(found) + 1)):
            raise SchemaError(f"the migrations of {self.schema} are not numbered 1, 2, 3 …")
        return found


def queue_line(schema: str) -> Line:
    """wqcore's own line."""
    return Line(resources.files("wqcore.db") / "sql" / "migrations", schema)


_declared: list[tuple[Traversable, Callable[[], str]]] = []


def migrations(folder: Traversable, schema: Callable[[], str]) -> None:
    """Declares that the program's tables are made by the files `0001_what.sql`, `0002_…` in `folder`.

    Each file is applied once, in a transaction, with `{schema}` standing for the schema, under the rules of
    `database.migrate` and `wqcore migrate` that wqcore's own follow. A schema newer than the files is refused.

    Args:
        folder (Traversable): e.g. `importlib.resources.files("shop") / "migrations"`.
        schema (callable → str): the schema's name; called when the configuration is known.
    """
    if (folder, schema) not in _declared:
        _declared.append((folder, schema))


def declared_lines() -> list[Line]:
    """What `migrations` has declared, in that order. Needs the settings of the program (`use_app_settings`)."""
    return [Line(folder, schema()) for folder, schema in _declared]


def version(conn: Connection, line: Line) -> int:
    """The version of the schema in the database; 0 when it does not exist."""
    found = conn.execute(
        "select 1 from information_schema.tables where table_schema = %s and table_name = 'migration'", (line.schema,)
    ).fetchone()
    if found is None:
        return 0
    row = conn.execute(
        sql.SQL("select coalesce(max(version), 0) from {}.migration").format(sql.Identifier(line.schema))
    ).fetchone()
    return int(row[0]) if row else 0


def pending(conn: Connection, line: Line) -> list[Step]:
    """The steps that the database has not had yet. Raises SchemaError when it is newer than this code."""
    steps = line.steps()
    present = version(conn, line)
    if present > len(steps):
        raise SchemaError(
            f"the schema {line.schema!r} has version {present}, but this program knows versions up to {len(steps)}: "
            "install the newer release of the program"
        )
    return steps[present:]


def require_current(conn: Connection, line: Line) -> None:
    """Raises SchemaError unless the schema is exactly at this code's version."""
    missing = pending(conn, line)
    if missing:
        raise SchemaError(
            f"the schema {line.schema!r} is at version {missing[0].version - 1}, but this program needs "
            f'{missing[-1].version}: run `wqcore migrate`, or set database.migrate = "auto" for development'
        )


def migrate(conn: Connection, line: Line, *, say: Callable[[str], None] = lambda text: None) -> list[Step]:
    """Applies what is pending and returns it.

    `conn` must be in autocommit mode. Raises SchemaError (newer schema, no right to change it, or the lock could not be had
    within about a minute) and psycopg.Error (a step failed; it left nothing behind).
    """
    key = f"wqcore migration of {line.schema}"
    conn.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (key,))
    try:
        with _as_owner(conn, line.schema):
            steps = pending(conn, line)
            for step in steps:
                say(f"schema {line.schema}: applying {step.version:04d} {step.name}")
                _apply(conn, line, step)
            return steps
    finally:
        if not conn.closed:
            conn.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (key,))


@contextmanager
def _as_owner(conn: Connection, schema: str) -> Iterator[None]:
    """The session as the role that owns the schema, where the user is another role and a member of it."""
    row = conn.execute(
        "select pg_get_userbyid(nspowner), pg_has_role(nspowner, 'member') from pg_namespace"
        " where nspname = %s and nspowner <> (select oid from pg_roles where rolname = current_user)",
        (schema,),
    ).fetchone()
    owner, may = row if row is not None else (None, False)
    try:
        if may and owner:
            conn.execute(sql.SQL("set role {}").format(sql.Identifier(owner)))
        yield
    except errors.InsufficientPrivilege as error:
        whose = f"it belongs to {owner!r}: repeat this as a member of that role" if owner else "ask its administrator"
        raise SchemaError(
            f"user {conn.info.user!r} may not migrate schema {schema!r} ({error.diag.message_primary}); {whose}"
        ) from None
    finally:
        if may and not conn.closed:
            conn.execute("reset role")


def _patient(conn: Connection) -> AbstractContextManager[None]:
    """A step takes as long as it takes: an index over many rows sends nothing for minutes."""
    return conn.within(math.inf) if isinstance(conn, BoundedConnection) else nullcontext()


def _apply(conn: Connection, line: Line, step: Step) -> None:
    schema = sql.Identifier(line.schema)
    for attempt in range(1, LOCK_ATTEMPTS_MAX + 1):
        try:
            with _patient(conn), conn.transaction():
                conn.execute(sql.SQL("set local lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
                conn.execute("set local statement_timeout = 0")
                if step.version == 1:
                    conn.execute(sql.SQL("create schema if not exists {}").format(schema))
                    conn.execute(
                        sql.SQL(
                            "create table {}.migration (version integer primary key, name text not null, "
                            "applied_at timestamptz not null default now())"
                        ).format(schema)
                    )
                conn.execute(compose(without_comments(step.text), line.schema))
                conn.execute(
                    sql.SQL("insert into {}.migration (version, name) values (%s, %s)").format(schema),
                    (step.version, step.name),
                )
            return
        except errors.LockNotAvailable:
            if attempt == LOCK_ATTEMPTS_MAX:
                raise SchemaError(
                    f"migration {step.version:04d} of {line.schema!r} could not lock its tables in "
                    f"{LOCK_ATTEMPTS_MAX} tries: end long transactions on them and run it again"
                ) from None
            time.sleep(1)


def show(line: Line, steps: list[Step]) -> str:
    """The SQL of `steps` as it would be run, for people who apply it by hand."""
    return "\n".join(f"-- {step.version:04d} {step.name}\n{compose(step.text, line.schema).decode()}" for step in steps)
