"""Which waiting job starts next: by priority, as its serial key, its queue's rate and its past allow.

Jobs wait in tiers, one for each priority; with ageing a job rises by one tier for each `ageing_s` that it has waited. A
job whose key is busy is parked (`keys.py`). Suspects, jobs that a process has died with, wait apart and go first, but
only once nothing that has ended could be charged in their place. All of it is memory: a crash leaves the claim.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from wqcore import clock
from wqcore.job import Row
from wqcore.line.bucket import Bucket
from wqcore.line.keys import Keys
from wqcore.line.ledger import Ledger
from wqcore.line.seat import Seat
from wqcore.settings import Limits, Logging

_DEATHS, _PRIORITY, _SERIAL_KEY = Row.DEATHS, Row.PRIORITY, Row.SERIAL_KEY
"""Globals, because on Python 3.11 each look at an attribute of a class costs a job 25 ns."""


class Waiting(Ledger):
    """The jobs of one shard that have been claimed and wait for a seat."""

    def __init__(self, queue: str, on_change: Callable[[], None], log_settings: Logging) -> None:
        super().__init__(queue, log_settings)
        self.keys = Keys()
        self.bucket: Bucket | None = None
        """The queue's rate, as far as it is this shard's share; None: as fast as it goes."""
        self.ageing_s = 0.0
        self.waiting = 0
        self.running = 0
        self.settling = False
        self._on_change = on_change
        self._tiers: dict[int, deque[tuple[Any, ...]]] = {}
        self._lines: list[deque[tuple[Any, ...]]] = []
        """The tiers, the highest first."""
        self._granted: set[int] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._suspects: deque[tuple[Any, ...]] = deque()
        self._alone: Seat | None = None
        self._idle: list[Seat] = []

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Queues claimed jobs, the highest priority first, and wakes a seat."""
        rank: int | None = None
        append = self._suspects.append
        for row in rows:
            if row[_DEATHS]:
                self._suspects.append(row)
                continue
            own = self._rank(row) if self.ageing_s else row[_PRIORITY]
            if own != rank:
                rank, append = own, self._tier(own).append
            append(row)
        self.waiting += len(rows)
        self._wake_one()

    def _rank(self, row: tuple[Any, ...]) -> int:
        """The priority that a job has now: with ageing, one more for each `ageing_s` that it has waited."""
        priority: int = row[Row.PRIORITY]
        if self.ageing_s:
            since = row[Row.RUN_AT] if row[Row.RUN_AT] is not None else row[Row.CREATED_AT]
            priority += int(max(0.0, self.seconds_since(since)) / self.ageing_s)
        return priority

    def rank_again(self) -> None:
        """Puts the waiting jobs where their age has brought them."""
        rows = [row for line in self._lines for row in line]
        self._tiers.clear()
        self._lines = []
        for row in rows:
            self._tier(self._rank(row)).append(row)

    def _tier(self, priority: int) -> deque[tuple[Any, ...]]:
        """The waiting jobs of one priority."""
        tier = self._tiers.get(priority)
        if tier is None:
            tier = self._tiers[priority] = deque()
            self._lines = [self._tiers[rank] for rank in sorted(self._tiers, reverse=True)]
        return tier

    def give_back(self, slots: set[int] | None = None) -> list[tuple[Any, ...]]:
        """Drops the jobs of `slots` (None: of all) that have not started, and returns them."""
        parked = self.keys.drop_parked(slots)
        return parked + self._drop_waiting(lambda row: slots is None or row[Row.SLOT] in slots)

    def _drop_waiting(self, chosen: Callable[[tuple[Any, ...]], bool]) -> list[tuple[Any, ...]]:
        """Removes jobs that wait for a seat."""
        dropped: list[tuple[Any, ...]] = []
        for waiting in (self._suspects, *self._tiers.values()):
            rows = [row for row in waiting if chosen(row)]
            if rows:
                dropped += rows
                kept = [row for row in waiting if not chosen(row)]
                waiting.clear()
                waiting.extend(kept)
        self.waiting -= len(dropped)
        for row in dropped:
            if row[Row.ID] in self._granted:
                self._granted.discard(row[Row.ID])
                self.pass_on(row[Row.SERIAL_KEY])
        return dropped

    def _next(self) -> tuple[Any, ...] | None:
        """The next job that may start; a job whose serial key is busy is parked on the way."""
        if self._halted or self._alone is not None:
            return None
        bucket = self.bucket
        if bucket is not None and self.waiting and not self._token():
            return None
        if self._suspects and ((suspect := self._next_suspect()) is not None or self._suspects):
            return suspect
        for tier in self._lines:
            while tier:
                row = tier.popleft()
                self.waiting -= 1
                if row[_SERIAL_KEY] is None or self._may_start(row):
                    if bucket is not None:
                        bucket.take(clock.monotonic())
                    return row
        return None

    def _may_start(self, row: tuple[Any, ...]) -> bool:
        """Whether the job's key has room for it; else it is parked."""
        if row[Row.ID] in self._granted:
            self._granted.discard(row[Row.ID])
            return True
        if self.keys.take(row):
            return True
        self._arm_refill()
        if not self.waiting:
            self._on_change()  # all that was fetched is parked, so nobody else will ask for more
        return False

    def _token(self) -> bool:
        """Whether the queue's rate lets another job start; else a timer wakes a seat when it does."""
        assert self.bucket is not None  # noqa: S101 - the caller has looked
        now = clock.monotonic()
        if self.bucket.next_at(now) <= now:
            return True
        self._arm_refill(now)
        return False

    def _arm_refill(self, now: float | None = None) -> None:
        """One timer for the next token of the queue or of a key; none while nobody waits for one.

        With a token there, jobs wait for seats alone: a timer would fire all the time, for nothing.
        """
        if now is None:
            now = clock.monotonic()
        at = self.keys.next_refill_at()
        if self.bucket is not None and self.waiting and (token_at := self.bucket.next_at(now)) > now:
            at = min(token_at, at if at is not None else math.inf)
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        if at is not None:
            self._refill = asyncio.get_running_loop().call_later(max(0.0, at - now) + 0.0005, self._refilled)

    def _refilled(self) -> None:
        self._refill = None
        for row in self.keys.refilled():
            self._let_in(row)
        self._arm_refill()
        self._wake_one()

    def set_limits(self, limits: Limits, bucket: Bucket | None) -> None:
        """Puts limits in force; jobs that they held back and that may start now do."""
        self.bucket = bucket
        self.keys.limit(limits.max_per_key, limits.rate_per_key)
        for row in self.keys.with_room():
            self._let_in(row)
        self._arm_refill()
        self._wake_one()

    def held_elsewhere(self, keys: dict[str, int]) -> None:
        """How many jobs of each key other shards still run, in slots that are ours now."""
        for key in self.keys.held_elsewhere(keys):
            row = self.keys.next_of(key)
            if row is not None:
                self._let_in(row)
        self._wake_one()

    def _let_in(self, row: tuple[Any, ...]) -> None:
        """A parked job may start: it goes to the head of its tier, and its key counts it as running."""
        self._granted.add(row[Row.ID])
        if row[Row.DEATHS]:
            self._suspects.appendleft(row)
        else:
            self._tier(self._rank(row)).appendleft(row)
        self.waiting += 1

    def _next_suspect(self) -> tuple[Any, ...] | None:
        """The next job that a process has died with, once nothing that has ended could be charged in its place.

        None: nothing may start yet; but when that leaves no suspect, all were parked, and others may.
        """
        while self._suspects:
            if self.outcomes or self.settling or (self._suspects[0][Row.DEATHS] > 1 and self.running):
                self._on_change()
                return None
            row = self._suspects.popleft()
            self.waiting -= 1
            if row[Row.SERIAL_KEY] is None or self._may_start(row):
                if self.bucket is not None:
                    self.bucket.take(clock.monotonic())
                return row
        return None

    def has_suspects(self) -> bool:
        """True while outcomes must be written at once, because a suspect waits for that."""
        return bool(self._suspects)

    def settled(self) -> None:
        """Outcomes have been written: whoever waited for that may start."""
        self.settling = False
        if self.waiting:
            self._wake_one()

    def pass_on(self, key: str) -> None:
        """A job of `key` has ended: the next parked one may start."""
        row = self.keys.end(key)
        if row is not None:
            self._let_in(row)
        elif self.keys.parked:
            self._arm_refill()

    def _wake_one(self) -> None:
        while self._idle and self.waiting:
            idle = self._idle.pop().idle
            if idle is not None and not idle.done():
                idle.set_result(None)
                return
