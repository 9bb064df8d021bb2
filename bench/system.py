"""A queue under measure: its program is started, fed and watched as peers/README.md says.

Every process that is started here is ended here, by its pid, also when a round fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from .errors import BenchError
from .probes import Probes

COMMAND_LIMIT_S = 300.0
END_LIMIT_S = 30.0
POLL_S = 0.005


class Described(msgspec.Struct, frozen=True):
    """What a program says of its queue: peers/README.md."""

    title: str
    version: str
    runtime: str
    settings: str
    table: str
    unfinished: str
    any_unfinished: str
    keeps_finished: bool = False
    forks: bool = False
    processes: int = 2
    concurrency: int = 100
    jobs_scale: float = 1.0
    feed_options: tuple[str, ...] = ()


class System:
    """One queue, with one way of keeping finished jobs."""

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self._command = command
        self._env = env or {}
        self.described = msgspec.json.decode(self._run("", "describe"), type=Described)

    def setup(self, dsn: str) -> None:
        """Makes the queue's tables."""
        self._run(dsn, "setup")

    def single(self, dsn: str, count: int) -> float:
        """Seconds for `count` inserts, each awaited before the next."""
        return float(msgspec.json.decode(self._run(dsn, "single", str(count)))["seconds"])

    def paced(self, dsn: str, count: int, every_ms: float) -> list[int]:
        """When the insert of job 0, 1, … returned, in ns."""
        found = msgspec.json.decode(self._run(dsn, "paced", str(count), f"{every_ms:g}"))
        return [int(at) for at in found["returned_ns"]]

    @contextmanager
    def feeder(self, dsn: str) -> Iterator[Feeder]:
        """The program that inserts in bulk."""
        with self._started(dsn, ["feed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            feeder = Feeder(self, process)
            yield feeder
            feeder.end()

    @contextmanager
    def working(self, dsn: str, *, processes: int = 0, concurrency: int = 0, wait_ms: float = 0.0) -> Iterator[Workers]:
        """Its workers, ended by SIGTERM afterwards; 0: as the program describes itself."""
        processes = processes or self.described.processes
        concurrency = concurrency or self.described.concurrency
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            env = {"BENCH_FOLDER": str(folder), "BENCH_PROCESSES": str(processes)}
            if wait_ms:
                env["BENCH_WAIT_MS"] = f"{wait_ms:g}"
            started = [
                stack.enter_context(self._started(dsn, ["work", str(concurrency)], env=env))
                for _ in range(1 if self.described.forks else processes)
            ]
            yield Workers(self, started, Probes(folder))

    def _run(self, dsn: str, *arguments: str) -> bytes:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environ(dsn),
            capture_output=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{self.name} {' '.join(arguments)}: exit code {done.returncode}: {_tail(done.stderr)}")
        return done.stdout

    @contextmanager
    def _started(
        self, dsn: str, arguments: list[str], *, env: dict[str, str] | None = None, **pipes: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*self._command, *arguments], env=self._environ(dsn) | (env or {}), stderr=errors, **pipes
            )
            try:
                yield process
            except BenchError as error:
                errors.seek(0)
                raise BenchError(f"{error}: {_tail(errors.read())}") from error
            finally:
                _end(process)

    def _environ(self, dsn: str) -> dict[str, str]:
        return os.environ | self._env | {"BENCH_DSN": dsn}


class Feeder:
    """A running `feed`."""

    def __init__(self, system: System, process: subprocess.Popen[bytes]) -> None:
        self._system = system
        self._process = process
        self._line()

    def insert(self, count: int, **options: float) -> float:
        """Inserts jobs; returns the seconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d %s\n" % (count, msgspec.json.encode(options)))
        self._process.stdin.flush()
        return float(msgspec.json.decode(self._line())["seconds"])

    def cpu_s(self) -> float:
        """CPU seconds used until now."""
        return _cpu_s([self._process])

    def end(self) -> None:
        """Tells it that nothing more comes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(END_LIMIT_S)

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(END_LIMIT_S)
            raise BenchError(f"{self._system.name} feed ended with exit code {self._process.returncode}")
        return line


class Workers:
    """Running workers."""

    def __init__(self, system: System, processes: list[subprocess.Popen[bytes]], probes: Probes) -> None:
        self._system = system
        self._processes = processes
        self.probes = probes

    def cpu_s(self) -> float:
        """CPU seconds that they and their children have used until now."""
        return _cpu_s(self._processes)

    def entered(self, count: int, limit_s: float) -> dict[int, int]:
        """The timed job's number → when its handler was entered, in ns, once `count` of them were. Raises as `until`."""
        found: dict[int, int] = {}

        def all_of_them() -> bool:
            found.update(self.probes.entered())
            return len(found) >= count

        self.until(all_of_them, limit_s)
        return found

    def until(self, condition: Callable[[], object], limit_s: float) -> None:
        """Waits for a condition. Raises BenchError when a worker ends before, or after `limit_s`."""
        end = time.monotonic() + limit_s
        while not condition():
            for process in self._processes:
                if process.poll() is not None:
                    raise BenchError(f"a worker of {self._system.name} ended with exit code {process.returncode}")
            if time.monotonic() > end:
                raise BenchError(f"{self._system.name} was not done within {limit_s:g} s")
            time.sleep(POLL_S)


def _cpu_s(processes: list[subprocess.Popen[bytes]]) -> float:
    total = 0.0
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                total += sum(one.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BenchError(f"{process.args!r} did not end within {END_LIMIT_S:g} s of SIGTERM") from None


def _tail(text: bytes) -> str:
    return text.decode(errors="replace").strip()[-1500:]
