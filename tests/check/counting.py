"""Attempts and deaths add up: each attempt that was counted is a run, and each run that counts was counted."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.check.finding import Finding
from tests.check.history import History, Wrote

UNCOUNTED = frozenset({"snoozed", "interrupted", "fenced"})
"""Ends of a run that cost no attempt: it asked to come back, its worker drained, or it had lost its lease."""
CRASH_MARGIN_NS = 1_000_000_000
"""Claims commit without waiting for the disk; PostgreSQL writes them within 3 × wal_writer_delay, 0.6 s."""


def miscounted(history: History) -> Iterator[Finding]:
    """Each attempt that was counted is a run, each run that counts was counted, and each death is a lost lease."""
    yield from _counted_without_run(history)
    yield from _counted_though_snoozed(history)
    yield from _run_not_counted(history)
    yield from _ended_too_early(history)


def _counted_without_run(history: History) -> Iterator[Finding]:
    """A keeper may count one run a shard that wrote no line: it died between the board and its first instruction."""
    started = {(run.job, run.revision, run.attempt) for run in history.runs}
    unseen: Counter[int] = Counter()
    for line, was in _counts(history):
        raised, deaths = (line.attempt or 0) - was.attempt, (line.deaths or 0) - was.deaths
        rescued = history.rescued_in.get(line.xid, [])
        if raised not in (0, 1) or deaths not in (0, 1):
            yield Finding(
                "miscounted", line.job, f"attempt {was.attempt} → {line.attempt}, deaths {was.deaths} → {line.deaths}"
            )
        elif deaths and not rescued:
            yield Finding("miscounted", line.job, "it was charged with a death, and no lease was taken away")
        elif raised and (line.job, was.revision, line.attempt) not in started:
            for shard in rescued:
                unseen[shard] += 1
            if not rescued or max(unseen[shard] for shard in rescued) > 1:
                yield Finding(
                    "miscounted", line.job, f"attempt {line.attempt} was counted by {line.by}, and no run had it"
                )
        elif line.outcome == "completed" and not raised:
            yield Finding("miscounted", line.job, f"it completed, and its run was not counted: attempt {line.attempt}")


def _counted_though_snoozed(history: History) -> Iterator[Finding]:
    """A run that snoozed costs nothing once its snooze has been written, whatever dies afterwards.

    A worker that has claimed the job again may have started it again: a heartbeat cannot tell these two runs apart.
    """
    snoozes: dict[tuple[int | None, str], list[int]] = defaultdict(list)
    for line in history.wrote:
        if line.table == "job" and line.op == "update":
            snoozes[line.job, line.by.rpartition(" ")[2]].append(line.at)
    for line, was in _counts(history):
        rescued = history.rescued_in.get(line.xid, [])
        if line.attempt == was.attempt or any(line.job in history.last_claims.get(shard, ()) for shard in rescued):
            continue
        runs = [
            run
            for run in history.runs_of.get(line.job or 0, [])
            if (run.revision, run.attempt) == (was.revision, line.attempt) and run.start < line.at
        ]
        if runs and all(
            run.how == "snoozed" and any(run.end < at < line.at for at in snoozes[run.job, str(run.shard)])
            for run in runs
        ):
            yield Finding(
                "miscounted", line.job, f"attempt {line.attempt} was counted by {line.by}, and it had snoozed"
            )


class _Was(NamedTuple):
    revision: int
    attempt: int
    deaths: int


def _counts(history: History) -> Iterator[tuple[Wrote, _Was]]:
    """What was written, and the counters before, for every write but a replacement, which begins anew."""
    for line in history.wrote:
        if line.table == "job" and line.op == "update" and line.revision == line.was_revision:
            yield line, _Was(line.was_revision or 0, line.was_attempt or 0, line.was_deaths or 0)
    for record, deleted in history.ends:
        if deleted is not None:
            yield record, _Was(deleted.revision or 0, deleted.attempt or 0, deleted.deaths or 0)


def _run_not_counted(history: History) -> Iterator[Finding]:
    """A run that failed, ended well, or died is counted: the next run of the job has a higher attempt.

    Not so when the job was given a death alone (its host died, and the last heartbeat did not show the run), when
    PostgreSQL crashed and lost the claim and the worker died before it wrote it anew, when a drained worker left the run
    behind in a thread, or when the lease was gone before the run began: a worker that was suspended starts what it has
    claimed before it hears so.
    """
    deaths_alone = {
        (line.job, shard)
        for line, was in _counts(history)
        if (line.deaths or 0) > was.deaths and line.attempt == was.attempt
        for shard in history.rescued_in.get(line.xid, [])
    }
    crashes = [fault.at for fault in history.faults if fault.what == "restart server"]
    for job, runs in history.runs_of.items():
        with_lease = [run for run in runs if not history.lease_lost(run.shard, run.start)]
        for run, after in itertools.pairwise(with_lease):
            if after.revision != run.revision or after.attempt > run.attempt or run.how in UNCOUNTED:
                continue
            until = history.lost_at.get(run.shard, after.start)
            crashed = any(run.start - CRASH_MARGIN_NS <= at <= until for at in crashes)
            left = run.how is None and any(
                fault.what == "drain master" and run.pid in fault.pids for fault in history.faults
            )
            if (job, run.shard) not in deaths_alone and not crashed and not left:
                yield Finding("miscounted", job, f"{run} ended ({run.how or 'died'}), and then came {after}")


def _ended_too_early(history: History) -> Iterator[Finding]:
    """A job is discarded when its attempts or deaths are used up (a superseded one has none), or when a run says so."""
    for row in history.end.finished:
        said = any(run.how == "discarded" for run in history.runs_of.get(row.job, []))
        if row.outcome != "discarded" or said:
            continue
        if row.attempt < row.max_attempts and row.deaths < history.end.deaths_max:
            yield Finding(
                "miscounted",
                row.job,
                f"discarded after {row.attempt} of {row.max_attempts} attempts and {row.deaths} deaths",
            )
