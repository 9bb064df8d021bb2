"""An event loop whose clock jumps to the next timer: hours pass in milliseconds, and always in the same order.

Nothing outside the loop can happen, so a loop with nothing to do and no timer would wait for ever: that is Stalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

BEGAN_S = 1000.0


class Stalled(Exception):  # noqa: N818 - a state of the loop
    """Everybody waits, and nothing will ever happen."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Its `time` is the only clock; readers are callbacks by number, with no socket behind them."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._now = BEGAN_S
        self.readers: dict[int, Callable[[], Any]] = {}

    def time(self) -> float:
        """Simulated seconds."""
        return self._now

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self._now * 1e9)

    def select(self, timeout: float | None) -> list[Any]:
        """Instead of waiting, the time passes."""
        if timeout is None:
            raise Stalled
        self._now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a system call, so nobody needs to be woken."""

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        """Whoever has something for `fd` calls this callback."""
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> bool:
        """No more of it."""
        return self.readers.pop(fd, None) is not None
