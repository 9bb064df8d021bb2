"""A history is everything that is known of a run: four journals and the end state, all times on one clock.

    clients.jsonl    Said      a client asks for something, and what it was told
    handlers.jsonl   Ran       a run of a job starts, reaches a stage, or ends
    faults.jsonl     Fault     what was done to processes, server and network, and when
    audit.jsonl      Wrote     every row that anybody has written, by a trigger in the database under test
    end.json         End       what is left when all masters have drained

Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share. The database has only the time of day;
`clocks` of the end state says how far the two are apart, and `read` brings the audit onto the monotonic clock.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

CLIENTS, HANDLERS, FAULTS, AUDIT, END = "clients.jsonl", "handlers.jsonl", "faults.jsonl", "audit.jsonl", "end.json"
NEVER = 1 << 63


class Said(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of a client. Each operation has an `invoke` and then one answer; one without an answer counts as `info`."""

    at: int
    op: int
    phase: Literal["invoke", "ok", "fail", "info"]
    """fail: it certainly did not happen. info: it may have happened or not."""
    do: str = "insert"
    token: int = 0
    """The number that the job carries in its args; each insert has another, a repeated one the same."""
    job: int | None = None
    did: str | None = None
    """inserted, replaced or skipped."""
    once: bool = False
    """Inserts with this token were told to make one job at most, however often they are repeated."""


class Ran(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of a handler. `run` is the same for all lines of one run."""

    at: int
    run: str
    phase: Literal["start", "body", "left", "commit", "end"]
    """start and end: of the run on its seat. body and left: of what runs in a thread or for a batch. commit: about to
    commit the transaction in which the job completes."""
    job: int = 0
    attempt: int = 0
    revision: int = 0
    shard: int = 0
    pid: int = 0
    kind: str = ""
    key: str | None = None
    how: str | None = None
    """ok, failed, snoozed, interrupted, fenced, cancelled or discarded: how the run ended."""


class Wrote(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row that was written, in the order of `seq`, which for one row is the order of the writes."""

    seq: int
    at: int
    xid: int
    by: str
    """The application name of the connection: a shard's has its id, the keeper's and the client's are theirs."""
    table: Literal["job", "history", "shard", "claim"]
    op: Literal["insert", "update", "delete"]
    job: int | None = None
    shard: int | None = None
    revision: int | None = None
    attempt: int | None = None
    deaths: int | None = None
    was_revision: int | None = None
    was_attempt: int | None = None
    was_deaths: int | None = None
    outcome: str | None = None
    token: int | None = None
    ids: list[int] | None = None


class Fault(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something that was done on purpose, from `at` to `until`. No pids: it may have touched everybody."""

    at: int
    until: int
    what: str
    pids: list[int] = []


class Finished(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row of the table history."""

    job: int
    kind: str
    outcome: str
    attempt: int
    max_attempts: int
    deaths: int
    shard: int | None = None
    token: int | None = None


class Waiting(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A row that is still in the table job."""

    job: int
    kind: str
    attempt: int
    token: int | None = None


class End(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is left when faults have been healed, the queues were given time to drain, and the masters have ended."""

    finished: list[Finished] = []
    waiting: list[Waiting] = []
    effects: list[int] = []
    """Jobs whose effect was written in the transaction that completed them."""
    effect_kinds: list[str] = []
    rows_left: dict[str, int] = {}
    """Rows that should be gone with the masters: leases, journals, owned slots, heartbeats, requests."""
    idle_transactions: list[str] = []
    orphans: list[str] = []
    problems: list[str] = []
    """Masters that ended otherwise than by a drain, and errors in their logs that nobody caught."""
    dead_after_s: float = 7.0
    deaths_max: int = 3
    clocks: list[tuple[int, int]] = []
    """(monotonic, time of day) in nanoseconds, read together now and then."""


class Run(msgspec.Struct, kw_only=True):
    """All lines of one run. A run whose process died has no end, so it counts as never ended."""

    job: int
    attempt: int
    revision: int
    shard: int
    pid: int
    kind: str
    key: str | None
    start: int
    end: int = NEVER
    how: str | None = None
    last: int = 0
    commits: bool = False

    def __str__(self) -> str:
        return f"attempt {self.attempt} on shard {self.shard} (pid {self.pid})"


class History:
    """The journals and what follows from them. Everything here is derived, nothing is judged."""

    def __init__(self, *, said: list[Said], ran: list[Ran], wrote: list[Wrote], faults: list[Fault], end: End) -> None:
        self.said = said
        self.ran = ran
        self.wrote = sorted(wrote, key=lambda line: line.seq)
        self.faults = faults
        self.end = end

    @cached_property
    def runs(self) -> list[Run]:
        """Every run, in the order of their starts."""
        found: dict[str, Run] = {}
        for line in self.ran:
            if line.phase == "start":
                found[line.run] = Run(
                    job=line.job, attempt=line.attempt, revision=line.revision, shard=line.shard, pid=line.pid,
                    kind=line.kind, key=line.key, start=line.at, last=line.at,
                )  # fmt: skip
        for line in self.ran:
            run = found[line.run]
            run.last = max(run.last, line.at)
            if line.phase == "end":
                run.how = line.how
            elif line.phase == "commit":
                run.commits = True
        # a thread or a batch may outlive its seat by mistake: then the run has ended only when both have
        bodies = {line.run for line in self.ran if line.phase == "body"} - {
            line.run for line in self.ran if line.phase == "left"
        }
        for name, run in found.items():
            if run.how is not None and name not in bodies:
                run.end = run.last
        return sorted(found.values(), key=lambda run: run.start)

    @cached_property
    def runs_of(self) -> dict[int, list[Run]]:
        """The runs of each job, in the order of their starts."""
        found: dict[int, list[Run]] = defaultdict(list)
        for run in self.runs:
            found[run.job].append(run)
        return found

    @cached_property
    def lost_at(self) -> dict[int, int]:
        """Shard → when its lease was taken away or given up."""
        return {
            line.shard: line.at
            for line in self.wrote
            if line.table == "shard" and line.op == "delete" and line.shard is not None
        }

    @cached_property
    def ends(self) -> list[tuple[Wrote, Wrote | None]]:
        """Each terminal record, with the deletion of the job's row in the same transaction."""
        deleted = {(line.xid, line.job): line for line in self.wrote if line.table == "job" and line.op == "delete"}
        return [
            (line, deleted.get((line.xid, line.job)))
            for line in self.wrote
            if line.table == "history" and line.op == "insert"
        ]

    @cached_property
    def withdrawn(self) -> set[int]:
        """Jobs that were inserted and deleted in one transaction without a record: others never saw them.

        An insert that must be unique among finished jobs too is made first and looked at then.
        """
        inserted = {(line.xid, line.job) for line in self.wrote if line.table == "job" and line.op == "insert"}
        recorded = {record.job for record, _ in self.ends}
        deleted = ((line.xid, line.job) for line in self.wrote if line.table == "job" and line.op == "delete")
        return {job for xid, job in deleted if job is not None and (xid, job) in inserted and job not in recorded}

    @cached_property
    def rescued_in(self) -> dict[int, list[int]]:
        """Transaction → the shards whose lease a keeper took away in it."""
        found: dict[int, list[int]] = defaultdict(list)
        for line in self.wrote:
            if line.table == "shard" and line.op == "delete" and line.by == KEEPER and line.shard is not None:
                found[line.xid].append(line.shard)
        return found

    @cached_property
    def last_claims(self) -> dict[int, set[int]]:
        """Shard → the jobs in the last claim that it wrote."""
        return {
            line.shard: set(line.ids or ()) for line in self.wrote if line.table == "claim" and line.shard is not None
        }

    def lease_lost(self, shard: int, at: int) -> bool:
        """Whether the shard had no lease any more."""
        return self.lost_at.get(shard, NEVER) <= at


KEEPER = "wqcore keeper"

Line = TypeVar("Line", bound=msgspec.Struct)


def lines(path: Path, of: type[Line]) -> Iterator[Line]:
    """The lines of a journal; none when nobody has written to it."""
    if path.exists():
        decode = msgspec.json.Decoder(of).decode
        for line in path.read_bytes().splitlines():
            yield decode(line)


def read(folder: Path) -> History:
    """The history in a folder."""
    end = msgspec.json.decode((folder / END).read_bytes(), type=End)
    wrote = list(lines(folder / AUDIT, Wrote))
    clocks = sorted(end.clocks, key=lambda reading: reading[1])
    for line in wrote:
        line.at = monotonic(clocks, line.at)
    return History(
        said=list(lines(folder / CLIENTS, Said)),
        ran=list(lines(folder / HANDLERS, Ran)),
        wrote=wrote,
        faults=list(lines(folder / FAULTS, Fault)),
        end=end,
    )


def monotonic(clocks: list[tuple[int, int]], time_of_day: int) -> int:
    """A time of day on the monotonic clock, by the reading that was taken closest to it; `clocks` go up by the time of day.

    They are searched by halves: a soak of half an hour has 1,800 readings and 1.6 million lines."""
    after = bisect.bisect_left(clocks, time_of_day, key=lambda reading: reading[1])
    at, day = min(clocks[max(0, after - 1) : after + 1], key=lambda reading: abs(reading[1] - time_of_day))
    return time_of_day - day + at
