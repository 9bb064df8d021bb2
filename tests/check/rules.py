"""What may not happen: one function a rule, from a history to its findings. Nothing here waits, reads or guesses.

A rule says nothing about a case that the history cannot decide. Where a promise has an exception, it stands beside the
rule with its reason, so that it can be argued with.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.check.counting import miscounted
from tests.check.finding import Finding
from tests.check.history import KEEPER, History, Run, Said

ALIVE_MARGIN_NS = 1_000_000
"""How long after the loss of its lease a process must have written to be called alive: two clocks are compared. It finds
out and leaves within 8 ms, because whoever takes a lease wakes the queue."""


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
                yield Finding(
                    "key overlap", newer.job, f"{newer} of key {key!r} started while job {older.job} ran: {older}"
                )


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
