"""The live stacks of a worker's or keeper's threads, asked for from outside, also while its loop or the GIL is blocked.

`offer_stack` lets each thread write its own stack, at SIGUSR2, into a memory file that only this process has; its name says
that the signal is understood. `stacks` finds that file in /proc, sends the signal to one thread after the other, and reads.
A process without the file gets no signal: SIGUSR2 would end it.

Each thread writes only its own stack, because that cannot change under it. `faulthandler` can write those of all threads at
once, but reads what other threads are changing: a process with three busy ones died of SIGSEGV at the 25th signal. The way
here took 2.6 million signals without harm (both with CPython 3.11.7).

What a thread was waiting in goes on: Python, libpq and uvloop repeat a call that a signal has interrupted. Code in C that
sleeps and takes EINTR for its end can wake too early.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

from wqcore import clock
from wqcore.errors import NotInspectable

_NAME = "wqcore-stack"
_LINK = f"/memfd:{_NAME} (deleted)"
_SIGNAL = signal.SIGUSR2
_BIT = 1 << (_SIGNAL - 1)
ANSWER_LIMIT_S = 2.0
"""How long one thread may take; it needs microseconds, unless the machine gives it no processor."""
QUIET_LOOKS = 4
"""Between the delivery of a signal and the start of its handler, the kernel shows for a moment neither."""
_LOOK_S = 0.001
_FORKED_IN = "wqcore/proc/children.py"
"""Calls from there on are the master's, before the fork, and the same in every child."""


class Stack(NamedTuple):
    """A thread's stack: innermost call first, as `faulthandler` writes it."""

    thread: int
    """The kernel's id; that of the main thread is the pid."""
    lines: list[str]
    """Empty for a thread that runs no Python."""
    silent: bool
    """It gave no answer: it blocks signals, or gets no processor."""


def offer_stack() -> None:
    """Makes this process answer `stacks`; called after the fork."""
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    # appended, so that a reader can empty the file
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    faulthandler.register(_SIGNAL, file=descriptor, all_threads=False, chain=False)


def stacks(pid: int) -> list[Stack]:
    """The stacks of all threads of a process of wqcore on this host, the main thread's first. Raises NotInspectable."""
    try:
        alive = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError, OSError):
        raise NotInspectable(f"there is no process {pid} on this host; `wqcore workers list` shows them") from None
    try:
        with _file_of(pid) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two that ask at the same time would read each other's answers
            _require_understanding(pid)
            found = [_ask(pid, thread, file, alive) for thread in _threads(pid)]
            return sorted(found, key=lambda stack: stack.thread != pid)
    finally:
        os.close(alive)


@contextmanager
def _file_of(pid: int) -> Iterator[int]:
    """The memory file of the process, opened anew."""
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            try:
                if os.readlink(f"{folder}/{name}") != _LINK:
                    continue
                file = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                yield file
            finally:
                os.close(file)
            return
    except PermissionError:
        raise NotInspectable(
            f"process {pid} belongs to another user: ask as that user, or as root, in the same container"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    raise NotInspectable(
        f"process {pid} is no worker or keeper of wqcore, and a signal could end it; `wqcore workers list` shows the pids"
    )


def _require_understanding(pid: int) -> None:
    """A worker's copy that executed another program, or a handler that took the signal back, must not get it."""
    status = _status(f"/proc/{pid}/status")
    if not int(status["SigCgt"], 16) & _BIT:
        raise NotInspectable(
            f"process {pid} does not handle SIGUSR2, which would end it: something in it has taken that back"
        )
    if status["State"][0] in "Tt":
        raise NotInspectable(
            f"process {pid} is suspended (SIGSTOP, or a debugger), so it cannot answer: `kill -CONT {pid}` lets it go on"
        )


def _ask(pid: int, thread: int, file: int, alive: int) -> Stack:
    os.ftruncate(file, 0)
    if select.select([alive], [], [], 0)[0]:
        raise _gone(pid)
    if _busy(pid, thread) or not _send(pid, thread):
        return Stack(thread, [], silent=_busy(pid, thread))
    until = clock.monotonic() + ANSWER_LIMIT_S
    quiet = 0
    while quiet < (QUIET_LOOKS if os.fstat(file).st_size else 5 * QUIET_LOOKS) and clock.monotonic() < until:
        clock.sleep(_LOOK_S)
        quiet = 0 if _busy(pid, thread) else quiet + 1
    text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
    os.ftruncate(file, 0)
    calls = [line for line in text.splitlines() if line.startswith("  ")]
    return Stack(thread, list(takewhile(lambda line: _FORKED_IN not in line, calls)), silent=quiet == 0)


def _busy(pid: int, thread: int) -> bool:
    """The signal is pending, or blocked, as it is while its handler runs; False for a thread that has ended."""
    try:
        status = _status(f"/proc/{pid}/task/{thread}/status")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool((int(status["SigPnd"], 16) | int(status["SigBlk"], 16)) & _BIT)


def _status(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        raise _gone(pid) from None


def _send(pid: int, thread: int) -> bool:
    """Sends the signal to one thread; False when it has ended. Python's `pthread_kill` knows its own threads only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.tgkill(pid, thread, int(_SIGNAL)) == 0:
        return True
    if ctypes.get_errno() == errno.ESRCH:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _gone(pid: int) -> NotInspectable:
    return NotInspectable(f"process {pid} has just ended")
