"""The producer role: it can enqueue, and there is nothing else that it can do; `test_roles.py` has the other roles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fix_pg import ODD_SCHEMAS, Fresh
from tests.fix_roles import drop_roles, let_create, logins
from wqcore.db import roles

ROOT = Path(__file__).parents[2]
DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def login(database: Fresh) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """`login("role a")` is a connection of a fresh login role that is a member of these roles."""
    with logins(database.conn, database.dsn) as connect:
        yield connect


@pytest.fixture
def producer(database: Fresh) -> Iterator[str]:
    """The producer role of a database that knows the kind `note`."""
    database.sql(
        "insert into {s}.kind (name, stands_for, queue, priority, max_attempts, required) "
        "values ('note', 'note', 'default', 1, 3, array['n'])"
    )
    yield roles.make_roles(database.conn, database.schema)["producer"]
    drop_roles(database.conn, database.schema)


def run(conn: psycopg.Connection[Any], database: Fresh, text: str) -> list[tuple[Any, ...]]:
    cursor = conn.execute(sql.SQL(text).format(s=sql.Identifier(database.schema)))  # type: ignore[arg-type]
    return cursor.fetchall() if cursor.description else []


NOTE = "select {s}.enqueue('note', '{{\"n\": 1}}')"


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
def test_a_member_of_the_role_can_enqueue_whatever_the_schema_is_called(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]]
) -> None:
    [(job,)] = run(login(producer), database, NOTE)
    assert database.sql("select id, kind from {s}.job") == [(job, "note")]
    with pytest.raises(DENIED):
        run(login(), database, NOTE)


def test_a_member_of_the_role_can_do_nothing_else(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]]
) -> None:
    conn = login(producer)
    run(conn, database, NOTE)
    relations = database.sql(
        "select relname, relkind from pg_class where relnamespace = %s::regnamespace and relkind in ('r', 'p', 'v', 'S')",
        "wqcore",
    )
    assert {"job", "history", "jobs", "kind", "queue", "job_id_seq"} <= {name for name, _ in relations}
    for name, kind in relations:
        table = f'{{s}}."{name}"'
        for text in [f"table {table}"] if kind == "S" else [
            f"table {table}", f"delete from {table}", f"insert into {table} default values", f"truncate {table}",
            f"select count(*) from {table}", f"copy {table} to stdout",
        ]:  # fmt: skip
            with pytest.raises(psycopg.Error) as caught:
                run(conn, database, text)
            # the view cannot be changed or copied by anybody
            assert caught.value.sqlstate in (["42501", "42809", "55000"] if kind == "v" else ["42501"]), text
    with pytest.raises(DENIED):
        run(conn, database, "create table {s}.mine (a int)")
    with pytest.raises(DENIED):
        run(conn, database, "select nextval('{s}.job_id_seq')")


def test_enqueue_is_the_only_function_for_others_and_for_the_role(database: Fresh, producer: str) -> None:
    rows = database.sql(
        "select p.oid::regprocedure::text, has_function_privilege(%s, p.oid, 'execute'), p.proname, "
        "       exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0) "
        "  from pg_proc p where p.pronamespace = 'wqcore'::regnamespace",
        producer,
    )
    assert [name for _, may, name, _ in rows if may] == ["enqueue"]
    assert [signature for signature, _, _, everybody in rows if everybody] == []
    assert {"insert_keyed", "cancel", "pause", "resume", "ending", "make_partitions"} <= {name for _, _, name, _ in rows}


@pytest.mark.parametrize(
    "call",
    ["{s}.cancel(1)", "{s}.pause()", "{s}.resume()", "{s}.make_partitions()", "{s}.is_held(1, 'default')",
     "{s}.insert_keyed('default', 0, 1, null, 'note', 1, null, null, '{{}}', 'j', 'replace', null, null)"],
)  # fmt: skip
def test_a_member_of_the_role_cannot_call_the_functions_of_control(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]], call: str
) -> None:
    with pytest.raises(DENIED, match="function"):
        run(login(producer), database, "select " + call)


def test_an_error_shows_nothing_of_other_jobs(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]]
) -> None:
    database.sql(
        "insert into {s}.job (queue, slot, kind, args, job_key) values ('default', 0, 'note', '\"secret\"', 'j')"
    )
    conn = login(producer)
    for options in (
        "job_key => 'j', job_key_mode => 'x'",
        "job_key => 'j', serial_key => repeat('x', 500)",
        "job_key => 'j', unique_by => '{{}}'",
        "job_key => 'j', max_attempts => 0",
    ):
        with pytest.raises(psycopg.Error) as caught:
            run(conn, database, f"select {{s}}.enqueue('note', '{{{{\"n\": 1}}}}', {options})")
        diag = caught.value.diag
        assert "secret" not in f"{diag.message_primary} {diag.message_detail} {diag.message_hint} {diag.context}"
    assert database.one("select args #>> '{{}}' from {s}.job") == "secret"


def test_a_caller_cannot_lead_the_function_astray(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]]
) -> None:
    """It runs with its owner's rights: nothing that the caller has put in its search_path may be called or read."""
    conn = login(producer)
    let_create(database.conn, conn.info.user)
    conn.execute("create temp table stolen (what text)")
    conn.execute("grant all on stolen to public")
    conn.execute("create schema trap")
    conn.execute("grant all on schema trap to public")
    for signature, value in {
        "now() returns timestamptz": "return pg_catalog.now();",
        "random() returns float8": "return 0.5;",
        "json_typeof(json) returns text": "return 'object';",
        "octet_length(text) returns integer": "return 1;",
        "floor(float8) returns float8": "return 0;",
        "pg_notify(text, text) returns void": "",
        "sha256(bytea) returns bytea": "return 'x';",
        "quote_literal(text) returns text": "return 'x';",
    }.items():
        body = f"begin insert into pg_temp.stolen values ($${signature}$$); {value} end"
        conn.execute(f"create function trap.{signature} language plpgsql as $fn${body}$fn$")  # type: ignore[arg-type]
    conn.execute(
        "create function trap.equal(text, text) returns boolean language plpgsql as "
        "$fn$ begin insert into pg_temp.stolen values ('operator'); return true; end $fn$"
    )
    conn.execute("create operator trap.= (leftarg = text, rightarg = text, function = trap.equal)")
    for table in ("kind", "queue", "job"):
        conn.execute(f"create temp table {table} (like pg_catalog.pg_class)")  # type: ignore[arg-type]
    conn.execute("set search_path = trap, pg_temp, pg_catalog")
    conn.execute("select octet_length('x'::text), 'a'::text = 'b'::text")
    assert conn.execute("select count(*) from pg_temp.stolen").fetchone() == (2,), "the trap must work at all"
    run(conn, database, "select {s}.enqueue('note', '{{\"n\": 1}}', serial_key => 'k')")
    run(conn, database, "select {s}.enqueue('note', '{{\"n\": 1}}', job_key => 'k')")
    assert conn.execute("select count(*) from pg_temp.stolen").fetchone() == (2,)
    assert database.one("select count(*) from {s}.job") == 2


def test_every_function_with_its_owners_rights_has_a_search_path_of_its_own(database: Fresh) -> None:
    rows = database.sql(
        "select proname, proconfig from pg_proc where pronamespace = 'wqcore'::regnamespace and prosecdef"
    )
    assert {name for name, _ in rows} == {
        "enqueue", "insert_keyed", "make_partitions", "drop_partition", "summarize_history"
    }  # fmt: skip
    assert [name for name, config in rows if config != ["search_path=pg_catalog, pg_temp"]] == []


def test_making_the_role_again_takes_back_what_was_granted_too_much(
    database: Fresh, producer: str, login: Callable[..., psycopg.Connection[Any]]
) -> None:
    for text in ("grant all on all tables in schema {s}", "grant all on all functions in schema {s}", "grant all on schema {s}"):
        database.conn.execute(
            sql.SQL(text + " to {r}").format(s=sql.Identifier("wqcore"), r=sql.Identifier(producer))  # type: ignore[arg-type]
        )
    conn = login(producer)
    run(conn, database, "table {s}.job")
    assert roles.make_roles(database.conn, "wqcore")["producer"] == producer
    with pytest.raises(DENIED):
        run(conn, database, "table {s}.job")
    run(conn, database, NOTE)


@pytest.mark.parametrize("schema", ["long" * 15], indirect=True)
def test_the_command_makes_the_role_of_a_long_schema_and_may_be_repeated(database: Fresh, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'[database]\ndsn = {json.dumps(database.dsn)}\nschema = "{database.schema}"\n'
        '[process]\nhandlers = ["shop"]\n[queues.default]\nslots = 4\n'
    )
    (tmp_path / "shop.py").write_text(
        "import msgspec, wqcore\n@wqcore.kind('sold')\nclass Sold(msgspec.Struct):\n    n: int\n"
    )
    role = roles.role_of(database.schema, "producer")
    try:
        for _ in range(2):
            ran = subprocess.run(
                [sys.executable, "-m", "wqcore", "migrate", "--roles", "-c", str(config)],
                cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            assert role in ran.stderr
        assert database.sql("select name, required from {s}.kind") == [("sold", ["n"])]
    finally:
        drop_roles(database.conn, database.schema)
