"""Priority, time and limits as a user sees them: real shards on a real database, in this process."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.fix_pg import Fresh
from wqcore import clock, testing
from wqcore.backoff import constant
from wqcore.catalog import Catalog, Kind
from wqcore.client import Client
from wqcore.job import Job
from wqcore.line.insert import InsertOptions
from wqcore.settings import Queue, QueueRetention, Rate


class Work(msgspec.Struct):
    ms: float = 0.0
    key: str | None = None


class Bench:
    """A kind whose handler notes when each job starts, and how many run at once, in all and of each key."""

    def __init__(self, database: Fresh) -> None:
        self.database = database
        self.started: list[Job] = []
        self.at: list[float] = []
        self.now: dict[str | None, int] = {}
        self.most: dict[str | None, int] = {}
        self.running = self.peak = 0
        self.catalog = Catalog()
        kind = Kind(
            "work", Work, queue="q", serial_key=lambda args: args.key, priority=1, max_attempts=3, timeout_s=60,
            backoff=constant(0.05), planned=False,
        )  # fmt: skip
        self.catalog.declare(kind)
        kind.handler = self.work

    async def work(self, args: Work, job: Job) -> None:
        self.started.append(job)
        self.at.append(clock.monotonic())
        self.running += 1
        self.peak = max(self.peak, self.running)
        key = job.serial_key
        self.now[key] = self.now.get(key, 0) + 1
        self.most[key] = max(self.most.get(key, 0), self.now[key])
        await asyncio.sleep(args.ms / 1000)
        self.running -= 1
        self.now[key] -= 1

    async def until(self, count: int, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while len(self.started) < count:
                await asyncio.sleep(0.005)

    async def database_is_empty(self) -> None:
        async with asyncio.timeout(30):
            while self.database.one("select count(*) from {s}.job"):
                await asyncio.sleep(0.02)

    def client(self) -> Client:
        return Client(self.database.settings, catalog=self.catalog)

    async def prepare(self, **queue: Any) -> dict[str, Queue]:
        queues = {"q": Queue(**{"poll_interval_s": 0.2, "workers": 10} | queue)}
        await testing.prepare(self.database.dsn, queues=queues, catalog=self.catalog)
        return queues

    def working(self, queues: dict[str, Queue]) -> Any:
        return testing.working(self.database.dsn, queues=queues, catalog=self.catalog)

    async def drain(self, queues: dict[str, Queue]) -> testing.Drained:
        return await testing.drain(self.database.dsn, queues=queues, catalog=self.catalog)


@pytest_asyncio.fixture
async def bench(database: Fresh) -> AsyncIterator[Bench]:
    yield Bench(database)


def past(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)


async def test_a_higher_priority_runs_first_over_all_slots_whether_ready_or_due(bench: Bench) -> None:
    queues = await bench.prepare(workers=1, slots=16)
    jobs = [(n % 7 * 10, n % 2) for n in range(280)]
    random.shuffle(jobs)
    async with bench.client() as client:
        for priority, due in jobs:
            await client.insert(Work(), priority=priority, run_at=past(60 - priority) if due else None)
    await bench.drain(queues)
    order = [job.priority for job in bench.started]
    assert order == sorted(order, reverse=True)


async def test_a_due_job_of_high_priority_passes_a_storm_of_retries(bench: Bench) -> None:
    queues = await bench.prepare(workers=1, slots=4, batch_max=50)
    async with bench.client() as client:
        for _ in range(400):
            await client.insert(Work(), run_at=past(60))
        urgent = await client.insert(Work(), run_at=past(0), priority=100)
    await bench.drain(queues)
    assert bench.started[0].id == urgent


async def test_jobs_start_when_their_time_comes_and_not_before(bench: Bench) -> None:
    queues = await bench.prepare(poll_interval_s=10.0)
    async with bench.client() as client, bench.working(queues):
        await client.insert(Work())
        await bench.until(1)  # from now on the shard sleeps until something is due
        now = dt.datetime.now(dt.UTC)
        times = {await client.insert(Work(), run_at=now + dt.timedelta(seconds=0.3 + n / 20)): n for n in range(20)}
        began = clock.monotonic()
        await bench.until(21, seconds=8)  # well within the poll interval
    late = [at - began - (0.3 + times[job.id] / 20) for job, at in zip(bench.started[1:], bench.at[1:], strict=True)]
    assert min(late) > -0.1
    assert [job.id for job in bench.started[1:]] == list(times)


async def test_a_permanent_stream_of_urgent_jobs_starves_the_others_unless_they_age(bench: Bench) -> None:
    async def stream(client: Client, stop: asyncio.Event) -> None:
        inserted = 0
        while not stop.is_set():
            while inserted - sum(job.priority == 20 for job in bench.started) < 60:
                await client.insert_many([(Work(ms=4), urgent)] * 20)
                inserted += 20
            await asyncio.sleep(0.01)

    urgent = InsertOptions(priority=20)
    for ageing_s, expected in ((0.0, 0), (0.05, 5)):
        bench.started.clear()
        queues = await bench.prepare(workers=2, ageing_s=ageing_s)
        stop = asyncio.Event()
        async with bench.client() as client:
            task = asyncio.create_task(stream(client, stop))
            async with asyncio.timeout(20):
                while not bench.database.one("select count(*) from {s}.job where priority = 20"):
                    await asyncio.sleep(0.01)
            low = [int(await client.insert(Work(ms=1), priority=1)) for _ in range(5)]
            async with bench.working(queues):
                async with asyncio.timeout(40):
                    while sum(job.id in low for job in bench.started) < expected or len(bench.started) < 600:
                        await asyncio.sleep(0.02)
                assert sum(job.id in low for job in bench.started) == expected
                assert task.done() is False
                stop.set()
                await task
                await bench.database_is_empty()


async def test_at_most_so_many_jobs_of_a_key_run_at_a_time(bench: Bench) -> None:
    queues = await bench.prepare(max_per_key=3, workers=20)
    async with bench.client() as client:
        await client.insert_many(Work(ms=5, key=f"k{n % 4}") for n in range(120))
    await bench.drain(queues)
    assert len(bench.started) == 120
    assert set(bench.most.values()) == {3}


async def test_a_limit_changed_at_run_time_is_obeyed(bench: Bench) -> None:
    queues = await bench.prepare(workers=20)
    async with bench.client() as client:
        await client.insert_many(Work(ms=20, key="one") for _ in range(60))
        async with bench.working(queues):
            await bench.until(5)
            assert bench.most == {"one": 1}
            assert await client.set_limits("q", max_per_key=6) == {"max_per_key": 6}
            await bench.until(60)
            assert 1 < bench.most["one"] <= 6
        assert await client.set_limits("q", max_per_key=None) == {}


async def test_limits_written_by_hand_that_make_no_sense_are_said_and_left(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    queues = await bench.prepare()
    bench.database.sql("update {s}.queue set limits = '{{\"rate\": \"fast\"}}'")
    async with bench.client() as client:
        await client.insert(Work())
    await bench.drain(queues)
    assert "limits of queue q are not understood" in caplog.text


async def test_a_rate_of_the_queue_is_kept_over_two_shards(bench: Bench) -> None:
    queues = await bench.prepare(rate=Rate(jobs=100, per_s=1.0, burst=4), workers=20)
    async with bench.client() as client:
        await client.insert_many(Work() for _ in range(120))
    began = clock.monotonic()
    async with bench.working(queues), bench.working(queues):
        await bench.until(120)
    assert all(count <= (at - began) * 100 + 4.01 for count, at in enumerate(sorted(bench.at), 1))


async def test_a_rate_of_keys_is_kept_for_each(bench: Bench) -> None:
    queues = await bench.prepare(rate_per_key=Rate(jobs=20, per_s=1.0, burst=1), max_per_key=5, workers=20)
    async with bench.client() as client:
        await client.insert_many(Work(key=f"k{n % 3}") for n in range(45))
    began = clock.monotonic()
    await bench.drain(queues)
    for key in range(3):
        at = [at for job, at in zip(bench.started, bench.at, strict=True) if job.serial_key == f"k{key}"]
        assert len(at) == 15
        assert all(count <= (start - began) * 20 + 1.01 for count, start in enumerate(at, 1))


@pytest.mark.parametrize("total", [1, 3])
async def test_a_queue_runs_so_many_jobs_at_a_time_over_all_its_shards(bench: Bench, total: int) -> None:
    queues = await bench.prepare(max_workers_total=total, workers=10)
    async with bench.client() as client:
        await client.insert_many(Work(ms=5) for _ in range(40))
        async with bench.working(queues):
            await bench.until(5)
            async with bench.working(queues):
                await bench.until(25)
            await bench.until(40)
        assert bench.peak == total
        await client.set_limits("q", max_workers_total=total + 4)
        await client.insert_many(Work(ms=20) for _ in range(60))
        async with bench.working(queues):
            await bench.until(100)
        assert total < bench.peak <= total + 4
        await client.set_limits("q", max_workers_total=None)
    assert bench.database.one("select count(*) from {s}.permit where shard is not null") == 0


async def test_a_job_that_is_put_back_right_after_its_cancellation_runs_at_once(bench: Bench) -> None:
    """Its shard remembers deleted ids for ten seconds, because a turn under way may have claimed them."""
    queues = await bench.prepare()
    async with bench.client() as client, bench.working(queues):
        await client.insert(Work())
        await bench.until(1)
        job = await client.insert(Work(), run_at=past(-30))
        assert (await client.cancel(job)).changed == 1
        assert (await client.retry(job)).changed == 1
        await bench.until(2, seconds=5)
    assert [each.id for each in bench.started][-1] == job


async def test_each_queue_keeps_its_finished_jobs_as_long_as_it_says(bench: Bench) -> None:
    queues = await bench.prepare(retention=QueueRetention(completed_hours=2))
    other = {"short": Queue(retention=QueueRetention(completed_hours=0)), "long": Queue()}
    await testing.prepare(bench.database.dsn, queues=other, catalog=bench.catalog)
    async with bench.client() as client:
        for queue in ("q", "short", "long"):
            await client.insert(Work(), queue=queue)
    await bench.drain(queues | other)
    kept = bench.database.sql(
        "select queue, round(extract(epoch from expires_at - finished_at) / 3600)::int, "
        "tableoid::regclass::text like '%%history_2%%' from {s}.history order by queue"
    )
    assert kept == [("long", 24, True), ("q", 2, True)]
