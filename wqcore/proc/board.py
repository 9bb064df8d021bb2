"""One shared anonymous page range, mapped before the first fork: what the master can know without asking anybody.

Each child owns one *sheet* and is its only writer. A worker writes on it, before a handler's first step, which job runs
on which seat, and keeps it there until the outcome is in the database. After a SIGKILL the master therefore knows which
claimed jobs had started. All values take 64 bits; readers may see a sheet between two writes, never half a value.

Sheet: header (`_HEADER` words), then four words a seat (attempt, kind number, start, job id), then a ring of
(attempt, job id) for runs that have ended but are not acknowledged yet, then the names of the kinds as JSON.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

_HEADER = 16
_SEAT_WORDS = 4
RING_JOBS_MAX = 16384
"""A worker holds at most its seats, its prefetch (4 batches) and one batch of due jobs; far below this."""
_NAMES_WORDS = 1024
_SEAT_JOB = 3
_NEVER = 1 << 62
"""A tail beyond every head."""
_SEAT, _ENDED = struct.Struct("qqdq"), struct.Struct("qq")
_pack_seat: Callable[..., None] = _SEAT.pack_into
_pack_ended: Callable[..., None] = _ENDED.pack_into
"""Written in this order, word by word, the job's id last: one call takes half of the time of an index a word."""

FREE, BOOT, WORKING, DRAINING = range(4)
STATES = ("free", "starting", "working", "draining")
"""The same for people."""

_STATE, _TICK, _SHARD, _RUNNING, _COMPLETED, _FAILED, _HEAD, _TAIL, _NAMES, _ENDED_BY_ITSELF, _MEMORY, _PID = range(12)


class RunningJob(NamedTuple):
    """A job as the board shows it."""

    id: int
    attempt: int
    """The attempt number before this run (0 on the first)."""
    kind: str
    began: float
    """Monotonic seconds."""


class Sheet:
    """One child's part of the board."""

    def __init__(self, words: memoryview, seats: int) -> None:
        self._words = words
        self._bytes = words.cast("B")
        self._head = 0
        self.seats = seats
        self._ring = _HEADER + seats * _SEAT_WORDS
        self._ring_at = 8 * self._ring
        self._seat_job = [_HEADER + seat * _SEAT_WORDS + _SEAT_JOB for seat in range(seats)]
        self._seat_at = [8 * (_HEADER + seat * _SEAT_WORDS) for seat in range(seats)]
        self._names = self._ring + 2 * RING_JOBS_MAX

    # --- written by the child ---------------------------------------------------------------------------------------

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began: float) -> None:
        """A job is about to run on a seat, at the monotonic time `began`."""
        _pack_seat(self._bytes, self._seat_at[seat], attempt, kind, began, job_id)

    def finished(self, seat: int, job_id: int, attempt: int) -> None:
        """The run on a seat has ended; it counts as started until it is acknowledged."""
        head = self._head
        _pack_ended(self._bytes, self._ring_at + 16 * (head % RING_JOBS_MAX), attempt, job_id)
        self._head = self._words[_HEAD] = head + 1
        self._words[self._seat_job[seat]] = 0

    def nothing_started(self) -> None:
        """The worker is about to die, and its jobs should not be charged for it; nor are those that end until then."""
        words = self._words
        for at in range(_HEADER, _HEADER + self.seats * _SEAT_WORDS, _SEAT_WORDS):
            words[at + _SEAT_JOB] = 0
        words[_TAIL] = _NEVER

    def mark(self) -> int:
        """The position up to which runs have ended."""
        return self._words[_HEAD]

    def acknowledged(self, mark: int) -> None:
        """The outcomes of all runs that had ended at `mark` are in the database."""
        self._words[_TAIL] = mark

    def totals(self, running: int, completed: int, failed: int) -> None:
        """Counters for the title and for `status`."""
        words = self._words
        words[_RUNNING], words[_COMPLETED], words[_FAILED] = running, completed, failed

    def memory(self, own_bytes: int) -> None:
        """How much memory of its own the child has held for a while."""
        self._words[_MEMORY] = own_bytes

    def set_pid(self, pid: int) -> None:
        """Which process the child is."""
        self._words[_PID] = pid

    def tick(self, now_ns: int) -> None:
        """The child's loop is alive."""
        self._words[_TICK] = now_ns

    def set_state(self, state: int) -> None:
        """FREE, BOOT, WORKING or DRAINING."""
        self._words[_STATE] = state

    def ended_by_itself(self) -> None:
        """The child has nothing left to be rescued. An exit code alone does not say so: a handler may exit with any."""
        self._words[_ENDED_BY_ITSELF] = 1

    def set_kinds(self, names: list[str]) -> None:
        """The names behind the kind numbers; what does not fit is shown by number."""
        while (data := json.dumps(names).encode()) and len(data) > _NAMES_WORDS * 8:
            names = names[:-1]
        self._bytes[self._names * 8 : self._names * 8 + len(data)] = data
        self._words[_NAMES] = len(data)

    # --- written by the master, before the fork -----------------------------------------------------------------------

    def assign(self, shard: int, now_ns: int) -> None:
        """Makes the sheet ready for a new child."""
        for at in range(_HEADER + self.seats * _SEAT_WORDS):
            self._words[at] = 0
        self._head = 0
        self._words[_SHARD], self._words[_STATE], self._words[_TICK] = shard, BOOT, now_ns

    # --- read by master and keeper ------------------------------------------------------------------------------------

    @property
    def state(self) -> int:
        return self._words[_STATE]

    @property
    def tick_ns(self) -> int:
        return self._words[_TICK]

    @property
    def shard(self) -> int:
        return self._words[_SHARD]

    @property
    def has_ended_by_itself(self) -> bool:
        return bool(self._words[_ENDED_BY_ITSELF])

    @property
    def memory_bytes(self) -> int:
        """0 while nobody has measured."""
        return self._words[_MEMORY]

    @property
    def pid(self) -> int:
        """0 while it has not said so."""
        return self._words[_PID]

    @property
    def completed(self) -> int:
        return self._words[_COMPLETED]

    @property
    def failed(self) -> int:
        return self._words[_FAILED]

    def running(self) -> list[RunningJob]:
        """The jobs on the seats."""
        names = self._kind_names()
        found = []
        for seat in range(self.seats):
            attempt, kind, began, job_id = _SEAT.unpack_from(self._bytes, 8 * (_HEADER + seat * _SEAT_WORDS))
            if job_id:
                found.append(RunningJob(job_id, attempt, names[kind] if kind < len(names) else f"#{kind}", began))
        return found

    def started_jobs(self) -> list[tuple[int, int]]:
        """(id, attempt) of every job that started and is not acknowledged."""
        head, tail = self._words[_HEAD], self._words[_TAIL]
        jobs = {job.id: job.attempt for job in self.running()}
        for position in range(max(tail, head - RING_JOBS_MAX), head):
            at = self._ring + 2 * (position % RING_JOBS_MAX)
            jobs.setdefault(self._words[at + 1], self._words[at])
        return list(jobs.items())

    def _kind_names(self) -> list[str]:
        size = self._words[_NAMES]
        if not size:
            return []
        raw = bytes(self._bytes[self._names * 8 : self._names * 8 + size])
        names: list[str] = json.loads(raw)
        return names


def instead_of_writing(act: Callable[[], None]) -> None:
    """Makes every further write of a run in this process call `act`, which must not return."""
    global _pack_seat, _pack_ended
    _pack_seat = _pack_ended = lambda *_: act()


def words_of_sheet(seats: int) -> int:
    """How many 64-bit words a sheet with that many seats takes."""
    return _HEADER + seats * _SEAT_WORDS + 2 * RING_JOBS_MAX + _NAMES_WORDS


class Board:
    """The shared pages: the master's own tick and a sheet for each child. Untouched pages cost no memory."""

    def __init__(self, seats_of_sheets: list[int]) -> None:
        total = 1 + sum(words_of_sheet(seats) for seats in seats_of_sheets)
        self._map = mmap.mmap(-1, total * 8)
        words = memoryview(self._map).cast("q")
        self._tick = words[:1]
        self.sheets: list[Sheet] = []
        at = 1
        for seats in seats_of_sheets:
            size = words_of_sheet(seats)
            self.sheets.append(Sheet(words[at : at + size], seats))
            at += size

    def tick(self, now_ns: int) -> None:
        """The master is alive."""
        self._tick[0] = now_ns

    @property
    def tick_ns(self) -> int:
        """When the master last said so."""
        return self._tick[0]
