"""Five roles for a schema, each with the rights that its work needs and no other.

    owner      owns the schema and all that is in it, and so may migrate it
    runner     masters, workers, and programs that control jobs
    inserter   Python programs that insert jobs
    producer   whoever inserts jobs from SQL by the function `enqueue`
    observer   people and programs that watch; not what jobs carry

Protocol, in one transaction and one migrator at a time: make the roles that are missing (NOLOGIN: people and programs are
granted them), give the schema to the owner, take from the others everything in the schema, then give them what
`sql/roles/` says. So a repeated call also repairs what somebody has granted too much. A crash leaves the old or the new
state. Roles belong to the whole server: two databases with a schema of one name share them.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import LiteralString

from psycopg import errors, sql

from wqcore.db.connect import Connection
from wqcore.db.statements import without_comments
from wqcore.errors import SchemaError

ROLES = {
    "owner": "owns the schema and may migrate it",
    "runner": "may run masters and control jobs",
    "inserter": "may insert jobs from Python",
    "producer": "may insert jobs from SQL, by enqueue",
    "observer": "may watch, but not see what jobs carry",
}
"""Roles by the end of their names, and what a member may do."""

ROLE_BYTES_MAX = 63
"""PostgreSQL cuts longer names off, and two schemas could then share a role."""

_FOLDER = resources.files("wqcore.db") / "sql" / "roles"

_TAKE: tuple[LiteralString, ...] = (
    "revoke all on schema {schema} from {role}",
    "revoke all on all tables in schema {schema} from {role}",
    "revoke all on all sequences in schema {schema} from {role}",
    "revoke all on all functions in schema {schema} from {role}",
)

_NOT_THE_OWNERS: LiteralString = """
select format('alter schema %%I owner to %%I', n.nspname, o.rolname)
  from pg_namespace n, pg_roles o where n.nspname = %(schema)s and o.rolname = %(owner)s and n.nspowner <> o.oid
union all
select format('alter table %%I.%%I owner to %%I', n.nspname, c.relname, o.rolname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace, pg_roles o
 where n.nspname = %(schema)s and o.rolname = %(owner)s and c.relkind in ('r', 'p', 'v') and c.relowner <> o.oid
union all
select format('alter routine %%s owner to %%I', p.oid::regprocedure, o.rolname)
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace, pg_roles o
 where n.nspname = %(schema)s and o.rolname = %(owner)s and p.proowner <> o.oid
"""
"""Sequences go with their tables."""


def role_of(schema: str, what: str) -> str:
    """The name of a role of the schema: `<schema>_<what>`, with a hash in it where that is too long."""
    name = f"{schema}_{what}"
    if len(name.encode()) <= ROLE_BYTES_MAX:
        return name
    suffix = f"_{hashlib.sha256(schema.encode()).hexdigest()[:8]}_{what}"
    return schema.encode()[: ROLE_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix


def exist(conn: Connection, schema: str) -> bool:
    """Whether the schema belongs to its owner role: then what a migration adds needs its rights too."""
    row = conn.execute(
        "select pg_get_userbyid(nspowner) from pg_namespace where nspname = %s", (schema,)
    ).fetchone()
    return row is not None and row[0] == role_of(schema, "owner")


def make_roles(conn: Connection, schema: str) -> dict[str, str]:
    """Makes the roles and their rights; returns their names by what they are for. May be repeated.

    `conn` must be in autocommit mode. Its user must be a superuser, or own the schema and the database and be allowed to
    create roles; once the roles are there, a member of the owner will do. Raises SchemaError, which says what is missing.
    """
    names = {what: role_of(schema, what) for what in ROLES}
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"wqcore migration of {schema}",))
        _make(conn, list(names.values()))
        try:
            with conn.transaction():
                _hand_over(conn, schema, names["owner"])
                # as the owner: PostgreSQL only warns when somebody else grants what is not his to grant
                conn.execute(sql.SQL("set local role {}").format(sql.Identifier(names["owner"])))
                for what in ("runner", "inserter", "producer", "observer"):
                    _give(conn, schema, names[what], what)
                conn.execute("reset role")
        except errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"user {conn.info.user!r} may not give schema {schema!r} to {names['owner']!r} and grant rights in it "
                f"({error.diag.message_primary}): repeat this as a superuser, as the owner of schema and database, or as "
                f"a member of {names['owner']!r}"
            ) from None
    return names


def _make(conn: Connection, names: list[str]) -> None:
    found = conn.execute("select rolname from pg_roles where rolname = any(%s)", (names,)).fetchall()
    missing = [name for name in names if (name,) not in found]
    create = sql.SQL("; ").join(sql.SQL("create role {} nologin").format(sql.Identifier(name)) for name in missing)
    if not missing:
        return
    try:
        with conn.transaction():
            conn.execute(create)
    except (errors.DuplicateObject, errors.UniqueViolation):
        raise SchemaError(
            f"another migrator is making the roles {', '.join(missing)} in another database: repeat this"
        ) from None
    except errors.InsufficientPrivilege:
        raise SchemaError(
            f"user {conn.info.user!r} may not create roles: let an administrator run {create.as_string(conn)!r} once, "
            f"and grant {names[0]!r} to {conn.info.user!r}, then repeat this"
        ) from None


def _hand_over(conn: Connection, schema: str, owner: str) -> None:
    """Gives the schema and all that is in it to the owner role. Nobody but a superuser needs more than once a right on the
    database for that: the new owner of a schema must be allowed to create one."""
    steps = [step for (step,) in conn.execute(_NOT_THE_OWNERS, {"schema": schema, "owner": owner}).fetchall()]
    role, database = sql.Identifier(owner), sql.Identifier(conn.info.dbname)
    member = conn.execute("select pg_has_role(%s, 'usage')", (owner,)).fetchone()
    if not (member and member[0]):
        conn.execute(sql.SQL("grant {} to current_user").format(role))
    if not steps:
        return
    may = conn.execute("select has_database_privilege(%s, current_database(), 'create')", (owner,)).fetchone()
    lend = not (may and may[0])
    if lend:
        conn.execute(sql.SQL("grant create on database {} to {}").format(database, role))
    for step in steps:
        conn.execute(step)
    if lend:
        conn.execute(sql.SQL("revoke create on database {} from {}").format(database, role))


def _give(conn: Connection, schema: str, role: str, what: str) -> None:
    """Takes all rights in the schema from a role, and gives it those of its file."""
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    for text in _TAKE:
        conn.execute(sql.SQL(text).format(**names))
    grants = without_comments((_FOLDER / f"{what}.sql").read_text("utf-8"))
    conn.execute(sql.SQL(grants).format(**names))
