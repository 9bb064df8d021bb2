"""At most one job of a serial key runs at a time: a decision in memory, because one shard sees all jobs of a key.

Jobs whose key is busy are parked in the order of arrival. Beyond `PARKED_MAX` the fetch is told to leave busy keys out;
a key that was left out is read again from its slot's head once its parked jobs are gone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

from wqcore.job import Row

PARKED_MAX = 1000


class Keys:
    """The busy keys of one shard and the jobs parked behind them. Pure."""

    def __init__(self) -> None:
        self.busy: set[str] = set()
        self.parked = 0
        self._waiting: dict[str, deque[tuple[Any, ...]]] = {}
        self._left_out: dict[str, int] = {}

    def take(self, row: tuple[Any, ...]) -> bool:
        """True when the job may start now; else it was parked."""
        key = row[Row.SERIAL_KEY]
        if key not in self.busy:
            self.busy.add(key)
            return True
        self._waiting.setdefault(key, deque()).append(row)
        self.parked += 1
        return False

    def give_back(self, key: str) -> tuple[Any, ...] | None:
        """The key's job has ended: the next parked job of the key, which now holds it, or None."""
        waiting = self._waiting.get(key)
        if waiting:
            self.parked -= 1
            row = waiting.popleft()
            if not waiting:
                del self._waiting[key]
            return row
        self.busy.discard(key)
        return None

    def parked_rows(self) -> Iterator[tuple[Any, ...]]:
        """All parked jobs."""
        return itertools.chain.from_iterable(self._waiting.values())

    def to_leave_out(self) -> list[str]:
        """The keys that the next fetch must leave out: none while there is room to park."""
        if self.parked < PARKED_MAX:
            return []
        for key in self._waiting:
            self._left_out.setdefault(key, self._waiting[key][0][Row.SLOT])
        return list(self._waiting)

    def to_read_again(self) -> list[int]:
        """Slots whose left-out keys have no parked job any more. Each is returned once."""
        ready = [key for key in self._left_out if key not in self._waiting]
        return sorted({self._left_out.pop(key) for key in ready})

    def drop_parked(self, slots: set[int] | None = None) -> list[tuple[Any, ...]]:
        """Removes the parked jobs of `slots` (None: of all) and returns them."""
        dropped: list[tuple[Any, ...]] = []
        for key in list(self._waiting):
            waiting = self._waiting[key]
            if slots is None or waiting[0][Row.SLOT] in slots:
                dropped += waiting
                del self._waiting[key]
                self._left_out.pop(key, None)
        self.parked -= len(dropped)
        return dropped
