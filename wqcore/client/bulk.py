"""The books of a bulk insert: each job is written once and counted once, and each queue that got some is woken once.

Jobs go through COPY as they come; those with a key are put aside for a statement, since COPY cannot skip or replace. All
is one transaction of the caller's: what fails leaves neither jobs nor notifications behind.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from wqcore.db import wake
from wqcore.db.request import Query, Request
from wqcore.line import copying
from wqcore.line.insert import InsertedMany, KeyedJob, NewJob, columns_of
from wqcore.line.traces import Tracing

PROGRESS_ROWS = 5_000
COPY_LINES = 500
"""Jobs that go into the COPY stream at a time."""
KEYED_ROWS = 500
"""Jobs with a key of a bulk insert that go into one statement, between two COPYs."""

Progress = Callable[[int], None]
Skipped = Callable[[int, int], None]


class Bulk:
    """What a bulk insert has written so far, what waits for its statement, and which notifications it owes."""

    def __init__(self, progress: Progress | None, skipped: Skipped | None, tracing: Tracing | None = None) -> None:
        self.added = 0
        self.counts = {"inserted": 0, "replaced": 0, "skipped": 0}
        self.keyed: list[tuple[int, KeyedJob]] = []
        self._progress = progress
        self._skipped = skipped
        self._position = 0
        self._lines: list[str] = []
        self._wakes: dict[str, set[tuple[int, int]]] = {}
        self._due: set[str] = set()
        self._past: set[str] = set()
        self._span = None if tracing is None else tracing.sending_many()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.end(error)

    def take(self, row: NewJob | KeyedJob) -> bool:
        """Takes a job in; True when there is enough to write: `lines`, or, when it `is_full`, an insertion."""
        self._position += 1
        if self._progress is not None and self._position % PROGRESS_ROWS == 0:
            self._progress(self._position)
        if self._span is not None:
            row = self._span.stamped(row)
        if isinstance(row, KeyedJob):
            self.keyed.append((self._position - 1, row))
            return self.is_full()
        self._lines.append(copying.line(row))
        self._owe(row)
        return len(self._lines) >= COPY_LINES

    def lines(self) -> str:
        """What the COPY stream gets next."""
        text = "".join(self._lines)
        self.added += len(self._lines)
        self._lines.clear()
        return text

    def is_full(self) -> bool:
        """True when the jobs that were put aside should be written."""
        return len(self.keyed) >= KEYED_ROWS

    def insertion(self) -> Request[None]:
        """Writes the jobs that were put aside."""
        batch, self.keyed = sorted(self.keyed, key=lambda item: item[1].order), []
        if not batch:
            return
        jobs = [job for _, job in batch]
        for at, job_id, what in (yield Query("insert_keyed", columns_of(jobs, [None] * len(jobs)))):
            position, item = batch[at - 1]
            self.counts[what] += 1
            if what == "replaced":
                self._due.add(item.job.queue)
            elif what == "inserted":
                self._owe(item.job)
            elif self._skipped is not None:
                self._skipped(position, job_id)

    def result(self) -> InsertedMany:
        counts = self.counts
        return InsertedMany(self.added + counts["inserted"], skipped=counts["skipped"], replaced=counts["replaced"])

    def wakes(self, schema: str) -> Request[None]:
        """Sends the notifications."""
        for queue in self._wakes.keys() | self._due:
            text = wake.payload(self._wakes.get(queue, set()), due=queue in self._due, past=queue in self._past)
            yield Query("notify", {"channel": wake.channel(schema, queue), "payload": text})

    def _owe(self, row: NewJob) -> None:
        if row.run_at is None:
            pairs = self._wakes.get(row.queue)
            if pairs is None:
                pairs = self._wakes[row.queue] = set()
            pairs.add((row.slot, row.priority))
        else:
            self._due.add(row.queue)
            if wake.is_past(row.run_at):
                self._past.add(row.queue)
