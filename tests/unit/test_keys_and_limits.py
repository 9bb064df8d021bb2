"""Keys and rates in memory: never more at a time than allowed, never faster than the rate, and nobody forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fix_room import Args, Sheet, Side, row
from wqcore import clock
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.job import Job, Row
from wqcore.line.bucket import Bucket
from wqcore.line.execute import Executor
from wqcore.line.keys import Keys
from wqcore.settings import Limits, Logging, Queue, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- the bucket


@given(
    st.floats(0.1, 1000), st.floats(1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=60), st.integers(0, 10**6)
)
def test_a_bucket_never_lets_more_start_than_its_rate_and_burst(
    per_second: float, burst: float, waits: list[float], start: int
) -> None:
    now, taken = float(start), 0
    bucket = Bucket(per_second, burst, now)
    for wait in waits:
        now += wait
        while bucket.take(now):
            taken += 1
        assert taken <= burst + (now - start) * per_second + 1e-3
        later = bucket.next_at(now)
        assert later > now
        assert bucket.available(later) >= 1 - 1e-6
        now = later


def test_a_bucket_is_empty_at_first_and_holds_at_most_its_burst() -> None:
    bucket = Bucket(2.0, 3.0, 100.0)
    assert not bucket.take(100.0)
    assert bucket.take(100.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


# --- keys


def keyed(id_: int, key: str, slot: int = 0) -> tuple[Any, ...]:
    fields = list(row(id_, key=key))
    fields[Row.SLOT] = slot
    return tuple(fields)


def test_as_many_jobs_of_a_key_run_as_the_limit_says_and_the_next_follow_in_order() -> None:
    keys = Keys()
    keys.limit(2, None)
    rows = [keyed(n, "a") for n in range(4)]
    assert [keys.take(each) for each in rows] == [True, True, False, False]
    assert keys.end("a") == rows[2]
    assert keys.end("a") == rows[3]
    assert [keys.end("a"), keys.end("a"), keys.parked] == [None, None, 0]
    assert keys.take(keyed(9, "a"))


def test_a_raised_limit_lets_parked_jobs_start() -> None:
    keys = Keys()
    rows = [keyed(n, "a") for n in range(3)]
    assert [keys.take(each) for each in rows] == [True, False, False]
    keys.limit(3, None)
    assert list(keys.with_room()) == rows[1:]


def test_jobs_that_run_elsewhere_count_for_their_key() -> None:
    keys = Keys()
    keys.limit(2, None)
    assert keys.held_elsewhere({"a": 2}) == []
    assert not keys.take(keyed(1, "a"))
    assert keys.held_elsewhere({"a": 1}) == ["a"]
    assert keys.next_of("a") == keyed(1, "a")


def test_a_key_does_not_start_faster_than_its_rate_also_when_its_slot_moves() -> None:
    now = Clock()
    keys = Keys(now)
    keys.limit(100, Rate(jobs=2, per_s=1.0))
    keys.own([0])
    assert not keys.take(keyed(1, "a"))  # the slot has just come: whoever had it may have used the tokens
    assert keys.next_refill_at() == pytest.approx(now.now + 0.5)
    now.now += 0.5
    assert [each[Row.ID] for each in keys.refilled()] == [1]
    now.now += 60
    assert [keys.take(keyed(n, "a")) for n in (2, 3, 4)] == [True, True, False]
    assert keys.take(keyed(5, "b"))  # a key never heard of has a full bucket by now
    now.now += 0.4
    assert list(keys.refilled()) == []
    now.now += 0.1
    assert [each[Row.ID] for each in keys.refilled()] == [4]
    assert keys.next_refill_at() is None


def test_buckets_that_are_full_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wqcore.line.keys.BUCKETS_MAX", 10)
    now = Clock()
    keys = Keys(now)
    keys.limit(1, Rate(jobs=1))
    keys.own([0])
    for n in range(100):
        now.now += 5
        assert keys.take(keyed(n, f"key {n}"))
        assert len(keys._buckets) <= 11


# --- the executor under limits


class Room:
    def __init__(self, workers: int = 4) -> None:
        self.starts: list[tuple[int, float]] = []
        self.at_once = self.most = 0
        self.changed = asyncio.Event()
        catalog = Catalog()
        kind = Kind(
            "k", Args, queue="q", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river, planned=False
        )  # fmt: skip
        catalog.declare(kind)

        async def handler(args: Args, job: Job) -> None:
            self.starts.append((job.id, clock.monotonic()))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            await asyncio.sleep(args.n / 1000)
            self.at_once -= 1

        kind.handler = handler
        self.executor = Executor(
            queue="q", workers=workers, catalog=catalog, sheet=Sheet(), run_side=Side(),
            on_change=self.changed.set, cancel_grace_s=1, log_settings=Logging(),
        )  # fmt: skip
        self.executor.start()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.executor.outcomes) < count:
                await asyncio.sleep(0.002)


async def test_a_shard_that_parks_all_that_it_fetched_asks_for_more() -> None:
    """Else it waits for its next look: 1,215 free jobs/s behind 100,000 blocked ones, in place of 66,000."""
    room = Room()
    room.executor.add([row(1, key="a", args=b'{"n": 60000}')])
    await asyncio.sleep(0.01)
    room.changed.clear()
    room.executor.add([row(n, key="a") for n in (2, 3)])
    async with asyncio.timeout(5):
        await room.changed.wait()
    assert (room.executor.waiting, room.executor.keys.parked) == (0, 2)
    await room.executor.close()


async def test_a_queue_starts_no_faster_than_its_rate() -> None:
    room = Room(workers=8)
    began = clock.monotonic()
    room.executor.set_limits(Limits(), Bucket(50.0, 2.0, began))
    room.executor.add([row(n) for n in range(12)])
    await room.until(12)
    starts = sorted(at for _, at in room.starts)
    for count, at in enumerate(starts, 1):
        assert count <= 2 + (at - began) * 50.0 + 0.01
    assert room.executor._refill is None  # nobody waits: no timer
    await room.executor.close()


async def test_no_timer_runs_while_jobs_wait_for_a_seat_and_not_for_the_rate() -> None:
    """It fired every half millisecond as long as all seats were busy."""
    room = Room(workers=1)
    room.executor.set_limits(Limits(), Bucket(1000.0, 2.0, clock.monotonic()))
    room.executor.add([row(1, args=b'{"n": 60000}'), row(2)])
    async with asyncio.timeout(5):
        while room.executor.waiting != 1:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    room.executor.set_limits(Limits(), room.executor.bucket)
    assert (room.executor.waiting, room.executor._refill) == (1, None)
    await room.executor.close()


async def test_rates_of_keys_hold_one_key_and_not_the_other() -> None:
    room = Room(workers=8)
    room.executor.keys.own([0])
    room.executor.keys._owned_since[0] = clock.monotonic() - 3600
    room.executor.set_limits(Limits(max_per_key=8, rate_per_key=Rate(jobs=1, per_s=3600.0)), None)
    room.executor.add([row(n, key=f"k{n % 3}") for n in range(9)])
    await room.until(3)
    assert sorted(id_ for id_, _ in room.starts) == [0, 1, 2]
    assert room.executor.keys.parked == 6
    room.executor.set_limits(Limits(max_per_key=8), None)
    await room.until(9)
    await room.executor.close()


async def test_ageing_lets_an_old_job_of_low_priority_go_first() -> None:
    room = Room(workers=1)
    room.executor.ageing_s = 10.0
    room.executor.seconds_since = lambda us: us / 1e6

    def waited(id_: int, priority: int, seconds: float) -> tuple[Any, ...]:
        fields = list(row(id_, priority=priority))
        fields[Row.CREATED_AT] = int(seconds * 1e6)
        return tuple(fields)

    room.executor.add([waited(1, 5, 0), waited(2, 1, 39), waited(3, 1, 51)])
    await room.until(3)
    assert [id_ for id_, _ in room.starts] == [3, 1, 2]
    await room.executor.close()


async def test_a_waiting_job_that_is_cancelled_has_no_attempt_and_its_key_goes_on() -> None:
    room = Room(workers=1)
    room.executor.add([row(1, args=b'{"n": 50}'), row(2, key="a"), row(3, key="a"), row(4)])
    await asyncio.sleep(0.01)
    room.executor.cancel_jobs({2: "not wanted", 4: "nor this"})
    await room.until(4)
    assert [id_ for id_, _ in room.starts] == [1, 3]
    ended = [(item.id, item.outcome, item.started) for item in room.executor.outcomes.ended]
    assert ended == [(2, "cancelled", False), (4, "cancelled", False)]
    await room.executor.close()


async def test_a_running_job_that_is_cancelled_ends_as_cancelled_and_one_that_is_gone_has_no_outcome() -> None:
    room = Room()
    room.executor.add([row(1, args=b'{"n": 60000}'), row(2, args=b'{"n": 60000}'), row(3)])
    await room.until(1)
    room.executor.cancel_jobs({1: "no longer"})
    room.executor.drop_jobs({2})
    await room.until(2)
    [ended] = room.executor.outcomes.ended
    assert (ended.id, ended.outcome, ended.started) == (1, "cancelled", True)
    assert msgspec.json.decode(ended.error or "")["error"] == "no longer"
    assert room.executor.held() == []
    await room.executor.close()


async def test_a_job_whose_key_was_taken_by_a_newer_one_does_not_start() -> None:
    room = Room()
    room.executor.add([row(1, max_attempts=0)])
    await room.until(1)
    [ended] = room.executor.outcomes.ended
    assert (ended.outcome, ended.started, room.starts) == ("cancelled", False, [])
    await room.executor.close()


async def test_an_output_is_written_with_the_completion() -> None:
    room = Room()

    async def handler(args: Args, job: Job) -> None:
        job.output({"first": 1})
        job.output(["second", args.n])

    room.executor._kinds["k"].call = handler
    room.executor.add([row(1, args=b'{"n": 4}')])
    await room.until(1)
    [ended] = room.executor.outcomes.ended
    assert (ended.outcome, ended.output, ended.error) == ("completed", '["second",4]', None)
    await room.executor.close()


def test_the_limits_of_a_queue_are_those_of_the_configuration_with_changes_over_them() -> None:
    queue = Queue(max_per_key=3, rate=Rate(jobs=60, per_s=60))
    assert queue.limits({}) == Limits(max_per_key=3, rate=Rate(jobs=60, per_s=60))
    changed = queue.limits({"rate": {"jobs": 1}, "max_workers_total": 5})
    assert changed == Limits(max_per_key=3, rate=Rate(jobs=1), max_workers_total=5)
    with pytest.raises(msgspec.ValidationError, match="max_per_key"):
        queue.limits({"max_per_key": 0})
