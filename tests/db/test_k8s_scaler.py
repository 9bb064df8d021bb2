"""The scaler's query counts what a group has to do, reads little of a big table, and needs no more than the observer's rights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from tests.fix_k8s import plan_of
from tests.fix_pg import Fresh
from tests.fix_roles import drop_roles, logins
from wqcore.db import roles
from wqcore.k8s import scaling

TWO_QUEUES = """
[queues.default]
workers = 10
slots = 4
group = "g"
[queues.mail]
workers = 2
slots = 2
group = "g"
max_workers_total = 6
[kubernetes.groups.g]
replicas_max = 2
jobs_per_worker = 5
"""


def ask(database: Fresh, tmp_path: Path, conn: psycopg.Connection[Any] | None = None) -> float:
    """What KEDA gets: the one value of one row, which it reads as a float8."""
    plan = plan_of(tmp_path, TWO_QUEUES)
    cursor = (conn or database.conn).execute(scaling.query(plan, plan.groups[0]).encode())
    assert cursor.description is not None
    assert [column.type_code for column in cursor.description] == [psycopg.postgres.types["float8"].oid]
    ((found,),) = cursor.fetchall()
    return found


def insert(database: Fresh, queue: str, count: int, run_at: str = "null") -> None:
    database.sql(
        f"insert into {{s}}.job (queue, slot, kind, args, run_at) "
        f"select '{queue}', n % 2, 'k', '{{{{}}}}', {run_at} from generate_series(1, {count}) n"
    )


def test_as_many_masters_as_the_busiest_queue_fills(database: Fresh, tmp_path: Path) -> None:
    assert ask(database, tmp_path) == 0
    insert(database, "default", 1)
    assert ask(database, tmp_path) == 1
    insert(database, "default", 49)
    assert ask(database, tmp_path) == 1  # ten workers, five jobs each
    insert(database, "mail", 11)
    assert ask(database, tmp_path) == 2  # two workers, five jobs each
    insert(database, 'o"dd; quéue', 5000)
    assert ask(database, tmp_path) == 2  # another group's


def test_jobs_of_the_future_and_of_paused_queues_do_not_count(database: Fresh, tmp_path: Path) -> None:
    insert(database, "default", 1000, "now() + interval '1 day'")
    assert ask(database, tmp_path) == 0
    insert(database, "default", 51, "now() - interval '1 second'")
    assert ask(database, tmp_path) == 2
    database.sql("update {s}.queue set paused_at = now() where name = 'default'")
    assert ask(database, tmp_path) == 0


def test_a_job_that_runs_counts_so_nobody_is_scaled_away_from_his_work(database: Fresh, tmp_path: Path) -> None:
    insert(database, "default", 51)
    database.sql("insert into {s}.shard (id, process, queue) values (1, gen_random_uuid(), 'default')")
    database.sql("insert into {s}.claim (shard, turn, ids) select 1, 1, array_agg(id) from {s}.job")
    assert ask(database, tmp_path) == 2


def test_no_more_masters_than_there_may_be_workers(database: Fresh, tmp_path: Path) -> None:
    insert(database, "mail", 5000)
    assert ask(database, tmp_path) == 2  # replicas_max, before the 3 that max_workers_total would allow


def test_a_table_of_many_jobs_is_read_up_to_the_cap_and_by_index(database: Fresh, tmp_path: Path) -> None:
    insert(database, "default", 20_000)
    insert(database, "default", 20_000, "now() + interval '1 day'")
    insert(database, "default", 300, "now() - interval '1 second'")
    database.sql("analyze {s}.job")
    plan = plan_of(tmp_path, TWO_QUEUES)
    text = f"explain (analyze, format json, timing off) {scaling.query(plan, plan.groups[0])}"
    ((explained,),) = database.conn.execute(text.encode()).fetchall()
    nodes = list(_nodes(explained[0]["Plan"]))
    on_job = [node for node in nodes if node.get("Relation Name") == "job"]
    assert {node.get("Index Name") for node in on_job} == {"job_ready", "job_due"}, json.dumps(explained, indent=1)
    read = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in on_job
    )  # fmt: skip
    assert read <= 700, read  # 100 ready and 100 due of each slot with any, and no job of the future


def test_the_observer_may_ask(database: Fresh, tmp_path: Path) -> None:
    names = roles.make_roles(database.conn, database.schema)
    try:
        with logins(database.conn, database.dsn) as login:
            insert(database, "default", 60)
            assert ask(database, tmp_path, login(names["observer"])) == 2
    finally:
        drop_roles(database.conn, database.schema)


def _nodes(node: dict[str, Any]) -> Any:
    yield node
    for inner in node.get("Plans", []):
        yield from _nodes(inner)
