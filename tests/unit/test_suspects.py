"""Jobs that a process has died with: each gets a head start alone, and none is lost on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from wqcore import backoff
from wqcore.catalog import Catalog, Kind
from wqcore.job import Job
from wqcore.line.execute import SUSPECT_HEAD_START_S, Executor, head_start_s
from wqcore.settings import Logging


class Work(msgspec.Struct):
    s: float = 0.0


class PaperSheet:
    """Takes what a board's sheet takes."""

    def __init__(self) -> None:
        self.on: dict[int, int] = {}

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began: float) -> None:
        self.on[seat] = job_id

    def finished(self, seat: int, job_id: int, attempt: int) -> None:
        del self.on[seat]


def row(job_id: int, *, deaths: int = 0, key: str | None = None, s: float = 0.0) -> tuple[Any, ...]:
    return (job_id, 0, 1, "work", 0, 0, 5, deaths, key, None, 0, msgspec.json.encode(Work(s)), None)


class Bench:
    """An executor whose outcomes are settled as soon as it asks."""

    def __init__(self, workers: int = 4) -> None:
        self.order: list[int] = []
        self.beside: dict[int, int] = {}
        catalog = Catalog()
        kind = Kind(
            "work",
            Work,
            queue="q",
            serial_key=None,
            priority=1,
            max_attempts=5,
            timeout_s=9,
            backoff=backoff.river,
            planned=False,
        )
        catalog.declare(kind)

        async def work(args: Work, job: Job) -> None:
            self.order.append(job.id)
            self.beside[job.id] = len(self.sheet.on)
            await asyncio.sleep(args.s)

        kind.handler = work
        self.sheet = PaperSheet()
        self.done: list[int] = []
        self.executor = Executor(
            queue="q",
            workers=workers,
            catalog=catalog,
            sheet=self.sheet,
            run_side=None,  # type: ignore[arg-type]
            on_change=lambda: asyncio.get_running_loop().call_soon(self.settle),
            cancel_grace_s=1,
            log_settings=Logging(),
        )

    def settle(self) -> None:
        outcomes = self.executor.outcomes
        self.done += outcomes.done_ids
        outcomes.done.clear()
        outcomes.done_began.clear()
        self.executor.settled()

    async def finish(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.done) < count:
                await asyncio.sleep(0.005)
        await self.executor.close()


async def test_two_suspects_of_one_serial_key_both_run() -> None:
    bench = Bench()
    bench.executor.start()
    bench.executor.add([row(1, deaths=1, key="k", s=0.1), row(2, deaths=1, key="k")])
    assert sorted(bench.executor.held()) == [1, 2]
    await bench.finish(2)
    assert bench.order == [1, 2]


async def test_quick_suspects_run_one_at_a_time_before_anything_else() -> None:
    bench = Bench()
    bench.executor.start()
    bench.executor.add([row(10), row(1, deaths=1), row(11), row(2, deaths=1), row(3, deaths=2)])
    await bench.finish(5)
    assert bench.order[:3] == [1, 2, 3]
    assert all(bench.beside[job] == 1 for job in (1, 2, 3))


async def test_a_long_suspect_lets_others_in_after_its_head_start() -> None:
    bench = Bench()
    bench.executor.start()
    bench.executor.add([row(1, deaths=1, s=0.4), row(10), row(2, deaths=1, s=0.4)])
    await bench.finish(3)
    assert bench.order == [1, 2, 10]
    assert bench.done[-2:] != [10, 10]
    assert bench.beside[2] == 2


async def test_a_job_with_two_deaths_runs_alone_until_it_ends() -> None:
    bench = Bench()
    bench.executor.start()
    bench.executor.add([row(1, deaths=2, s=0.2), row(10), row(11)])
    await bench.finish(3)
    assert bench.done[0] == 1
    assert bench.order[0] == 1


async def test_a_suspect_whose_key_is_busy_leaves_its_seat_to_others() -> None:
    bench = Bench(workers=2)
    bench.executor.start()
    bench.executor.add([row(1, key="k", s=60.0)])
    async with asyncio.timeout(5):
        while not bench.order:
            await asyncio.sleep(0.005)
    bench.executor.add([row(2, deaths=1, key="k"), row(3)])
    await bench.finish(1)
    assert bench.done == [3]


async def test_suspects_that_are_given_back_are_held_no_more() -> None:
    bench = Bench(workers=1)
    bench.executor.start()
    bench.executor.add([row(1, deaths=1, s=0.2), row(2, deaths=1), row(3)])
    async with asyncio.timeout(5):
        while not bench.order:
            await asyncio.sleep(0.005)
    assert len(bench.executor.give_back()) == 2
    assert bench.executor.held() == [1]
    assert bench.executor.waiting == 0
    await bench.finish(1)


def test_head_starts_get_shorter_when_many_wait_so_that_a_worker_of_any_size_is_made_up_for_within_seconds() -> None:
    assert head_start_s(0) == head_start_s(9) == SUSPECT_HEAD_START_S
    assert sum(head_start_s(others) for others in range(20)) < 1.0
    assert sum(head_start_s(others) for others in range(200)) < 2.1
