"""Starts and ends the demo's processes; each is known by its pid, and at the end none is left.

Children get a session of their own, so that Ctrl-C reaches only the demo, which ends them in order. Should the demo
itself be killed, the kernel sends all of them SIGTERM; PostgreSQL stays until the next demo takes it over.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


class Service:
    """A program that prints `{"port": …}` as its first line once it listens."""

    def __init__(
        self, name: str, command: list[str], log: Path, *, variables: dict[str, str] | None = None, cwd: Path = PROJECT
    ) -> None:
        self._name = name
        with log.open("wb") as log_file:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment() | (variables or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=_terminate_with_parent,
            )
        self._log = log
        self.port = 0

    def wait_ready(self) -> None:
        """Waits until it listens. Raises DemoError."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise DemoError(f"the {self._name} did not start; its log:\n{tail(self._log)}")
        self.port = int(json.loads(line)["port"])

    def stop(self) -> bool:
        """Ends it; whether SIGTERM was enough."""
        in_time = end(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        return in_time


class Master:
    """wqcore's master, started as a user would, and its children."""

    def __init__(self, config: Path, log: Path) -> None:
        with log.open("wb") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wqcore", "--config", str(config)],
                cwd=PROJECT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=_terminate_with_parent,
            )
        self._log = log
        self._seen: set[psutil.Process] = set()

    def wait_ready(self, workers: int) -> list[int]:
        """Waits until so many worker processes work; their pids. Raises DemoError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            found = self.working()
            if len(found) >= workers:
                return found
            self.check()
            time.sleep(POLL_S)
        raise DemoError(f"the workers did not start within {START_TIMEOUT_S:g} s; their log:\n{tail(self._log)}")

    def check(self) -> None:
        """Raises DemoError when the master has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"the master ended with code {self.process.returncode}; its log:\n{tail(self._log)}")

    def working(self, queue: str = "") -> list[int]:
        """The pids of the worker processes that have started, of one queue or of all."""
        pids = []
        for child in self._children():
            with suppress(psutil.Error, IndexError):
                title = child.cmdline()[0]
                if title.startswith(f"wqcore: worker {queue}") and not title.endswith("starting"):
                    pids.append(child.pid)
        return pids

    def stop(self) -> int | None:
        """Drains and ends the master and whatever it leaves; its exit code, or None when it had to be killed."""
        with suppress(psutil.Error):
            self._children()
        in_time = end(self.process)
        left = [child for child in self._seen if child.is_running()]
        _, left = psutil.wait_procs(left, timeout=2.0)
        for child in left:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(left, timeout=2.0)
        return self.process.returncode if in_time and not left else None

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
            self._seen.update(found)
            return found
        return []


def end(process: subprocess.Popen[bytes]) -> bool:
    """SIGTERM, then SIGKILL if that takes too long; whether SIGTERM was enough."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `condition` became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:]) or "(empty)"


def environment() -> dict[str, str]:
    """Ours, without settings of another wqcore."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WQCORE_")}


def _terminate_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def signals_held() -> Iterator[None]:
    """Delays Ctrl-C and its like to the end of the block: half a start or half a clean-up would leave processes."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda caught, frame: came.append(caught)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            # also in place of an error of the block: Ctrl-C reaches initdb and pg_ctl too, and ends them
            raise KeyboardInterrupt
