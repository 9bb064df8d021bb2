"""At most `max_per_key` jobs of a serial key run at a time, and start no faster than its rate: decided in memory.

One shard sees all jobs of a key, because they are all in one slot, so no statement is needed and the limits hold over
the fleet. Jobs that may not start yet are parked in the order of arrival. Beyond `PARKED_MAX` the fetch is told to
leave those keys out; a key that was left out is read again, from where that began, once its parked jobs are gone.

A key's bucket is empty when its slot comes to this shard, and fills from then on: so a key is not started faster than
its rate when its slot moves, and a key not heard of for long has a full bucket without being remembered.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from wqcore import clock
from wqcore.job import Row
from wqcore.line.bucket import Bucket
from wqcore.line.lanes import Position
from wqcore.settings import Rate

PARKED_MAX = 1000
BUCKETS_MAX = 10_000
"""Buckets kept before the full ones are forgotten."""


class Keys:
    """The running and parked jobs of keys in one shard. Pure but for its clock."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self.parked = 0
        self.max_per_key = 1
        self._rate: Rate | None = None
        self._now = now
        self._running: dict[str, int] = {}
        self._elsewhere: dict[str, int] = {}
        self._parked: dict[str, deque[tuple[Any, ...]]] = {}
        self._left_out: dict[str, tuple[int, Position]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._refilled: list[tuple[float, str]] = []
        self._owned_since: dict[int, float] = {}

    def limit(self, max_per_key: int, rate: Rate | None) -> None:
        """Sets the limits; what runs already is not touched."""
        self.max_per_key = max_per_key
        if rate != self._rate:
            self._rate = rate
            self._buckets.clear()
            self._refilled = [] if rate is None else [(self._now(), key) for key in self._parked]

    def own(self, slots: list[int]) -> None:
        """The slots of this shard; buckets of keys in new ones are empty now."""
        now = self._now()
        self._owned_since = {slot: self._owned_since.get(slot, now) for slot in slots}

    def take(self, row: tuple[Any, ...]) -> bool:
        """True when the job may start now, and then it counts as running; else it was parked."""
        key = row[Row.SERIAL_KEY]
        if key not in self._parked and self._may_start(key, row[Row.SLOT]):
            self._running[key] = self._running.get(key, 0) + 1
            return True
        self._parked.setdefault(key, deque()).append(row)
        self.parked += 1
        return False

    def end(self, key: str) -> tuple[Any, ...] | None:
        """A job of the key has ended, or did not start: the next parked one, which counts as running now, or None."""
        left = self._running.get(key, 0) - 1
        if left > 0:
            self._running[key] = left
        else:
            self._running.pop(key, None)
        return self.next_of(key)

    def next_of(self, key: str) -> tuple[Any, ...] | None:
        """The next parked job of a key, if it may start; it counts as running then."""
        parked = self._parked.get(key)
        if not parked or not self._may_start(key, parked[0][Row.SLOT]):
            return None
        row = parked.popleft()
        self.parked -= 1
        self._running[key] = self._running.get(key, 0) + 1
        if not parked:
            del self._parked[key]
        elif self._rate is not None:
            self._await_token(key, parked[0][Row.SLOT])
        return row

    def with_room(self) -> Iterator[tuple[Any, ...]]:
        """Parked jobs that may start now, because a limit was raised; they count as running."""
        for key in list(self._parked):
            while (row := self.next_of(key)) is not None:
                yield row

    def refilled(self) -> Iterator[tuple[Any, ...]]:
        """Parked jobs whose key has a token again; they count as running."""
        now = self._now()
        while self._refilled and self._refilled[0][0] <= now:
            _, key = heapq.heappop(self._refilled)
            row = self.next_of(key)
            if row is not None:
                yield row

    def next_refill_at(self) -> float | None:
        """When some parked job may have a token (monotonic), or None: nobody waits for one."""
        while self._refilled and self._refilled[0][1] not in self._parked:
            heapq.heappop(self._refilled)
        return self._refilled[0][0] if self._refilled else None

    def held_elsewhere(self, keys: dict[str, int]) -> list[str]:
        """Sets how many jobs of each key other shards still run; returns keys that have room now."""
        before, self._elsewhere = self._elsewhere, keys
        return [key for key, count in before.items() if keys.get(key, 0) < count]

    def parked_rows(self) -> Iterator[tuple[Any, ...]]:
        """All parked jobs."""
        return itertools.chain.from_iterable(self._parked.values())

    def to_leave_out(self, position: Callable[[int], Position]) -> list[str]:
        """The keys that the next fetch must leave out: none while there is room to park.

        `position` says how far a slot has been read: from there on jobs of the key will have been passed over.
        """
        if self.parked < PARKED_MAX:
            return []
        for key, parked in self._parked.items():
            if key not in self._left_out:
                slot = parked[0][Row.SLOT]
                self._left_out[key] = (slot, position(slot))
        return list(self._parked)

    def to_read_again(self) -> list[tuple[int, Position]]:
        """Slots, and from where they are to be read anew, of left-out keys that have no parked job any more."""
        if not self._left_out:
            return []
        return [self._left_out.pop(key) for key in list(self._left_out) if key not in self._parked]

    def drop_parked(self, slots: set[int] | None = None) -> list[tuple[Any, ...]]:
        """Removes the parked jobs of `slots` (None: of all), which this shard gives up, and returns them."""
        dropped = self._drop(lambda row: slots is None or row[Row.SLOT] in slots)
        for row in dropped:
            self._left_out.pop(row[Row.SERIAL_KEY], None)
        return dropped

    def drop_jobs(self, ids: set[int]) -> list[tuple[Any, ...]]:
        """Removes these jobs where they are parked, and returns them."""
        return self._drop(lambda row: row[Row.ID] in ids)

    def _drop(self, chosen: Callable[[tuple[Any, ...]], bool]) -> list[tuple[Any, ...]]:
        dropped: list[tuple[Any, ...]] = []
        for key in list(self._parked):
            rows = self._parked[key]
            kept = deque(row for row in rows if not chosen(row))
            if len(kept) == len(rows):
                continue
            dropped += [row for row in rows if chosen(row)]
            if kept:
                self._parked[key] = kept
            else:
                del self._parked[key]
        self.parked -= len(dropped)
        return dropped

    def _may_start(self, key: str, slot: int) -> bool:
        """Whether there is room and a token, which is taken."""
        if self._running.get(key, 0) + self._elsewhere.get(key, 0) >= self.max_per_key:
            return False
        if self._rate is None:
            return True
        if self._bucket(key, slot).take(self._now()):
            return True
        self._await_token(key, slot)
        return False

    def _await_token(self, key: str, slot: int) -> None:
        heapq.heappush(self._refilled, (self._bucket(key, slot).next_at(self._now()), key))

    def _bucket(self, key: str, slot: int) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            rate, now = self._rate, self._now()
            assert rate is not None  # noqa: S101 - callers have looked
            if len(self._buckets) >= BUCKETS_MAX:
                self._buckets = {name: other for name, other in self._buckets.items() if not other.is_full(now)}
            bucket = Bucket(rate.per_second, rate.burst_jobs, self._owned_since.get(slot, now))
            self._buckets[key] = bucket
        return bucket
