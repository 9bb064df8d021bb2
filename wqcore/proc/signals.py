"""Signals only set flags; whoever owns the process looks at them when it is ready to.

TERM and INT ask for a drain, a second one for a faster drain, a third for leaving at once; QUIT ends immediately. USR1
asks for a drain too, but hastens none that goes on: the keeper passes on what somebody asked for in the database.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1}


class Flags:
    """What signals have asked for, and a descriptor that becomes readable when one arrives."""

    def __init__(self) -> None:
        self.drains = 0
        self.quit = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def install(self) -> None:
        """Takes over TERM, INT, QUIT, USR1 and CHLD; HUP drains too, PIPE is ignored."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_drain)
        signal.signal(signal.SIGQUIT, self._on_quit)
        signal.signal(signal.SIGUSR1, self._on_drain_once)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def fileno(self) -> int:
        return self._read

    def clear(self) -> None:
        """Empties the descriptor."""
        try:
            while os.read(self._read, 512):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Gives the descriptors up, in a child."""
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def _on_drain(self, number: int, frame: FrameType | None) -> None:
        self.drains += 1

    def _on_drain_once(self, number: int, frame: FrameType | None) -> None:
        self.drains = max(self.drains, 1)

    def _on_quit(self, number: int, frame: FrameType | None) -> None:
        self.quit = True


@contextmanager
def held_over_a_fork() -> Iterator[None]:
    """Holds back what asks for an end until parent and child each have handlers of their own.

    A child that got TERM while it still had its master's handlers took it for asked of the master, and worked on until the
    drain's time was over and it was killed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore_in_child() -> None:
    """A child starts with the defaults, but leaves Ctrl-C and hang-ups, which reach the whole group, to its master."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)
