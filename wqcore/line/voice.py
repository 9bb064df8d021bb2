"""What is heard of a kind's jobs: which of their lines are logged, and which are kept with the job, within bounds.

A sample chooses jobs, not lines: by the job's id, so all lines of a job below WARNING come or stay away together, in all
attempts and on every host. Lines at WARNING and above, such as those of failures, are never left out by it.

Kept lines are in memory until the run's outcome is written, and go with it: a worker that dies takes them with it.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from wqcore.line.settle import clean, frames_of, text_of
from wqcore.settings import Logging

SHARES = 1 << 32
SPREAD = 0x9E3779B1
"""2³² divided by the golden ratio: ids that follow each other fall evenly over the shares."""
LINE_BYTES = 120
"""What a kept line takes beside its text."""


class Voice:
    """What is heard of one kind, one look away each."""

    __slots__ = ("announced_below", "heard_below", "keep_bytes_max", "keep_lines", "level")

    def __init__(self, settings: Logging) -> None:
        self.level: int = logging.getLevelNamesMapping()[settings.level.upper()]
        self.heard_below = math.ceil(settings.sample * SHARES)
        announces = settings.tasks == "all" and self.level <= logging.INFO
        self.announced_below = self.heard_below if announces else 0
        """"Task started" and "Task completed" are logged for jobs whose share is below this."""
        self.keep_lines = settings.keep_lines
        self.keep_bytes_max = settings.keep_bytes_max

    def asks(self) -> bool:
        """Whether anything has to be done for each job of the kind."""
        return bool(self.announced_below or self.keep_lines or self.heard_below < SHARES)

    def announces(self, job_id: int) -> bool:
        """Whether it is logged that the job starts and completes."""
        return share_of(job_id) < self.announced_below

    def hears(self, job_id: int, level: int) -> bool:
        """Whether a line of this job is logged."""
        return level >= self.level and (level >= logging.WARNING or share_of(job_id) < self.heard_below)


def share_of(job_id: int) -> int:
    """Where a job lies in 0 … 2³²: those below `sample` of that are in the sample."""
    return job_id * SPREAD % SHARES


class Kept:
    """The newest lines of one run, at most so many, of at most so many bytes."""

    __slots__ = ("_bytes", "_bytes_max", "_dropped", "_lines", "_lines_max")

    def __init__(self, lines_max: int, bytes_max: int) -> None:
        self._lines: list[tuple[int, dict[str, Any]]] = []
        self._bytes = self._dropped = 0
        self._lines_max, self._bytes_max = lines_max, bytes_max

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, record: logging.LogRecord) -> None:
        """Keeps a line; older ones make room. Not for two threads at a time."""
        text_max = self._bytes_max - LINE_BYTES
        message = _cut(clean(record.getMessage()), text_max)
        size = LINE_BYTES + len(message.encode())
        line: dict[str, Any] = {
            "at": dt.datetime.fromtimestamp(record.created, dt.UTC),
            "level": record.levelname.lower(),
            "logger": clean(record.name),
            "message": message,
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            shown = "\n".join([*frames_of(error), f"{type(error).__qualname__}: {text_of(error)}"])
            line["exception"] = _cut(clean(shown), self._bytes_max - size)
            size += len(line["exception"].encode())
        self._lines.append((size, line))
        self._bytes += size
        while len(self._lines) > self._lines_max or self._bytes > self._bytes_max:
            self._bytes -= self._lines.pop(0)[0]
            self._dropped += 1

    def lines(self) -> list[Mapping[str, Any]]:
        """The lines as the job keeps them, the oldest first; the first says how many were dropped, if any were."""
        found: list[Mapping[str, Any]] = [line for _, line in self._lines[:]]
        if self._dropped and found:
            told = f"{self._dropped} earlier lines were not kept (logging.keep_lines, logging.keep_bytes_max)"
            found.insert(0, {"at": found[0]["at"], "level": "info", "logger": "wqcore.task", "message": told})
        return found

    def json(self) -> str:
        """The same as JSON."""
        return msgspec.json.encode(self.lines()).decode()


def _cut(text: str, bytes_max: int) -> str:
    """The beginning of a text that is too long for all that is kept."""
    data = text.encode()
    return text if len(data) <= bytes_max else data[:bytes_max].decode(errors="ignore")
