"""Every run ends in exactly one outcome, whatever its handler does, and no job sees what another left."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fix_room import Args, Room, row
from wqcore import clock
from wqcore.errors import LeaseLost
from wqcore.job import Job
from wqcore.line import execute
from wqcore.line.execute import SHUTDOWN
from wqcore.line.settle import Outcomes
from wqcore.outcome import Cancel, Discard, Retry, Snooze


def raises(error: BaseException) -> Callable[..., Any]:
    async def handler(args: Args, job: Job) -> None:
        await asyncio.sleep(0)
        raise error

    return handler


async def test_a_job_that_returns_is_completed(room: Room) -> None:
    seen = []

    async def handler(args: Args, job: Job) -> None:
        seen.append((args.n, job.id, job.attempt))

    room.kind("k", handler)
    room.start().add([row(4, args=b'{"n": 6}', attempt=1)])
    outcomes = await room.outcomes(1)
    assert (outcomes.done_ids, outcomes.again, outcomes.ended, seen) == ([4], [], [], [(6, 4, 2)])
    assert room.executor.counters.completed == 1


@pytest.mark.parametrize(
    ("error", "delay_s", "text"),
    [
        (ValueError("boom"), 7.0, "boom"),
        (Retry("again", after=3), 3.0, "again"),
        (Retry(), 7.0, "retry requested"),
        (SystemExit(3), 7.0, "3"),
        (KeyboardInterrupt(), 7.0, ""),
        (asyncio.CancelledError(), 7.0, "raised CancelledError"),
        (TimeoutError("its own"), 7.0, "its own"),
    ],
)
async def test_a_failed_attempt_runs_again(room: Room, error: BaseException, delay_s: float, text: str) -> None:
    room.kind("k", raises(error))
    room.start(1).add([row(1), row(2, max_attempts=1)])
    outcomes = await room.outcomes(2)
    [again], [ended] = outcomes.again, outcomes.ended
    assert (again.id, again.attempt, again.delay_s) == (1, 1, delay_s)
    assert text in json.loads(again.error)["error"]
    assert (ended.id, ended.outcome) == (2, "discarded")


@pytest.mark.parametrize(("error", "outcome"), [(Cancel("stop"), "cancelled"), (Discard("bad"), "discarded")])
async def test_a_handler_may_end_its_job(room: Room, error: Exception, outcome: str) -> None:
    room.kind("k", raises(error))
    room.start().add([row(1)])
    [ended] = (await room.outcomes(1)).ended
    assert (ended.outcome, json.loads(ended.error)["error"]) == (outcome, str(error))


async def test_a_snooze_costs_no_attempt(room: Room) -> None:
    room.kind("k", raises(Snooze(90)))
    room.start().add([row(1, attempt=2)])
    [again] = (await room.outcomes(1)).again
    assert (again.attempt, again.delay_s, again.error) == (2, 90.0, None)


async def test_a_lost_lease_is_no_outcome(room: Room) -> None:
    room.kind("k", raises(LeaseLost("gone")))
    executor = room.start()
    executor.add([row(1)])
    await room.until(lambda: executor.counters.interrupted == 1)
    assert len(executor.outcomes) == 0


@pytest.mark.parametrize("args", [b'{"n": "x"}', b"{", b"[]"])
async def test_args_that_do_not_fit_discard_the_job(room: Room, args: bytes) -> None:
    room.kind("k", raises(AssertionError()))
    room.start().add([row(1, args=args)])
    [ended] = (await room.outcomes(1)).ended
    assert ended.outcome == "discarded"
    assert "args do not fit" in json.loads(ended.error)["error"]


async def test_a_decoding_error_of_the_handlers_own_is_an_ordinary_failure(room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        msgspec.json.decode(b"{")

    room.kind("k", handler)
    room.start().add([row(1)])
    assert len((await room.outcomes(1)).again) == 1


async def test_a_handler_over_its_time_is_cancelled(room: Room) -> None:
    room.kind("k", lambda args, job: asyncio.sleep(3600), timeout_s=0.05)
    room.start().add([row(1)])
    [again] = (await room.outcomes(1)).again
    assert "timed out after 0.05 s" in again.error
    assert room.executor.counters.timed_out == 1


async def test_a_handler_that_ignores_its_cancellation_is_counted_as_stuck(room: Room) -> None:
    release = asyncio.Event()

    async def handler(args: Args, job: Job) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    room.kind("k", handler, timeout_s=0.05)
    executor = room.start(cancel_grace_s=0.05)
    executor.add([row(1)])
    await room.until(lambda: executor.counters.stuck == 1)
    release.set()
    assert (await room.outcomes(1)).done_ids == [1]
    executor.add([row(2)])
    assert (await room.outcomes(2)).done_ids == [1, 2]


async def test_an_interrupted_run_gives_its_attempt_back(room: Room) -> None:
    room.kind("k", lambda args, job: asyncio.sleep(3600))
    executor = room.start()
    executor.add([row(1), row(2)])
    await room.until(lambda: executor.running == 2)
    executor.cancel_running(SHUTDOWN)
    await room.until(lambda: executor.running == 0)
    assert (len(executor.outcomes), executor.counters.interrupted) == (0, 2)


async def test_an_unknown_kind_is_given_back_for_an_hour_of_this_worker_then_discarded(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aged(job_id: int, seconds: int) -> tuple[Any, ...]:
        return (*row(job_id, "new")[:10], seconds, b"{}", None)

    executor = room.start()
    executor.seconds_since = float
    executor.add([aged(1, 1), aged(2, 999_999)])  # the second was inserted days ago, for now
    await room.until(lambda: len(executor.outcomes.again) == 2)
    later = SimpleNamespace(monotonic=lambda: clock.monotonic() + 3601, jittered=clock.jittered)
    monkeypatch.setattr("wqcore.line.ledger.clock", later)
    executor.add([aged(3, 1), aged(4, 3601)])
    outcomes = await room.outcomes(4)
    assert [(item.id, item.attempt, item.error) for item in outcomes.again] == [(1, 0, None), (2, 0, None), (3, 0, None)]
    assert [(item.id, item.outcome) for item in outcomes.ended] == [(4, "discarded")]


async def test_of_an_error_the_log_names_the_class_and_the_place_unless_texts_are_asked_for(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    class SecretiveError(Exception):
        pass

    room.kind("k", raises(SecretiveError("s3cret")))
    executor = room.start()
    executor.add([row(1)])
    await room.until(lambda: len(executor.outcomes.again) == 1)
    executor.error_texts = True
    executor.add([row(2)])
    outcomes = await room.outcomes(2)
    without, whole = [record.error for record in caplog.records if record.getMessage() == "Task failed"]  # type: ignore[attr-defined]
    assert re.fullmatch(r"\S+SecretiveError at \S+test_execute_outcomes\.py:\d+", without)
    assert whole.endswith("SecretiveError: s3cret")
    assert all("s3cret" in (item.error or "") for item in outcomes.again)  # the table always has it


async def test_an_error_from_a_file_whose_name_is_not_utf_8_costs_its_job_and_no_seat(room: Room) -> None:
    found: dict[str, Any] = {}
    exec(compile("async def fail(args):\n    raise ValueError", "/srv/\udcff.py", "exec"), found)

    async def handler(args: Args, job: Job) -> None:
        await found["fail"](args)

    room.kind("k", handler)
    room.start(1).add([row(1), row(2)])
    again = (await room.outcomes(2)).again
    assert [item.id for item in again] == [1, 2]
    assert "/srv/\ufffd.py:2" in json.loads(again[0].error or "")["traceback"][-1]


async def test_a_broken_backoff_policy_loses_no_job(room: Room) -> None:
    room.kind("k", raises(ValueError()), backoff=lambda attempt: 1 / 0)
    room.start().add([row(1)])
    assert 0.9 <= (await room.outcomes(1)).again[0].delay_s <= 1.1


async def test_at_most_one_job_of_a_key_runs_and_in_order(room: Room) -> None:
    running: set[str] = set()

    async def handler(args: Args, job: Job) -> None:
        assert job.serial_key not in running
        running.add(str(job.serial_key))
        await asyncio.sleep(0.001)
        running.discard(str(job.serial_key))

    room.kind("k", handler)
    room.start(8).add([row(n, key=f"key {n % 3}") for n in range(30)])
    assert sorted((await room.outcomes(30)).done_ids) == list(range(30))
    for key in range(3):
        ids = [id_ for id_ in room.sheet.order if id_ % 3 == key]
        assert ids == sorted(ids)


async def test_a_higher_priority_runs_first(room: Room) -> None:
    async def handler(args: Args, job: Job) -> None: ...

    room.kind("k", handler)
    room.start(1).add([row(1), row(2, priority=-5), row(3, priority=9), row(4)])
    assert (await room.outcomes(4)).done_ids == [3, 1, 4, 2]


async def test_a_context_variable_does_not_leak_into_the_next_job(room: Room) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("leak", default=0)
    seen = []

    async def handler(args: Args, job: Job) -> None:
        seen.append(variable.get())
        variable.set(job.id)

    room.kind("k", handler)
    room.start(1).add([row(n) for n in range(1, 6)])
    await room.outcomes(5)
    assert seen == [0] * 5


async def test_a_cancellation_that_a_handler_left_behind_does_not_reach_the_next_job(room: Room) -> None:
    async def handler(args: Args, job: Job) -> None:
        await asyncio.sleep(0)
        if job.id == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    room.kind("k", handler)
    room.start(1).add([row(1), row(2)])
    assert sorted((await room.outcomes(2)).ids()) == [1, 2]
    assert 2 in room.executor.outcomes.done_ids


async def test_what_has_not_started_can_be_given_back(room: Room) -> None:
    release = asyncio.Event()
    room.kind("k", lambda args, job: release.wait())
    executor = room.start(1)
    executor.add([row(1, key="a"), row(2, key="a"), row(3), row(4, priority=5, deaths=0)])
    await room.until(lambda: executor.running == 1)
    assert len(executor.give_back()) == 3
    assert executor.waiting == 0
    release.set()
    assert len((await room.outcomes(1)).done_ids) == 1


async def test_a_suspect_that_was_parked_behind_its_key_still_runs(room: Room) -> None:
    """Its priority may be one that no other waiting job has."""
    release = asyncio.Event()
    room.kind("k", lambda args, job: release.wait())
    executor = room.start(2)
    executor.add([row(1, key="a")])
    await room.until(lambda: executor.running == 1)
    executor.add([row(2, key="a", priority=5, deaths=1)])
    await room.until(lambda: list(executor.keys.parked_rows()) != [])
    release.set()
    await room.until(lambda: executor.outcomes.done_ids == [1] and room.changed.is_set())
    executor.outcomes = Outcomes()  # as the shard does when they are written
    executor.settled()
    await room.until(lambda: executor.outcomes.done_ids == [2])


async def test_a_job_with_two_deaths_runs_alone(room: Room) -> None:
    together: list[set[int]] = []

    async def handler(args: Args, job: Job) -> None:
        together.append(set(room.sheet.on_seats.values()))
        await asyncio.sleep(2 * execute.SUSPECT_HEAD_START_S if job.deaths else 0)
        together.append(set(room.sheet.on_seats.values()))

    room.kind("k", handler)
    executor = room.start(4)
    executor.add([row(n) for n in range(1, 6)] + [row(9, deaths=2)])
    await room.outcomes(6)
    assert [jobs for jobs in together if 9 in jobs] == [{9}, {9}]
