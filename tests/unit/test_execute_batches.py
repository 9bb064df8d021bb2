"""The jobs of a batch share one run, and each of them has an outcome of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

import wqcore
from tests.fix_room import Room, row
from wqcore.line.execute import GONE, SHUTDOWN
from wqcore.outcome import Cancel, Discard, Retry, Snooze
from wqcore.signature import BatchHandler, BatchItem

Items = list[BatchItem[Any]]


class Runs:
    """A batch handler that remembers its runs and does what it is told."""

    def __init__(self, say: Callable[[Items], Any] = lambda items: None) -> None:
        self.ids: list[list[int]] = []
        self.cancelled = 0
        self.items: Items = []
        self.go = asyncio.Event()
        self.go.set()
        self._say = say

    async def __call__(self, items: Items) -> Any:
        self.items = items
        self.ids.append([item.job.id for item in items])
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._say(items)


def batched(runs: Runs, max_batch: int = 4, max_wait_s: float = 30.0) -> BatchHandler:
    return BatchHandler(runs, max_batch, max_wait_s)


async def test_a_full_batch_is_one_run_and_all_its_jobs_are_completed(room: Room) -> None:
    runs = Runs()
    room.kind("k", batched(runs))
    room.start(4).add([row(n, args=b'{"n": %d}' % n) for n in range(8)])
    assert sorted((await room.outcomes(8)).done_ids) == list(range(8))
    assert [sorted(ids) for ids in runs.ids] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [item.args.n for item in runs.items] == runs.ids[-1]


async def test_a_batch_that_does_not_fill_up_runs_after_its_wait(room: Room) -> None:
    runs = Runs()
    room.kind("k", batched(runs, max_wait_s=0.01))
    room.start(4).add([row(1), row(2)])
    assert sorted((await room.outcomes(2)).done_ids) == [1, 2]
    assert sum(len(ids) for ids in runs.ids) == 2


async def test_each_job_has_its_own_result(room: Room) -> None:
    results = {1: None, 2: ValueError("mine"), 3: Discard("bad"), 4: Snooze(60), 5: Cancel("no"), 6: Retry(after=9)}

    def say(items: Items) -> Any:
        items[0].job.output("kept")
        return [results[item.job.id] for item in items]

    room.kind("k", batched(Runs(say), 6))
    room.start(6).add([row(n) for n in range(1, 7)])
    outcomes = await room.outcomes(6)
    assert {item.id: item.delay_s for item in outcomes.again} == {2: 7.0, 4: 60.0, 6: 9.0}
    assert {item.id: (item.outcome, item.output) for item in outcomes.ended} == {
        1: ("completed", '"kept"'), 3: ("discarded", None), 5: ("cancelled", None),
    }  # fmt: skip


async def test_raising_fails_every_job_with_the_same_error(room: Room) -> None:
    def say(items: Items) -> Any:
        raise ValueError("all of us")

    room.kind("k", batched(Runs(say)))
    room.start(4).add([row(n) for n in range(4)])
    errors = [json.loads(item.error) for item in (await room.outcomes(4)).again]
    assert [error["error"] for error in errors] == ["all of us"] * 4
    assert all(error["traceback"] == errors[0]["traceback"] for error in errors)


@pytest.mark.parametrize("results", [[None], "no", 7, [None, None, None, "done"]])
async def test_results_that_do_not_fit_fail_every_job_and_say_why(room: Room, results: Any) -> None:
    room.kind("k", batched(Runs(lambda items: results)))
    room.start(4).add([row(n) for n in range(4)])
    errors = [json.loads(item.error)["error"] for item in (await room.outcomes(4)).again]
    assert all("the batch handler returned" in error for error in errors)


async def test_the_time_out_is_that_of_the_run_and_ends_all_jobs(room: Room) -> None:
    runs = Runs()
    runs.go.clear()
    room.kind("k", batched(runs, 3), timeout_s=0.05)
    room.start(3).add([row(n) for n in range(3)])
    errors = [json.loads(item.error)["error"] for item in (await room.outcomes(3)).again]
    assert errors == ["timed out after 0.05 s"] * 3
    assert (runs.cancelled, room.executor.counters.timed_out) == (1, 3)


@pytest.mark.parametrize("why", ["cancel", GONE])
@pytest.mark.parametrize("key", [None, "a"])
async def test_a_job_that_is_cancelled_alone_leaves_the_others_alone(room: Room, why: str, key: str | None) -> None:
    runs = Runs()
    runs.go.clear()
    room.kind("k", batched(runs, 3))
    executor = room.start(3)
    executor.add([row(1, key=key), row(2), row(3)])
    await room.until(lambda: bool(runs.ids))
    if why == GONE:
        executor.drop_jobs({1})
    else:
        executor.cancel_jobs({1: "not wanted"})
    first = next(item.job for item in runs.items if item.job.id == 1)
    assert first.stopping
    # without a key nothing can run beside the batch in its place, so its seat is free at once
    await room.until(lambda: (1 in executor.held()) == (key is not None))
    runs.go.set()
    outcomes = await room.outcomes(2 if why == GONE else 3)
    assert sorted(outcomes.done_ids) == [2, 3]
    assert [item.outcome for item in outcomes.ended] == ([] if why == GONE else ["cancelled"])
    assert runs.cancelled == 0


async def test_a_batch_whose_jobs_are_all_cancelled_is_cancelled(room: Room) -> None:
    runs = Runs()
    runs.go.clear()
    room.kind("k", batched(runs, 2))
    executor = room.start(2)
    executor.add([row(1), row(2)])
    await room.until(lambda: bool(runs.ids))
    executor.cancel_jobs({1: "", 2: ""})
    assert [item.outcome for item in (await room.outcomes(2)).ended] == ["cancelled"] * 2
    await room.until(lambda: runs.cancelled == 1)


async def test_a_job_that_is_cancelled_while_its_batch_gathers_is_not_in_it(room: Room) -> None:
    runs = Runs()
    room.kind("k", batched(runs, 3))
    executor = room.start(3)
    executor.add([row(1), row(2)])
    await room.until(lambda: executor.running == 2)
    executor.cancel_jobs({1: "not wanted"})
    await room.until(lambda: executor.running == 1)
    executor.add([row(3), row(4)])
    outcomes = await room.outcomes(4)
    assert [sorted(ids) for ids in runs.ids] == [[2, 3, 4]]
    assert [item.id for item in outcomes.ended] == [1]


async def test_a_shutdown_cancels_the_run_once_and_gives_the_attempts_back(room: Room) -> None:
    runs = Runs()
    runs.go.clear()
    room.kind("k", batched(runs, 3))
    executor = room.start(3)
    executor.add([row(n) for n in range(3)])
    await room.until(lambda: bool(runs.ids))
    executor.cancel_running(SHUTDOWN)
    await room.until(lambda: executor.running == 0)
    assert (len(executor.outcomes), executor.counters.interrupted, runs.cancelled) == (0, 3, 1)


async def test_a_batch_that_cannot_fill_its_size_is_said_at_the_start(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs()
    room.kind("k", batched(runs, 100))
    room.start(2).add([row(n) for n in range(4)])
    await room.outcomes(4)
    assert "max_batch = 100" in caplog.text
    assert [len(ids) for ids in runs.ids] == [2, 2]


async def test_a_batch_is_nobodys_current_job(room: Room) -> None:
    seen: list[Any] = []
    room.kind("k", batched(Runs(lambda items: seen.append(wqcore.current_job())), 1))
    room.start().add([row(1)])
    await room.outcomes(1)
    assert seen == [None]
