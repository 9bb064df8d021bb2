"""Jobs whose ids pass 2^31 while a master works are jobs like any others, in every place where an id is kept or sent."""

from __future__ import annotations

import datetime as dt
import signal
from typing import Any

import msgspec
import psutil
import pytest

import wqcore
from tests.fix_master import World, ready, send, until
from wqcore import settings
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind

LIMIT = 2**31
FLAKY = """
import asyncio, os
import msgspec
import psycopg
import wqcore
from world_handlers import note

@wqcore.kind("flaky", max_attempts=5, timeout_s=60, backoff=lambda attempt: 0.05)
class Flaky(msgspec.Struct):
    fails: int = 0
    s: float = 0.0
    tx: bool = False

@wqcore.handler
async def flaky(args: Flaky, job: wqcore.Job) -> None:
    note("start", job)
    job.progress(0.5, "half of it")
    if job.attempt <= args.fails:
        raise ValueError("as it was told")
    await asyncio.sleep(args.s if job.attempt == 1 else 0)
    if args.tx:
        async with await psycopg.AsyncConnection.connect(os.environ["WQ_TEST_DSN"]) as conn:
            await job.complete_tx(conn)
"""


class Flaky(msgspec.Struct):
    fails: int = 0
    s: float = 0.0
    tx: bool = False


CATALOG = Catalog()
CATALOG.declare(
    Kind("flaky", Flaky, queue="default", serial_key=None, priority=1, max_attempts=5, timeout_s=60, backoff=river,
         planned=False)
)  # fmt: skip


def restart_ids(world: World) -> None:
    """The next ids are the last two that fit into 32 bits, and those after them."""
    world.conn.execute(f"alter sequence wqcore.job_id_seq restart with {LIMIT - 3}")


def ended(world: World, *jobs: int) -> dict[int, tuple[Any, ...]]:
    rows = world.conn.execute("select id, outcome, attempt, deaths from wqcore.history where id = any(%s)", [list(jobs)])
    return {id_: tuple(rest) for id_, *rest in rows}


@pytest.fixture
def working(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A master whose next jobs have big ids."""
    monkeypatch.setenv("WQ_TEST_DSN", world.dsn)
    (world.folder / "flaky_handlers.py").write_text(FLAKY)
    world.start(world.configure(process={"handlers": ["world_handlers", "flaky_handlers"]}))
    ready(world)
    restart_ids(world)
    return world


@pytest.fixture
def client(working: World) -> Any:
    with wqcore.SyncClient(settings.load(working.folder / "wq.toml", environ={}), catalog=CATALOG) as client:
        yield client


def test_ids_beyond_2_31_are_inserted_run_retried_kept_and_controlled(working: World, client: wqcore.SyncClient) -> None:
    plain = [client.insert(Flaky(), run_at=None if n % 2 else dt.datetime.now(dt.UTC)) for n in range(6)]
    assert min(plain) < LIMIT <= max(plain)
    assert client.insert_many(Flaky() for _ in range(20)) == 20
    failing, tx, keyed = client.insert(Flaky(fails=2)), client.insert(Flaky(tx=True)), client.insert(Flaky(), job_key="k")
    by_sql = working.scalar("select wqcore.enqueue('flaky', '{}')")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    cancelled, moved, deleted = (client.insert(Flaky(), run_at=later) for _ in range(3))
    assert client.cancel(cancelled).changed == 1
    assert client.reschedule(moved, dt.timedelta(0)).changed == 1
    assert client.reprioritise(deleted, 5).changed == 1
    assert client.delete(deleted).changed == 1
    until(lambda: working.scalar("select count(*) from wqcore.job") == 0, "all have ended")
    assert working.outcomes() == {"completed": 6 + 20 + 5, "cancelled": 1}
    assert ended(working, failing, tx, keyed, by_sql, moved, *plain) == {
        failing: ("completed", 3, 0),
        **dict.fromkeys([tx, keyed, by_sql, moved, *plain], ("completed", 1, 0)),
    }
    assert client.retry(cancelled).changed == 1
    until(lambda: ended(working, cancelled).get(cancelled, ("",))[0] == "completed", "it was put back and completed")
    found = client.job(failing)
    assert found is not None
    assert [attempt.attempt for attempt in found.errors] == [1, 2]


def test_jobs_with_ids_beyond_2_31_are_claimed_shown_and_rescued(working: World, client: wqcore.SyncClient) -> None:
    running = [client.insert(Flaky(s=600.0)) for _ in range(5)]
    until(lambda: set(running) <= set(working.runs()), "they run")
    claimed = working.scalar("select ids from wqcore.claim order by turn desc limit 1")
    assert sorted(claimed) == sorted(running)
    shown = working.conn.execute("select id, state from wqcore.jobs").fetchall()
    assert sorted(shown) == sorted((id_, "running") for id_ in running)
    until(
        lambda: sorted(working.scalar("select array(select (jsonb_path_query(report, '$.shards.*.running[*][0]'))::bigint)"
                                      " from wqcore.process")) == sorted(running),
        "the heartbeat has them from the board",
    )  # fmt: skip
    until(lambda: working.scalar("select count(*) from wqcore.progress") == 5, "their progress is written")
    assert client.cancel(running[4]).cancelling == 1
    until(lambda: ended(working, running[4]) == {running[4]: ("cancelled", 1, 0)}, "one is cancelled while it runs")
    (worker,) = working.workers()
    assert isinstance(worker, psutil.Process)
    send(worker, signal.SIGKILL)
    until(lambda: len(ended(working, *running)) == 5, "all have ended")
    assert ended(working, *running[:4]) == dict.fromkeys(running[:4], ("completed", 2, 1))
