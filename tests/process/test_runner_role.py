"""A whole master runs as a login that is only a `runner`, on a schema that belongs to the owner."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.fix_master import World, ready, until
from tests.fix_roles import drop_roles, new_login
from wqcore import SyncClient, load
from wqcore.db import roles

FAILING = """
import msgspec, wqcore
from world_handlers import note

@wqcore.kind("twice", max_attempts=3, backoff=lambda attempt: 0.05)
class Twice(msgspec.Struct):
    pass

@wqcore.handler
async def twice(args: Twice, job: wqcore.Job) -> None:
    note("start", job)
    job.progress(0.5, "half")
    if job.attempt == 1:
        raise ValueError("the first time")
    job.output({"attempt": job.attempt})
"""


@pytest.fixture
def runner(world: World) -> Iterator[Path]:
    """A configuration whose user may only run what the owner has migrated."""
    (world.folder / "twice.py").write_text(FAILING)
    tables = {
        "process": {"handlers": ["world_handlers", "twice"]},
        "retention": {"completed_hours": 72},
        "schedules.tick": {"kind": "nap", "every_s": 1.0},
    }
    migrated = world.cli(world.configure(**tables), "migrate", "--roles")
    assert migrated.returncode == 0, migrated.stderr
    assert "wqcore_runner" in migrated.stderr
    user = new_login(world.conn, roles.role_of("wqcore", "runner"))
    yield world.configure(**tables, database={"dsn": make_conninfo(world.dsn, user=user), "migrate": "explicit"})
    world.stop()
    with psycopg.connect(world.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(user)))
        drop_roles(conn, "wqcore")


def test_a_master_that_may_only_run_inserts_runs_retries_fires_keeps_partitions_rescues_and_drains(
    world: World, runner: Path
) -> None:
    # a day that is over, and one that is still to be made: the keeper has to drop and to make a partition
    world.conn.execute(
        "create table wqcore.history_20000101 partition of wqcore.history "
        "for values from ('2000-01-01 00:00+00') to ('2000-01-02 00:00+00')"
    )
    world.conn.execute("alter table wqcore.history_20000101 owner to wqcore_owner")
    partitions = "select count(*) from pg_inherits where inhparent = 'wqcore.history'::regclass"
    world.conn.execute("delete from wqcore.queue")  # the master makes its queues known itself
    master = world.start(runner)
    ready(world)
    users = world.scalar(
        "select array_agg(distinct usename::text) from pg_stat_activity "
        "where datname = current_database() and application_name like 'wqcore%%'"
    )
    assert len(users) == 1
    assert users[0].startswith("somebody")
    for words in (("insert", "twice", "{}"), ("insert", "keyed", json.dumps({"group": 1}), "--job-key", "k")):
        inserted = world.cli(runner, *words)
        assert inserted.returncode == 0, inserted.stderr
    world.insert("ofTheNextRelease")
    world.insert("pill", max_attempts=1)
    until(lambda: world.scalar("select output from wqcore.history where kind = 'twice'") == {"attempt": 2}, "a retry completes")
    until(lambda: world.scalar("select count(*) from wqcore.history where kind = 'nap'") >= 2, "two ticks of the schedule")
    until(lambda: world.scalar("select count(*) from wqcore.history where kind = 'pill'"), "a dead worker's job is rescued")
    until(lambda: world.scalar("select to_regclass('wqcore.history_20000101') is null"), "the partition of 2000 is dropped")
    assert world.scalar(partitions) >= 9  # a week of discarded jobs, and the net
    assert world.scalar("select count(*) from wqcore.history where kind = 'keyed'") == 1
    with SyncClient(load(runner)) as client:
        client.pause("default")
        client.resume("default")
        assert client.job(world.scalar("select id from wqcore.history where kind = 'twice'")).output == {"attempt": 2}
    status = world.cli(runner, "status", "--json")
    assert status.returncode == 0, status.stderr
    world.insert("nap", args={"s": 0.5})
    master.send_signal(signal.SIGTERM)
    assert master.wait(30) == 0
    assert "permission denied" not in world.log()
    assert "Traceback" not in world.log()
    assert world.scalar("select count(*) from wqcore.shard") == 0

