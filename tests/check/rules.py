"""What may not happen: one function a rule, from a history to its findings. Nothing here waits, reads or guesses.

A rule says nothing about a case that the history cannot decide. Where a promise has an exception, it stands beside the
rule with its reason, so that it can be argued with.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.check.history import KEEPER, History, Run, Said, Wrote

UNCOUNTED = frozenset({"snoozed", "interrupted", "fenced"})
"""Ends of a run that cost no attempt: it asked to come back, its worker drained, or it had lost its lease."""
ALIVE_MARGIN_NS = 1_000_000
"""How long after the loss of its lease a process must have written to be called alive: two clocks are compared. It finds
out and leaves within 8 ms, because whoever takes a lease wakes the queue."""
CRASH_MARGIN_NS = 1_000_000_000
"""Claims commit without waiting for the disk; PostgreSQL writes them within 3 × wal_writer_delay, 0.6 s."""


class Finding(NamedTuple):
    """Something that may not happen, and did."""

    rule: str
    job: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: " + (f"job {self.job}: " if self.job is not None else "") + self.text


def lost(history: History) -> Iterator[Finding]:
    """An insert that was acknowledged is a job, finished or not; a replacement that was acknowledged is what ran last."""
    there = {row.job for row in history.end.finished} | {row.job for row in history.end.waiting}
    tokens = {row.token for row in history.end.finished} | {row.token for row in history.end.waiting}
    written: dict[int, list[int | None]] = defaultdict(list)
    for line in history.wrote:
        if line.table == "job" and line.job is not None and line.op != "delete":
            written[line.job].append(line.token)
    last = {row.job: row.token for row in history.end.finished} | {row.job: row.token for row in history.end.waiting}
    for said in history.said:
        if said.do != "insert" or said.phase != "ok":
            continue
        if said.job is not None and said.job not in there:
            yield Finding("lost", said.job, f"its insert ({said.did}, token {said.token}) was acknowledged")
        elif said.did == "skipped":
            continue
        elif said.job is None and said.token not in tokens:
            yield Finding("lost", None, f"token {said.token} was acknowledged, and no job has it")
        elif said.job is not None and said.token not in written[said.job]:
            yield Finding("lost", said.job, f"token {said.token} was acknowledged ({said.did}) and never written")
    for job, tokens_of_job in written.items():
        if job in last and tokens_of_job[-1] != last[job]:
            yield Finding("lost", job, f"ended with token {last[job]}, but was replaced by {tokens_of_job[-1]}")


def resurrected(history: History) -> Iterator[Finding]:
    """An insert that was refused, or rolled back, is no job. One told to be the only one of its kind is one at most."""
    answers: dict[int, list[Said]] = defaultdict(list)
    for said in history.said:
        if said.do == "insert":
            answers[said.token].append(said)
    rows = [(row.job, row.token) for row in (*history.end.finished, *history.end.waiting)]
    rows += [(line.job or 0, line.token) for line in history.wrote if line.table == "job"]
    rows = [(job, token) for job, token in rows if job not in history.withdrawn]
    jobs: dict[int, set[int]] = defaultdict(set)
    for job, token in rows:
        if token is not None:
            jobs[token].add(job)
    for token, said_of_token in answers.items():
        invoked = sum(said.phase == "invoke" for said in said_of_token)
        if invoked == sum(said.phase == "fail" for said in said_of_token) and jobs[token]:
            yield Finding("resurrected", min(jobs[token]), f"its insert (token {token}) was refused")
        if any(said.once for said in said_of_token) and len(jobs[token]) > 1:
            yield Finding("resurrected", None, f"token {token} was to be one job and is {sorted(jobs[token])}")


def stranded(history: History) -> Iterator[Finding]:
    """After healing and draining, no job is unfinished."""
    for row in history.end.waiting:
        yield Finding("stranded", row.job, f"{row.kind} still waits, after {row.attempt} attempts")


def ended_twice(history: History) -> Iterator[Finding]:
    """A job has one terminal record, and then it is nowhere else."""
    kept = Counter(row.job for row in history.end.finished)
    written = Counter(line.job for line, _ in history.ends if line.job is not None)
    waiting = {row.job for row in history.end.waiting}
    for job in sorted(kept.keys() | written.keys()):
        count = max(kept[job], written[job])
        if count > 1:
            yield Finding("ended twice", job, f"it has {count} terminal records")
        elif job in waiting:
            yield Finding("ended twice", job, "it has a terminal record and still waits")


def ended_by_older_run(history: History) -> Iterator[Finding]:
    """A terminal record is written by the newest run.

    A record without a shard is a client's: it may end what waits at that moment. One of another shard than the newest
    run's is right when that run is over, or its shard is dead: then the job was claimed again, and cancelled or
    discarded before it started. But nobody completes a job that he has not run last.
    """
    for record, _ in history.ends:
        runs = [run for run in history.runs_of.get(record.job or 0, []) if run.start < record.at]
        if not runs or record.shard is None or runs[-1].shard == record.shard:
            continue
        newest = runs[-1]
        if record.outcome == "completed" or (
            newest.end > record.at and not history.lease_lost(newest.shard, record.at)
        ):
            yield Finding(
                "ended by an older run",
                record.job,
                f"shard {record.shard} wrote {record.outcome}; the newest run was {newest}",
            )


def overlaps(history: History) -> Iterator[Finding]:
    """Two runs of a job overlap only when the older one has lost its lease before the newer one starts."""
    for job, runs in history.runs_of.items():
        for older, newer in _overlapping(history, runs):
            yield Finding("overlap", job, f"{newer} started while {older} ran and had its lease")


def key_overlaps(history: History) -> Iterator[Finding]:
    """The same for two jobs of one serial key: whoever has lost his lease cannot be waited for."""
    runs_of_key: dict[str, list[Run]] = defaultdict(list)
    for run in history.runs:
        if run.key is not None:
            runs_of_key[run.key].append(run)
    for key, runs in runs_of_key.items():
        for older, newer in _overlapping(history, runs):
            if older.job != newer.job:
                yield Finding("key overlap", newer.job, f"{newer} of key {key!r} started while job {older.job} ran: {older}")


def _overlapping(history: History, runs: list[Run]) -> Iterator[tuple[Run, Run]]:
    """Pairs of an older run that was still on, with its lease, when a newer one started."""
    on: list[Run] = []
    for run in runs:
        on = [older for older in on if older.end > run.start and not history.lease_lost(older.shard, run.start)]
        for older in on:
            yield older, run
        on.append(run)


def murdered(history: History) -> Iterator[Finding]:
    """No lease is taken from a worker that lives, unless something was done to it or to its way to the database."""
    silence = int(history.end.dead_after_s * 3e9) + 2_000_000_000
    last_line: dict[int, Run] = {}
    for run in history.runs:
        if run.shard not in last_line or run.last > last_line[run.shard].last:
            last_line[run.shard] = run
    for line in history.wrote:
        if line.table != "shard" or line.op != "delete" or line.by != KEEPER or line.shard not in last_line:
            continue
        run = last_line[line.shard]
        excused = any(
            fault.at <= line.at and fault.until >= line.at - silence and (not fault.pids or run.pid in fault.pids)
            for fault in history.faults
        )
        if run.last > line.at + ALIVE_MARGIN_NS and not excused:
            yield Finding("murdered", run.job, f"{run} lost its lease, though its process lived and worked")


def miscounted(history: History) -> Iterator[Finding]:
    """Each attempt that was counted is a run, each run that counts was counted, and each death is a lost lease."""
    yield from _counted_without_run(history)
    yield from _run_not_counted(history)
    yield from _ended_too_early(history)


def _counted_without_run(history: History) -> Iterator[Finding]:
    """A keeper may count one run a shard that wrote no line: it died between the board and its first instruction."""
    started = {(run.job, run.revision, run.attempt) for run in history.runs}
    unseen: Counter[int] = Counter()
    for line, was in _counts(history):
        raised, deaths = line.attempt - was.attempt, line.deaths - was.deaths
        rescued = history.rescued_in.get(line.xid, [])
        if raised not in (0, 1) or deaths not in (0, 1):
            yield Finding("miscounted", line.job, f"attempt {was.attempt} → {line.attempt}, deaths {was.deaths} → {line.deaths}")
        elif deaths and not rescued:
            yield Finding("miscounted", line.job, "it was charged with a death, and no lease was taken away")
        elif raised and (line.job, was.revision, line.attempt) not in started:
            for shard in rescued:
                unseen[shard] += 1
            if not rescued or max(unseen[shard] for shard in rescued) > 1:
                yield Finding("miscounted", line.job, f"attempt {line.attempt} was counted by {line.by}, and no run had it")
        elif line.outcome == "completed" and not raised:
            yield Finding("miscounted", line.job, f"it completed, and its run was not counted: attempt {line.attempt}")


class _Count(NamedTuple):
    job: int
    xid: int
    by: str
    revision: int
    attempt: int
    deaths: int
    outcome: str | None


def _counts(history: History) -> Iterator[tuple[_Count, _Count]]:
    """(after, before) of every write that leaves a job's counters other than a replacement does."""
    for line in history.wrote:
        if line.table == "job" and line.op == "update" and line.revision == line.was_revision:
            yield _count(line), _Count(
                line.job or 0, line.xid, line.by, line.was_revision or 0, line.was_attempt or 0, line.was_deaths or 0, None
            )
    for record, deleted in history.ends:
        if deleted is not None:
            yield _count(record), _count(deleted)


def _count(line: Wrote) -> _Count:
    return _Count(
        line.job or 0, line.xid, line.by, line.revision or 0, line.attempt or 0, line.deaths or 0, line.outcome
    )


def _run_not_counted(history: History) -> Iterator[Finding]:
    """A run that failed, ended well, or died is counted: the next run of the job has a higher attempt.

    Not so when the job was given a death alone (its host died, and the last heartbeat did not show the run), when
    PostgreSQL crashed and lost the claim and the worker died before it wrote it anew, or when a drained worker left
    the run behind in a thread.
    """
    deaths_alone = {
        (line.job, shard)
        for line, was in _counts(history)
        if line.deaths > was.deaths and line.attempt == was.attempt
        for shard in history.rescued_in.get(line.xid, [])
    }
    crashes = [fault.at for fault in history.faults if fault.what == "restart server"]
    for job, runs in history.runs_of.items():
        for run, after in itertools.pairwise(runs):
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


def unearned(history: History) -> Iterator[Finding]:
    """A completed job has a run with that attempt, of that revision, by that shard, that ended well before."""
    for record, deleted in history.ends:
        if record.outcome != "completed":
            continue
        good = any(
            run.attempt == record.attempt
            and run.shard == record.shard
            and (deleted is None or run.revision == deleted.revision)
            and (run.commits or (run.how == "ok" and run.end < record.at))
            for run in history.runs_of.get(record.job or 0, [])
        )
        if not good:
            yield Finding("unearned", record.job, f"completed as attempt {record.attempt} by shard {record.shard}")


def wrong_effects(history: History) -> Iterator[Finding]:
    """What was written in the transaction of a completion is there once for each completed job, and for no other."""
    effects = Counter(history.end.effects)
    kinds = set(history.end.effect_kinds)
    completed = {row.job for row in history.end.finished if row.outcome == "completed" and row.kind in kinds}
    for job in sorted(completed | effects.keys()):
        if job not in completed or effects[job] != 1:
            state = "completed" if job in completed else "not completed"
            yield Finding("wrong effect", job, f"it is {state}, and its effect is there {effects[job]} times")


def left_over(history: History) -> Iterator[Finding]:
    """Nothing is left of the masters: no process, no open transaction, no lease; they ended as they should."""
    end = history.end
    for what in end.orphans:
        yield Finding("left over", None, f"orphan process {what}")
    for what in end.idle_transactions:
        yield Finding("left over", None, f"idle transaction {what}")
    for what, count in end.rows_left.items():
        if count:
            yield Finding("left over", None, f"{count} {what}")
    for what in end.problems:
        yield Finding("left over", None, what)


def unreconciled(history: History) -> Iterator[Finding]:
    """Jobs that came in are those that ended and those that wait; outcomes that were written are those that are kept."""
    came = {line.job for line in history.wrote if line.table == "job" and line.op == "insert"}
    went = Counter(record.outcome for record, _ in history.ends)
    kept = Counter(row.outcome for row in history.end.finished)
    if went != kept:
        yield Finding("unreconciled", None, f"written outcomes {dict(went)}, kept {dict(kept)}")
    waiting = {row.job for row in history.end.waiting}
    ended = {record.job for record, _ in history.ends}
    for job in sorted(job for job in (came - history.withdrawn) ^ (ended | waiting) if job is not None):
        yield Finding("unreconciled", job, "it was inserted and neither ended nor waits, or the other way round")


RULES = {
    "lost": lost,
    "resurrected": resurrected,
    "stranded": stranded,
    "ended twice": ended_twice,
    "ended by an older run": ended_by_older_run,
    "overlap": overlaps,
    "key overlap": key_overlaps,
    "murdered": murdered,
    "miscounted": miscounted,
    "unearned": unearned,
    "wrong effect": wrong_effects,
    "left over": left_over,
    "unreconciled": unreconciled,
}
