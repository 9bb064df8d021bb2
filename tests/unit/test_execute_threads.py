"""A `def` handler runs in a thread, and nothing else of its job happens before that thread has ended."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import wqcore
from tests.fix_room import Args, Room, row
from wqcore.job import Job
from wqcore.line.execute import SHUTDOWN
from wqcore.outcome import Discard, Snooze
from wqcore.signature import ThreadHandler

LIMIT_S = 20.0
"""For a wait in a thread: long enough for a slow machine, and an end for a broken test."""


class Gate:
    """A thread handler that waits inside until it is let go, and then does what it was told."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.left = threading.Event()
        self.go = threading.Event()
        self.error: BaseException | None = None
        self.jobs: list[Job] = []

    def __call__(self, args: Args, job: Job) -> None:
        self.jobs.append(job)
        self.entered.set()
        assert self.go.wait(LIMIT_S)
        self.left.set()
        if self.error is not None:
            raise self.error


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def threaded(function: Any) -> ThreadHandler:
    return ThreadHandler(function, True)


async def test_a_def_handler_runs_in_a_thread_with_its_job_at_hand(room: Room) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    variable.set("the worker")
    seen: list[Any] = []

    def handler(args: Args, job: Job) -> None:
        seen.append((args.n, job.id, variable.get(), wqcore.current_job() is job, job.stopping))
        seen.append(threading.current_thread() is threading.main_thread())
        job.progress(0.5, "half")
        job.output({"n": args.n})

    room.kind("k", threaded(handler))
    room.start().add([row(4, args=b'{"n": 6}')])
    [ended] = (await room.outcomes(1)).ended
    assert (ended.id, ended.outcome, ended.output) == (4, "completed", '{"n":6}')
    assert seen == [(6, 4, "the worker", True, False), False]
    await room.until(lambda: bool(room.side.said))
    assert room.side.said == [(4, 0.5, "half", threading.get_ident())]


async def test_threads_are_not_more_than_seats_and_serve_again(room: Room) -> None:
    names: set[str] = set()
    room.kind("k", threaded(lambda args, job: names.add(threading.current_thread().name)))
    room.start(3).add([row(n) for n in range(40)])
    await room.outcomes(40)
    assert 1 <= len(names) <= 3


async def test_a_handler_without_the_job_parameter_runs_too(room: Room) -> None:
    seen: list[int] = []
    room.kind("k", ThreadHandler(lambda args: seen.append(args.n), False))
    room.start().add([row(1, args=b'{"n": 2}')])
    await room.outcomes(1)
    assert seen == [2]


async def test_a_thread_over_its_time_is_asked_to_stop_and_its_error_is_the_time_outs(room: Room, gate: Gate) -> None:
    gate.error = RuntimeError("stopped half-way")
    room.kind("k", threaded(gate), timeout_s=0.05)
    executor = room.start(cancel_grace_s=0.05)
    executor.add([row(1)])
    await room.until(lambda: executor.counters.stuck == 1)
    assert gate.jobs[0].stopping
    assert len(executor.outcomes) == 0
    assert executor.held() == [1]
    gate.go.set()
    [again] = (await room.outcomes(1)).again
    assert "timed out after 0.05 s; its thread ended later, with RuntimeError: stopped half-way" in again.error
    assert executor.counters.timed_out == 1


async def test_a_thread_that_returns_after_its_time_completes_its_job(room: Room, gate: Gate) -> None:
    room.kind("k", threaded(gate), timeout_s=0.05)
    executor = room.start()
    executor.add([row(1)])
    await room.until(lambda: gate.entered.is_set() and gate.jobs[0].stopping)
    gate.go.set()
    assert (await room.outcomes(1)).done_ids == [1]


@pytest.mark.parametrize(
    ("error", "outcome"), [(RuntimeError("x"), "cancelled"), (Snooze(0), "cancelled"), (Discard("no"), "discarded")]
)
async def test_what_a_cancelled_thread_raises_ends_its_job(
    room: Room, gate: Gate, error: Exception, outcome: str
) -> None:
    gate.error = error
    room.kind("k", threaded(gate))
    executor = room.start()
    executor.add([row(1)])
    await room.until(gate.entered.is_set)
    executor.cancel_jobs({1: "not wanted"})
    await room.until(lambda: gate.jobs[0].stopping)
    assert len(executor.outcomes) == 0
    gate.go.set()
    [ended] = (await room.outcomes(1)).ended
    assert ended.outcome == outcome


async def test_a_cancelled_thread_that_runs_on_is_counted_as_stuck_long_before_its_time_out(
    room: Room, gate: Gate
) -> None:
    room.kind("k", threaded(gate), timeout_s=3600)
    executor = room.start(cancel_grace_s=0.05)
    executor.add([row(1)])
    await room.until(gate.entered.is_set)
    executor.cancel_jobs({1: "not wanted"})
    await room.until(lambda: executor.counters.stuck == 1)


async def test_no_other_job_of_the_key_starts_while_the_thread_runs_on(room: Room, gate: Gate) -> None:
    gate.error = RuntimeError("late")
    room.kind("k", threaded(gate), timeout_s=0.05)
    executor = room.start(3)
    executor.add([row(1, key="a"), row(2, key="a"), row(3)])
    await room.until(lambda: executor.running == 2 and all(job.stopping for job in gate.jobs) and len(gate.jobs) == 2)
    assert room.sheet.order == [1, 3]
    assert not gate.left.is_set()
    gate.go.set()
    await room.outcomes(3)
    assert room.sheet.order == [1, 3, 2]


async def test_a_shutdown_gives_the_attempt_of_a_thread_that_leaves_back(room: Room, gate: Gate) -> None:
    gate.error = Snooze(0)
    room.kind("k", threaded(gate))
    executor = room.start()
    executor.add([row(1)])
    await room.until(gate.entered.is_set)
    executor.halt()
    assert gate.jobs[0].stopping  # a drain is a reason to stop, before anything is cancelled
    executor.cancel_running(SHUTDOWN)
    gate.go.set()
    await room.until(lambda: executor.running == 0)
    assert (len(executor.outcomes), executor.counters.interrupted) == (0, 1)
    assert gate.jobs[0].stopping


async def test_a_thread_that_never_ends_does_not_keep_the_executor_from_closing(room: Room, gate: Gate) -> None:
    room.kind("k", threaded(gate))
    executor = room.start()
    executor.add([row(1)])
    await room.until(gate.entered.is_set)
    await executor.close()
    assert executor.threads.busy == 1
    assert not gate.left.is_set()
    assert len(executor.outcomes) == 0


async def test_a_def_handler_that_returns_a_coroutine_fails_with_the_reason(room: Room) -> None:
    async def work() -> None: ...

    room.kind("k", threaded(lambda args, job: work()))
    room.start().add([row(1)])
    [again] = (await room.outcomes(1)).again
    assert "async def" in json.loads(again.error)["error"]


async def test_complete_tx_refuses_the_connection_of_the_other_side(room: Room) -> None:
    errors: list[str] = []

    def in_thread(args: Args, job: Job) -> None:
        with pytest.raises(TypeError) as found:
            job.complete_tx(psycopg.AsyncConnection.__new__(psycopg.AsyncConnection))
        errors.append(str(found.value))

    async def on_loop(args: Args, job: Job) -> None:
        with pytest.raises(TypeError) as found:
            job.complete_tx(psycopg.Connection.__new__(psycopg.Connection))
        errors.append(str(found.value))
        await asyncio.sleep(0)

    room.kind("t", threaded(in_thread))
    room.kind("l", on_loop)
    room.start(1).add([row(1, "t"), row(2, "l")])
    assert (await room.outcomes(2)).done_ids == [1, 2]
    assert ["needs a psycopg.Connection" in errors[0], "needs a psycopg.AsyncConnection" in errors[1]] == [True, True]
