"""`wqcore.testing`: jobs run in the process of a test, by the real shard, and leave nothing behind but their outcome."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import psycopg
import pytest
import pytest_asyncio

import wqcore
from tests.fix_pg import Fresh
from wqcore import backoff, testing
from wqcore.catalog import Catalog, Kind
from wqcore.job import Job
from wqcore.settings import Queue


class Do(msgspec.Struct):
    what: str = "complete"
    s: float = 0.0


class Room:
    """A prepared database, a catalog with the kind `do`, and a client that knows both."""

    def __init__(self, dsn: str, catalog: Catalog, client: wqcore.Client) -> None:
        self.dsn = dsn
        self.catalog = catalog
        self.client = client

    async def drain(self, **options: Any) -> testing.Drained:
        return await testing.drain(self.dsn, catalog=self.catalog, **options)


def kind_of(do: Callable[[Do, Job], Awaitable[None]]) -> Catalog:
    catalog = Catalog()
    kind = Kind(
        "do", Do, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60,
        backoff=backoff.river, planned=False,
    )  # fmt: skip
    kind.handler = do
    catalog.declare(kind)
    return catalog


async def do(args: Do, job: Job) -> None:
    await asyncio.sleep(args.s)
    if args.what == "fail":
        raise ValueError("as asked")
    if args.what == "retry":
        raise wqcore.Retry(after=0)
    if args.what == "snooze":
        raise wqcore.Snooze(3600)
    if args.what == "cancel":
        raise wqcore.Cancel()
    if args.what == "discard":
        raise wqcore.Discard("as asked")


@pytest_asyncio.fixture
async def room(empty_dsn: str) -> AsyncIterator[Room]:
    catalog = kind_of(do)
    await testing.prepare(empty_dsn, queues=["default", "mail"], catalog=catalog)
    async with wqcore.Client(dsn=empty_dsn, catalog=catalog) as client:
        yield Room(empty_dsn, catalog, client)


def rows(dsn: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(text).fetchall()  # type: ignore[arg-type]


async def test_a_drain_works_everything_off_and_counts_what_became_of_it(room: Room) -> None:
    for what in ("complete", "complete", "fail", "retry", "snooze", "cancel", "discard"):
        await room.client.insert(Do(what))
    drained = await room.drain()
    assert drained == testing.Drained(completed=2, failed=1 + 2, snoozed=1, cancelled=1, discarded=2)
    states = rows(room.dsn, "select state, count(*) from wqcore.jobs group by 1 order by 1")
    assert states == [("cancelled", 1), ("completed", 2), ("discarded", 2), ("retryable", 1), ("scheduled", 1)]


async def test_a_drain_leaves_no_lease_no_claim_and_no_share_and_can_be_called_again(room: Room) -> None:
    for _ in range(3):
        await room.client.insert(Do())
        assert (await room.drain(queues=["default"])).completed == 1
        left = "(select count(*) from wqcore.shard), (select count(*) from wqcore.claim), (select count(*) from wqcore.process)"
        assert rows(room.dsn, f"select {left}, count(shard) from wqcore.slot") == [(0, 0, 0, 0)]


async def test_a_drain_leaves_what_is_scheduled_and_what_is_in_other_queues(room: Room) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    await room.client.insert(Do(), run_at=later)
    await room.client.insert(Do(), queue="mail")
    assert await room.drain(queues=["default"]) == testing.Drained()
    assert (await room.drain(queues="mail")).completed == 1


async def test_a_drain_takes_along_what_its_jobs_insert(empty_dsn: str) -> None:
    async def chain(args: Do, job: Job) -> None:
        if args.s < 3:
            await client.insert(Do(s=args.s + 1), queue="mail" if args.s == 1 else "default")

    catalog = kind_of(chain)
    await testing.prepare(empty_dsn, queues=["default", "mail"], catalog=catalog)
    async with wqcore.Client(dsn=empty_dsn, catalog=catalog) as client:
        await client.insert(Do())
        assert (await testing.drain(empty_dsn, catalog=catalog)).completed == 4


async def test_a_drain_that_runs_out_of_time_says_which_jobs_are_left_and_why(room: Room) -> None:
    hanging = await room.client.insert(Do(s=3600))
    waiting = await room.client.insert(Do(), queue="mail")
    await room.client.pause("mail")
    with pytest.raises(testing.NotDrained) as caught:
        await room.drain(timeout_s=2)
    assert f"job {hanging} (do, queue default) runs" in str(caught.value)
    assert f"job {waiting} (do, queue mail) waits; its queue is paused" in str(caught.value)
    assert rows(room.dsn, "select count(*) from wqcore.shard") == [(0,)]
    assert rows(room.dsn, f"select state, attempt from wqcore.jobs where id = {hanging}") == [("available", 0)]


async def test_a_drain_names_the_process_that_has_the_jobs(room: Room) -> None:
    await room.client.insert(Do())
    other = "00000000-0000-4000-8000-00000000dead"
    with psycopg.connect(room.dsn, autocommit=True) as conn:
        conn.execute("insert into wqcore.shard (id, process, queue) values (1, %s, 'default')", (other,))
        conn.execute("update wqcore.slot set shard = 1 where queue = 'default'")
    with pytest.raises(testing.NotDrained, match=other):
        await room.drain(timeout_s=1)


async def test_a_queue_that_was_not_prepared_is_refused_with_the_fix(room: Room) -> None:
    with pytest.raises(wqcore.UnknownQueue, match=r"'nope'.*default, mail.*prepare"):
        await room.drain(queues=["nope"])


async def test_prepare_remembers_the_limits_of_a_queue(empty_dsn: str) -> None:
    beside: list[int] = []
    running = 0

    async def count(args: Do, job: Job) -> None:
        nonlocal running
        running += 1
        beside.append(running)
        await asyncio.sleep(0.05)
        running -= 1

    catalog = kind_of(count)
    await testing.prepare(empty_dsn, queues={"default": Queue(workers=4, max_per_key=2, slots=3)}, catalog=catalog)
    await testing.prepare(empty_dsn, catalog=catalog)
    assert rows(empty_dsn, "select slots from wqcore.queue") == [(3,)]
    async with wqcore.Client(dsn=empty_dsn, catalog=catalog) as client:
        for _ in range(6):
            await client.insert(Do(), serial_key="k")
        assert (await testing.drain(empty_dsn, catalog=catalog)).completed == 6
    assert max(beside) == 2


async def test_workers_run_in_the_background_while_the_block_runs(room: Room) -> None:
    async with testing.working(room.dsn, queues=["default"], catalog=room.catalog):
        job = await room.client.insert(Do())
        async with asyncio.timeout(20):
            while rows(room.dsn, f"select state from wqcore.jobs where id = {job}") != [("completed",)]:
                await asyncio.sleep(0.02)
            while not rows(room.dsn, "select from wqcore.process"):
                await asyncio.sleep(0.02)
    assert rows(room.dsn, "select (select count(*) from wqcore.shard), (select count(*) from wqcore.process)") == [(0, 0)]


async def test_a_block_that_fails_cancels_what_runs_and_gives_it_back(room: Room) -> None:
    with pytest.raises(ZeroDivisionError):
        async with testing.working(room.dsn, queues=["default"], catalog=room.catalog):
            job = await room.client.insert(Do(s=3600))
            async with asyncio.timeout(20):
                while rows(room.dsn, f"select state from wqcore.jobs where id = {job}") != [("running",)]:
                    await asyncio.sleep(0.02)
            raise ZeroDivisionError
    assert rows(room.dsn, f"select state, attempt from wqcore.jobs where id = {job}") == [("available", 0)]
    assert rows(room.dsn, "select count(*) from wqcore.shard") == [(0,)]


@pytest.mark.parametrize("schema", ['we"ird; schema'], indirect=True)
async def test_any_schema_will_do(database: Fresh, schema: str) -> None:
    catalog = kind_of(do)
    await testing.prepare(database.dsn, queues=["default"], schema=schema, catalog=catalog)
    async with wqcore.Client(dsn=database.dsn, schema=schema, catalog=catalog) as client:
        await client.insert(Do())
    assert (await testing.drain(database.dsn, schema=schema, catalog=catalog)).completed == 1
