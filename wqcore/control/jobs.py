"""Looking at jobs: one by its id, a page of those that match, or how many match. Writes and locks nothing.

Each look is a statement of its own that reads a bounded number of rows; a job may move between two of them. Progress and
state are those of the moment of the look.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from wqcore.control import given
from wqcore.control.filters import JobFilter, parameters
from wqcore.db.request import Query, Request, Rows
from wqcore.job import FINISHED, JobState

WINDOW_JOBS = 5_000
"""Rows of each table that one statement looks at: some 10 ms, however large the tables are."""
PAGE_JOBS_MAX = 10_000


class LogLine(msgspec.Struct, frozen=True):
    """A line that was logged while a job ran, and that was kept with it (`logging.keep_lines`).

    Attributes:
        at (datetime): when, by the clock of the worker's host.
        level (str): debug, info, warning, error or critical.
        logger (str), message (str): as logged.
        exception (str | None): `file:line in function` for each frame, then the class and the text.
    """

    at: dt.datetime
    level: str
    logger: str
    message: str
    exception: str | None = None


class FailedAttempt(msgspec.Struct, frozen=True):
    """Why one attempt failed, or why a job was ended.

    Attributes:
        error (str): the message.
        attempt (int | None): which attempt; None when the job was ended before one.
        at (datetime | None): when it was written, by the database's clock.
        error_class (str | None): the name of the exception's class.
        traceback (list of str): `file:line in function`, the innermost last.
        log (list of LogLine): the newest lines of that attempt, where they were to be kept.
    """

    error: str = ""
    attempt: int | None = None
    at: dt.datetime | None = None
    error_class: str | None = msgspec.field(default=None, name="class")
    traceback: list[str] = []
    log: list[LogLine] = []


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was at the moment of the look.

    Attributes:
        id (int), kind (str), queue (str), state (JobState), priority (int): as stored.
        attempt (int): attempts that have failed or ended; while it runs, those before.
        max_attempts (int), deaths (int), serial_key, job_key (str | None): as stored.
        created_at, run_at, attempted_at, finished_at (datetime | None): the database's clock; run_at while it waits for
            a time or was changed, the last two once it is finished.
        args, metadata, output: decoded JSON; the output is None until it is completed, and where it left none.
        errors (list of FailedAttempt): the last ones, the newest last.
        progress (float | None), progress_note (str | None): what the running handler said last.
        log (list of LogLine): the newest lines of the last run that has ended, where they were to be kept.
    """

    id: int
    kind: str
    queue: str
    state: JobState
    priority: int
    attempt: int
    max_attempts: int
    deaths: int
    serial_key: str | None
    job_key: str | None
    created_at: dt.datetime
    run_at: dt.datetime | None
    attempted_at: dt.datetime | None
    finished_at: dt.datetime | None
    args: Any
    metadata: Any
    errors: list[FailedAttempt]
    output: Any
    progress: float | None
    progress_note: str | None
    log: list[LogLine] = []

    @property
    def is_finished(self) -> bool:
        """True when it is completed, cancelled or discarded."""
        return self.state in FINISHED

    @property
    def last_error(self) -> str | None:
        """The text of its last error."""
        return self.errors[-1].error if self.errors else None


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a job at the moment, and what is asked of it.

    Attributes:
        host (str | None), master_pid (int | None): where it is held; None: nowhere, or by a master that was never heard of.
        worker_pid (int | None): the worker that holds it.
        held (bool): a worker has claimed it.
        running_s (float | None): how long it had run at the last heartbeat; None: it waits for a seat, or has just begun.
        cancel_asked_at (datetime | None), cancel_reason (str | None): somebody's request, not carried out yet.
    """

    host: str | None = None
    master_pid: int | None = None
    worker_pid: int | None = None
    held: bool = False
    running_s: float | None = None
    cancel_asked_at: dt.datetime | None = None
    cancel_reason: str | None = None


class Window:
    """A part of a walk: what matched in it, and where the next one begins (None: it was the last)."""

    __slots__ = ("after", "rows", "total")

    def __init__(self, rows: Rows, n: int) -> None:
        edge = rows[0][0]
        self.total: int = rows[0][1]
        self.rows = [row[2:] for row in rows if row[2] is not None]
        self.after: int | None = self.rows[-1][0] if n and len(self.rows) == n else edge


def window(wanted: dict[str, Any], *, after: int, n: int, whole: bool = False) -> Request[Window]:
    """The next `n` matches at most, of the next `WINDOW_JOBS` rows; (id, revision, …) as in jobs_walk.sql."""
    rows = yield Query("jobs_walk", wanted | {"after": after, "scan": max(WINDOW_JOBS, n), "n": n, "whole": whole})
    return Window(rows, n)


def job(job_id: int) -> Request[JobInfo | None]:
    """One job, or None."""
    found = yield from window(parameters(JobFilter(ids=[job_id])), after=0, n=1, whole=True)
    return info(found.rows[0]) if found.rows else None


def owner(job_id: int) -> Request[Owner]:
    """Who holds a job."""
    [(shard, host, pid, report, reason, asked_at)] = yield Query("job_owner", {"job": job_id})
    told = report or {}
    return Owner(
        host=host,
        master_pid=pid,
        worker_pid=told.get("pid") or None,
        held=shard is not None,
        running_s=next((for_s for job_, _, _, for_s in told.get("running", []) if job_ == job_id), None),
        cancel_asked_at=asked_at,
        cancel_reason=reason,
    )


def jobs(chosen: JobFilter, limit: int, after: int) -> Request[list[JobInfo]]:
    """A page of the jobs that match, by id. Raises InvalidRequest."""
    given.whole("limit", limit, 1, PAGE_JOBS_MAX)
    wanted = parameters(chosen)
    found: list[JobInfo] = []
    at: int | None = given.whole("after", after, 0, given.JOB_ID_MAX)
    while at is not None and len(found) < limit:
        part = yield from window(wanted, after=at, n=limit - len(found), whole=True)
        found += [info(row) for row in part.rows if row[0] > after]
        at = part.after if wanted["ids"] is None else None
    return found


def count(chosen: JobFilter) -> Request[int]:
    """How many jobs match."""
    wanted = parameters(chosen)
    total, at = 0, 0
    while True:
        part = yield from window(wanted, after=at, n=0)
        total += part.total
        if part.after is None:
            return total
        at = part.after


def info(row: tuple[Any, ...]) -> JobInfo:
    """The JobInfo of a row of jobs_walk.sql."""
    job_id, _, *fields, errors, output, log, fraction, note = row
    attempts = msgspec.convert(errors or [], list[FailedAttempt])
    values = dict(zip(JobInfo.__struct_fields__[1:], fields, strict=False))
    values["state"] = JobState(values["state"])
    if values["state"] == JobState.COMPLETED:
        lines = msgspec.convert(log or [], list[LogLine])
    else:
        lines = attempts[-1].log if attempts else []
    return JobInfo(
        id=job_id,
        errors=attempts,
        log=lines,
        output=output,
        progress=fraction,
        progress_note=note,
        **values,
    )
