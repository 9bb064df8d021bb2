"""The table of a master's children: forks them, reaps them, and knows what each is and how it ended."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wqcore.proc import signals
from wqcore.proc.board import Sheet

_PR_SET_PDEATHSIG = 1

EXIT_FENCED = 75
"""A worker that found its lease gone; its jobs have been rescued already."""
EXIT_LEFT_THREADS = 76
"""A worker whose `def` handlers outlived its drain: their jobs are free once it is dead, and nothing is charged."""
EXIT_BOOT_FAILED = 70
"""A child that could not start and has said why."""


@dataclass
class Place:
    """A position that the master keeps filled: one process of a queue, or the keeper."""

    name: str
    queue: str | None
    workers: int
    respawn_at: float = 0.0
    quick_deaths: int = 0
    boot_failures: int = 0


@dataclass
class Child:
    """A living child."""

    pid: int
    place: Place
    sheet: Sheet
    sheet_number: int
    started_at: float
    disowned: bool = False
    """It is suspended, and its shard was rescued."""
    relieved: bool = False
    """It is to be replaced; its place counts as empty."""
    leaving_at: float = 0.0
    """When it was told to drain because its replacement works."""
    killed_at: float = 0.0
    why_killed: str | None = None
    pipes: dict[str, int] = field(default_factory=dict)


@dataclass
class Death:
    """How a child ended."""

    child: Child
    status: int

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None when a signal ended it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    def describe(self) -> str:
        """E.g. `worker died (signal 9)`."""
        if self.exit_code == EXIT_LEFT_THREADS:
            return "worker left handlers in threads behind, which ended with it"
        if self.child.why_killed:
            return f"worker killed: {self.child.why_killed}"
        if os.WIFSIGNALED(self.status):
            return f"worker died (signal {os.WTERMSIG(self.status)})"
        return f"worker died (exit code {self.exit_code})"


Entry = Callable[[Any], int]


class Children:
    """Forking and reaping."""

    def __init__(self, master_only_fds: Callable[[], list[int]]) -> None:
        self.by_pid: dict[int, Child] = {}
        self._master_only_fds = master_only_fds

    def fork(self, child: Child, entry: str, argument: object) -> Child:
        """Forks a process that calls `entry` ("package.module:function") with `argument` and exits with its result."""
        sys.stdout.flush()
        sys.stderr.flush()
        master = os.getpid()
        with signals.held_over_a_fork():
            pid = os.fork()
            if pid == 0:
                code = EXIT_BOOT_FAILED
                try:
                    code = self._be_child(master, entry, argument)
                except SystemExit as error:
                    code = error.code if isinstance(error.code, int) else 1
                except BaseException:  # the last frame of a process: whatever it was, it is shown and becomes an exit code
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
        child.pid = pid
        self.by_pid[pid] = child
        return child

    def reap(self) -> list[Death]:
        """The children that have ended, and everyone else's orphans if we are PID 1."""
        deaths: list[Death] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return deaths
            if pid == 0:
                return deaths
            child = self.by_pid.pop(pid, None)
            if child is not None:
                deaths.append(Death(child, status))

    def signal(self, child: Child, number: int) -> None:
        """Sends a signal; a child that has just ended is no error."""
        try:
            os.kill(child.pid, number)
        except ProcessLookupError:
            pass

    def _be_child(self, master: int, entry: str, argument: object) -> int:
        die_with(master)
        signals.restore_in_child()
        for descriptor in self._master_only_fds():
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        gc.enable()
        module, _, function = entry.partition(":")
        run: Entry = getattr(importlib.import_module(module), function)
        return run(argument)


def suspended(pid: int) -> bool:
    """True when the process is stopped (SIGSTOP, a debugger): silent, but not stuck."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def die_with(master: int) -> None:
    """Asks the kernel for SIGKILL when the master dies; it may have died before we could ask."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master:
        os._exit(EXIT_BOOT_FAILED)
