"""Says how many jobs a worker process has handled, and when the few that are timed entered their handler.

A handler calls `count(id)`. The files are README.md's: `PID.count` has a line `time count` for the first job at once,
then one each 20 ms while there are more; `PID.entered` has a line `number time` for each number below 2^40. A line is one
write to a descriptor without a buffer, so a process that ends by `os._exit` or SIGKILL loses the last 20 ms at most, and
one that lives 20 ms after its last job loses nothing. A program that knows its end calls `flush`.

Importing this does nothing that a fork would break (no file, thread or loop): a master may load it before it forks.
Only the thread of the running event loop may count.
"""

from __future__ import annotations

import asyncio
import os
import time

FLUSH_S = 0.02
TIMED_BELOW = 1 << 40
"""Jobs with a smaller number have their entry written down: `single` and `paced` insert few, `feed` many."""

_ID = "1b4e28ba-2fa1-11d2-883f-"

_FED_FROM_ID = f"{_ID}{TIMED_BELOW:012x}"
"""Ids sort as their numbers do, and comparing them costs a job less than reading the number."""

_jobs = 0
_written = 0
_entered: list[tuple[int, int]] = []
_timer: asyncio.TimerHandle | None = None
_files: dict[str, int] = {}


def job_id(number: int) -> str:
    """The id that the job of this number carries."""
    return f"{_ID}{number:012x}"


def number_of(id_: str) -> int:
    """The number of the job that carries this id."""
    return int(id_[-12:], 16)


def count(id_: str) -> None:
    """Counts one job, by the id that it carries, at the start of its handler."""
    global _jobs, _timer
    _jobs += 1
    if id_ < _FED_FROM_ID:
        _entered.append((number_of(id_), time.monotonic_ns()))
    if _timer is None:
        if not _written:
            flush()
        _timer = asyncio.get_running_loop().call_later(FLUSH_S, _tick)


def flush() -> None:
    """Writes what is new."""
    global _written
    if _jobs == _written:
        return
    _write("count", f"{time.monotonic_ns()} {_jobs}\n")
    _written = _jobs
    if _entered:
        _write("entered", "".join(f"{number} {entered_ns}\n" for number, entered_ns in _entered))
        _entered.clear()


def _tick() -> None:
    # Idle, the timer stops: a worker that waits for jobs must not be woken by its measurement.
    global _timer
    _timer = asyncio.get_running_loop().call_later(FLUSH_S, _tick) if _jobs > _written else None
    flush()


def _write(suffix: str, text: str) -> None:
    if suffix not in _files:
        path = os.path.join(os.environ["BENCH_FOLDER"], f"{os.getpid()}.{suffix}")
        _files[suffix] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    data = text.encode()
    while data:
        data = data[os.write(_files[suffix], data) :]


def _forget() -> None:
    # A child counts from 0 into files of its own pid. Asking for the pid in `count` would cost each job what this does not.
    global _jobs, _written, _timer
    _jobs = _written = 0
    _timer = None
    _entered.clear()
    for file in _files.values():
        os.close(file)
    _files.clear()


os.register_at_fork(after_in_child=_forget)
