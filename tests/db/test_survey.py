"""What a master's gauges say of waiting jobs and of the database is what the tables have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.fix_pg import ODD_SCHEMAS, Fresh
from wqcore import clock
from wqcore.line.lanes import Lanes
from wqcore.line.settle import Outcomes
from wqcore.watch.survey import LOOK_LIMIT_S, Seen, Survey, Who, memory, pause_after


def look(database: Fresh) -> Any:
    survey = Survey(database.settings, database.dsn, lambda: [Who("keeper", "", os.getpid())])
    try:
        return survey._look()
    finally:
        survey._give_up()


def insert(database: Fresh, count: int, *, age: str, due: str | None = None, priority: int = 1, queue: str = "default") -> None:
    database.sql(
        "insert into {s}.job (queue, slot, priority, kind, args, created_at, run_at) select %s, n %% 4, %s, 'k', '{{}}', "
        "now() - %s::interval, now() + %s::interval from generate_series(1, %s) n",
        queue, priority, age, due, count,
    )  # fmt: skip


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
async def test_oldest_and_waiting_are_those_that_can_run_and_that_nobody_holds(
    database: Fresh, new_shard: Callable[..., Any]
) -> None:
    insert(database, 8, age="1 day", priority=9)
    shard = await new_shard(7)
    await shard.take_slots(4)
    lanes = Lanes({9})
    held = [id_ for (id_,) in database.sql("select id from {s}.job")]
    await shard.turn(Outcomes(), lanes, limit=0, held=held, exclude=[], busy_keys=[], changed=True)
    assert look(database).queues["default"]["oldest_s"] == 0, "the shard holds them all"
    insert(database, 5, age="1 hour", priority=-3)
    insert(database, 5, age="2 hours")
    insert(database, 3, age="3 days", due="1 hour")
    found = look(database).queues
    assert 7200 <= found["default"]["oldest_s"] < 7260
    insert(database, 2, age="3 days", due="-3 hours")
    found = look(database).queues
    assert 3 * 3600 <= found["default"]["oldest_s"] < 3 * 3600 + 60
    waiting = found["default"]
    assert waiting["ready"] + waiting["due"] - waiting["held"] == 12
    assert waiting["scheduled"] == 3
    assert waiting["shards"] == 1
    assert found["mail"]["oldest_s"] == 0
    assert set(found) == set(database.settings.queues)


def test_an_old_snapshot_is_seen_with_its_age_and_by_how_much_the_world_has_moved_on(database: Fresh) -> None:
    before = look(database).database
    with psycopg.connect(database.dsn) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")
        for _ in range(5):
            insert(database, 1, age="0")
        after = look(database).database
        (age,) = old.execute("select extract(epoch from clock_timestamp() - now())").fetchone() or (0,)
    assert 0 < after["oldest_snapshot_s"] <= age
    assert after["oldest_snapshot_xids"] >= 5
    assert after["hidden_sessions"] == 0
    assert after["job_ids"] == before["job_ids"] + 5
    assert after["connections"] >= 2
    assert after["version"] == database.one("select max(version) from {s}.migration")


def test_sessions_that_the_user_may_not_see_are_counted_as_hidden(database: Fresh, empty_dsn: str) -> None:
    role = f"watcher_{os.getpid()}"
    database.conn.execute(f"create role {role} login")
    try:
        database.sql(f"grant usage on schema {{s}} to {role}")
        database.sql(f"grant select on all tables in schema {{s}} to {role}")
        database.sql(f"grant select on all sequences in schema {{s}} to {role}")
        database.conn.execute(f"set role {role}")
        survey = Survey(database.settings, database.dsn, list)
        row = database.conn.execute(survey._sql["survey_database"])
        names = [column.name for column in row.description or []]
        assert dict(zip(names, row.fetchone() or (), strict=True))["hidden_sessions"] == 0, "only its own session is there"
        with psycopg.connect(empty_dsn):
            found = database.conn.execute(survey._sql["survey_database"]).fetchone() or ()
            assert dict(zip(names, found, strict=True))["hidden_sessions"] == 1
    finally:
        database.conn.execute("reset role")
        database.conn.execute(f"drop owned by {role}")
        database.conn.execute(f"drop role {role}")


def test_tables_show_dead_rows_and_partitions_of_history_as_one(database: Fresh) -> None:
    insert(database, 50, age="0")
    database.sql("delete from {s}.job")
    database.sql("select pg_stat_force_next_flush()")
    tables = {row["name"]: row for row in look(database).tables}
    assert {"job", "claim", "shard", "slot", "process", "history"} == set(tables)
    assert tables["job"]["dead_rows"] == 50
    assert tables["history"]["bytes"] > tables["shard"]["bytes"]
    assert tables["job"]["vacuum_age_s"] is None
    database.conn.autocommit = True
    database.sql("vacuum {s}.job")
    database.sql("select pg_stat_force_next_flush()")
    assert 0 <= {row["name"]: row for row in look(database).tables}["job"]["vacuum_age_s"] < 60


def test_the_oldest_of_a_big_backlog_is_found_by_index(database: Fresh) -> None:
    for priority in (1, 2, 700):
        insert(database, 2000, age="1 hour", priority=priority)
    database.sql("analyze {s}.job")
    database.conn.execute("set enable_seqscan = off")
    plan = database.conn.execute(b"explain (analyze, format json) " + database.statements["survey_oldest"]).fetchone()
    text = json.dumps(plan)
    assert "Seq Scan\", \"Parallel Aware\": false, \"Async Capable\": false, \"Relation Name\": \"job\"" not in text

    def rows(node: dict[str, Any]) -> int:
        own = int(node["Actual Rows"] * node["Actual Loops"]) if node.get("Relation Name") == "job" else 0
        return own + sum(rows(child) for child in node.get("Plans", []))

    assert plan is not None
    assert rows(plan[0][0]["Plan"]) <= 7 * 4 * 3, "one row for each probe of a slot and priority"


def test_memory_is_added_up_by_role_and_who_has_gone_is_left_out() -> None:
    own = memory([Who("keeper", "", os.getpid())])["keeper", ""]
    assert 0 < own[1] <= own[0]
    twice = memory([Who("worker", "q", os.getpid()), Who("worker", "q", os.getpid()), Who("worker", "gone", 2**22 + 1)])
    assert list(twice) == [("worker", "q")]
    assert twice["worker", "q"][1] > 1.5 * own[1]


def test_a_look_that_got_stuck_takes_the_last_one_with_it(database: Fresh) -> None:
    survey, found = Survey(database.settings, database.dsn, list), look(database)
    assert survey.seen == Seen()
    survey.keep(replace(found, at=clock.monotonic()), 15.0)
    assert survey.seen.queues == found.queues
    ago = clock.monotonic() - 15.0 - LOOK_LIMIT_S
    survey.keep(replace(found, at=ago), 15.0)
    assert survey.seen == Seen(ago, found.took_s)


@pytest.mark.parametrize(("took_s", "least", "most"), [(0.01, 13.5, 16.5), (1.0, 19.0, 19.0), (20.0, 60.0, 60.0)])
def test_a_slow_look_is_followed_by_a_longer_pause_but_not_by_minutes(took_s: float, least: float, most: float) -> None:
    """One that was stuck in a frozen database for 20 s was followed by 400 s, in which the database seemed to be up."""
    assert least <= pause_after(took_s, 15.0) <= most
