"""The promises of the engine, kept by real processes: transactional inserts and completions, the lease, the clock."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest

import wqcore
from tests.fix_master import World, ready, until
from wqcore.db import embedded

TRANSACTIONAL = """
import os
import msgspec, psycopg
import wqcore

@wqcore.kind("transfer", max_attempts=4, backoff=lambda attempt: 0.05)
class Transfer(msgspec.Struct):
    n: int
    fail_first: bool = False

@wqcore.handler
async def transfer(args: Transfer, job: wqcore.Job) -> None:
    async with await psycopg.AsyncConnection.connect(os.environ["WQ_TEST_DSN"]) as conn:
        async with conn.transaction():
            await conn.execute("insert into effect (n, attempt) values (%s, %s)", (args.n, job.attempt))
            await job.complete_tx(conn)
            if args.fail_first and job.attempt == 1:
                raise RuntimeError("after complete_tx, before the commit")
"""


def test_complete_tx_gives_exactly_one_effect_for_each_completed_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WQ_TEST_DSN", world.dsn)
    (world.folder / "world_handlers.py").write_text(TRANSACTIONAL)
    world.conn.execute("create table effect (n int, attempt int)")
    world.start(world.configure())
    ready(world)
    for n in range(60):
        world.insert("transfer", 1, {"n": n, "fail_first": n % 3 == 0}, max_attempts=4)
    until(lambda: len(world.runs()) or world.outcomes().get("completed", 0) > 10, "some are done")
    os.kill(world.workers()[0].pid, signal.SIGKILL)
    until(lambda: world.outcomes().get("completed") == 60, "all are completed", 40)
    assert world.scalar("select count(*) from effect") == 60
    assert world.scalar("select count(distinct n) from effect") == 60
    assert world.scalar("select min(attempt) from effect where n %% 3 = 0", *()) == 2


def test_an_insert_exists_exactly_if_its_transaction_commits(world: World) -> None:
    world.start(world.configure())
    ready(world)
    with wqcore.SyncClient(dsn=world.dsn, catalog=_catalog()) as client:
        with psycopg.connect(world.dsn) as conn:
            with pytest.raises(ZeroDivisionError), conn.transaction():
                lost = client.insert_tx(conn, _Nap(s=0.0))
                raise ZeroDivisionError
            with conn.transaction():
                kept = client.insert_tx(conn, _Nap(s=0.0))
        until(lambda: world.outcomes().get("completed") == 1, "the committed one runs")
    assert world.scalar("select id from wqcore.history") == kept != lost


def test_a_job_whose_transaction_commits_late_with_a_low_id_is_found(world: World) -> None:
    world.start(world.configure())
    ready(world)
    with wqcore.SyncClient(dsn=world.dsn, catalog=_catalog()) as client, psycopg.connect(world.dsn) as conn:
        late = client.insert_tx(conn, _Nap(s=0.0))
        client.insert_many(_Nap(s=0.0) for _ in range(5000))
        until(lambda: world.outcomes().get("completed") == 5000, "the later ids are done")
        conn.commit()
        until(
            lambda: world.scalar("select count(*) from wqcore.history where id = %s", late), "the late one is done", 5
        )


def test_a_database_that_freezes_past_the_lease_stops_handlers_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    server = embedded.start(folder, version=18, delete_after=True)
    world = World(tmp_path, server.dsn)
    frozen: list[psutil.Process] = []
    try:
        config = world.configure(
            process={"dead_after_s": 2.0, "beat_interval_s": 0.5}, database={"statement_timeout_s": 3.0}
        )
        world.start(config)
        ready(world)
        world.insert("nap", 10, {"s": 4.0})
        until(lambda: len(world.runs()) == 10, "ten jobs run")
        postmaster = psutil.Process(server.pid)
        frozen = [postmaster, *postmaster.children()]
        for process in frozen:
            process.suspend()
        until(lambda: "lease unproven" in world.log(), "the worker stops its handlers", 15)
        for process in frozen:
            process.resume()
        until(lambda: world.outcomes().get("completed") == 10, "all are completed after the thaw", 60)
        assert world.scalar("select max(deaths) from wqcore.history") == 0
        assert world.scalar("select max(attempt) from wqcore.history") == 1
    finally:
        for process in frozen:
            process.resume()
        world.stop()
        server.stop()


def test_a_scheduled_job_starts_at_its_time_and_not_before(world: World) -> None:
    world.start(world.configure())
    ready(world)
    job = world.scalar(
        "insert into wqcore.job (queue, slot, kind, args, run_at) "
        "values ('default', 3, 'nap', '{}', now() + interval '1.5 s') returning id"
    )
    until(lambda: world.outcomes().get("completed") == 1, "it runs")
    early, late = world.conn.execute(
        "select attempted_at < created_at + interval '1.5 s', attempted_at > created_at + interval '3 s' "
        "from wqcore.history where id = %s",
        (job,),
    ).fetchone() or (None, None)
    assert early is False
    assert late is False


def test_a_look_at_an_idle_queue_writes_nothing(world: World) -> None:
    process = {"beat_interval_s": 2.0, "dead_after_s": 7.0}
    world.start(world.configure(process=process, queues__default={"poll_interval_s": 0.1}))
    ready(world)
    world.insert("nap", 5)
    until(lambda: world.outcomes().get("completed") == 5, "it has worked")
    until(lambda: not world.scalar("select sum(cardinality(ids)) from wqcore.claim"), "nothing is held")
    transactions = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    before = world.scalar(transactions)
    time.sleep(2.5)  # what must pass without a write: 25 looks; beats and autovacuum may take a few xids
    assert world.scalar(transactions) - before < 15


class _Nap(msgspec.Struct):
    s: float = 0.0


def _catalog() -> wqcore.Catalog:
    from wqcore import backoff
    from wqcore.catalog import Kind

    found = wqcore.Catalog()
    found.declare(
        Kind(
            "nap",
            _Nap,
            queue="default",
            serial_key=None,
            priority=1,
            max_attempts=5,
            timeout_s=60,
            backoff=backoff.river,
            planned=False,
        )
    )
    return found
