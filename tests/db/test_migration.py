"""Migrating: repeatable, one at a time, the same end as a fresh schema, and never backwards."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fix_pg import ODD_SCHEMAS, Fresh
from wqcore import launch
from wqcore.db import migrate, wake
from wqcore.db.migrate import queue_line
from wqcore.errors import ConfigError, SchemaError
from wqcore.settings import Queue, Settings

SHAPE = """
select 'column', table_name::text, column_name::text, data_type || is_nullable || coalesce(column_default, '')
  from information_schema.columns where table_schema = {s}
union all
select 'index', tablename::text, indexname::text, indexdef from pg_indexes where schemaname = {s}
union all
select 'check', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) from pg_constraint
 where connamespace = {s}::regnamespace
union all
select 'options', relname::text, '', reloptions::text from pg_class where relnamespace = {s}::regnamespace
union all
select 'view', viewname::text, '', definition from pg_views where schemaname = {s}
order by 1, 2, 3
"""


def shape(conn: psycopg.Connection[Any], schema: str) -> list[tuple[Any, ...]]:
    return conn.execute(sql.SQL(SHAPE).format(s=sql.Literal(schema))).fetchall()


def test_migrating_step_by_step_ends_in_the_same_database_as_migrating_at_once(empty_dsn: str) -> None:
    line = queue_line("wqcore")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        migrate.migrate(conn, line)
        fresh = shape(conn, "wqcore")
        conn.execute("drop schema wqcore cascade")
        for step in line.steps():
            migrate._apply(conn, line, step)
            assert migrate.version(conn, line) == step.version
        assert shape(conn, "wqcore") == fresh


@pytest.mark.parametrize("name", ["wqcore", *ODD_SCHEMAS])
def test_a_database_in_use_keeps_its_jobs_and_its_history(empty_dsn: str, name: str) -> None:
    line, schema = queue_line(name), sql.Identifier(name)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        migrate._apply(conn, line, line.steps()[0])
        for text in (
            "insert into {}.queue (name, slots) values ('default', 4)",
            "insert into {}.job (queue, slot, kind, args, run_at) values ('default', 0, 'k', '{{}}', now())",
            "insert into {}.history (id, queue, kind, outcome, priority, attempt, max_attempts, deaths, created_at, "
            "finished_at, args) select n, 'default', 'k', outcome, 1, 1, 3, 0, now(), now(), '{{}}' "
            "from generate_series(1, 9) n, unnest(array['completed', 'discarded']) outcome",
        ):
            conn.execute(sql.SQL(text).format(schema))
        assert [step.version for step in migrate.migrate(conn, line)] == [step.version for step in line.steps()[1:]]
        kept = "select outcome, count(*), min(expires_at - finished_at)::text from {}.history group by 1 order by 1"
        assert conn.execute(sql.SQL(kept).format(schema)).fetchall() == [
            ("completed", 9, "1 day"),
            ("discarded", 9, "7 days"),
        ]
        waiting = sql.SQL("select state from {}.jobs where run_at is not null").format(schema)
        assert conn.execute(waiting).fetchall() == [("available",)]
        channel = conn.execute(sql.SQL("select channel from {}.queue").format(schema)).fetchone()
        assert channel == (wake.channel(name, "default"),)


def test_migrating_again_does_nothing(database: Fresh) -> None:
    before = shape(database.conn, "wqcore")
    assert migrate.migrate(database.conn, queue_line("wqcore")) == []
    assert shape(database.conn, "wqcore") == before


def test_two_migrators_at_once_apply_each_step_once(empty_dsn: str) -> None:
    line = queue_line("wqcore")
    start, applied, problems = threading.Barrier(2), [], []

    def one() -> None:
        try:
            with psycopg.connect(empty_dsn, autocommit=True) as conn:
                start.wait()
                applied.extend(migrate.migrate(conn, line))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert sorted(step.version for step in applied) == [step.version for step in line.steps()]


def test_a_newer_schema_is_refused_with_both_versions(database: Fresh, settings: Settings) -> None:
    known = len(queue_line("wqcore").steps())
    database.sql("insert into {s}.migration (version, name) values (%s, 'future')", known + 41)
    with pytest.raises(SchemaError, match=rf"{known + 41}.*{known}\b.*newer release"):
        launch.prepare(settings, database.dsn, lambda text: None)


def test_a_missing_schema_is_refused_when_migrating_is_explicit(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn, pytest.raises(SchemaError, match="wqcore migrate"):
        migrate.require_current(conn, queue_line("wqcore"))


@pytest.mark.parametrize("schema", ODD_SCHEMAS, indirect=True)
def test_a_schema_with_an_odd_name_can_be_made_and_used(database: Fresh, schema: str) -> None:
    assert migrate.version(database.conn, queue_line(schema)) == len(queue_line(schema).steps())
    assert database.one("select count(*) from {s}.queue") == 3


def test_a_step_that_fails_leaves_nothing_behind(empty_dsn: str) -> None:
    line = queue_line("wqcore")
    broken = migrate.Step(1, "broken", "create table {schema}.a (b int); select 1/0")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate._apply(conn, line, broken)
        assert migrate.version(conn, line) == 0
        assert conn.execute("select count(*) from pg_namespace where nspname = 'wqcore'").fetchone() == (0,)


def test_the_number_of_slots_of_a_queue_is_fixed_at_its_first_start(database: Fresh) -> None:
    assert database.sql("select queue, count(*) from {s}.slot group by 1 order by 1") == [
        ("default", 4), ("mail", 2), ('o"dd; quéue', 1),
    ]
    other = Settings(database=database.settings.database, queues={"default": Queue(slots=5)})
    with pytest.raises(ConfigError, match=r"queues.default.slots = 5.*write slots = 4"):
        launch.prepare(other, database.dsn, lambda text: None)


@pytest.mark.parametrize("schema", ["100%s of it"])
def test_a_schema_with_a_percent_sign_is_refused_or_works(settings: Settings, empty_dsn: str) -> None:
    if not any("schema" in problem for problem in settings.check()):
        launch.prepare(settings, empty_dsn, lambda text: None)
