"""Changing jobs that exist: cancel, retry, reprioritise, reschedule, delete; one, some, or all that match a filter.

Every change goes in bites, each a statement and a transaction of its own, so that no lock and no snapshot is held for
long; a filter is walked by id. What raises between two bites leaves those before it done; the same call may be repeated.

A shard does not lock the rows that it claims. So a turn that began before a change committed can claim the job as it was.
The file of each statement (control_*.sql) says why then nothing is lost and no change runs a job twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from wqcore.control import given
from wqcore.control.filters import JobFilter, moment, parameters
from wqcore.control.jobs import window
from wqcore.db.connect import BigIntArray
from wqcore.db.request import Query, Request
from wqcore.errors import InvalidRequest
from wqcore.job import ERROR_TEXT_CHARS_MAX, PRIORITY_MAX, PRIORITY_MIN, JobState

BITE_JOBS = 1_000
"""Jobs that one transaction changes: some 30 ms, so that neither vacuum nor a shard waits for it."""
BITE_JOBS_MAX = 10_000
CANCELLED = "cancelled by request"

ANY_REVISION = -1
"""An id that the caller gave: whatever the job has become. A walk gives the revision that it saw, -2 for a finished job."""


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What a change has done.

    Attributes:
        changed (int): jobs that are now as was asked.
        cancelling (int): running jobs whose cancellation was asked for; their workers carry it out within a second.
        running (int): left as they are, because a worker holds them, or somebody else changed them at this moment.
        finished (int): left as they are, because they have ended.
        taken (int): finished jobs that were not retried, because another unfinished job has their job key, or is the
            same by `unique`.
        unknown (int): ids that are neither unfinished nor in the history.
    """

    changed: int = 0
    cancelling: int = 0
    running: int = 0
    finished: int = 0
    taken: int = 0
    unknown: int = 0

    def __add__(self, other: Changed) -> Changed:
        return Changed(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


Chosen = int | Sequence[int] | JobFilter
Progress = Callable[[Changed], None]


def added_to(before: Changed, progress: Progress) -> Progress:
    """Tells `progress` what was changed in other databases too."""
    return lambda changed: progress(before + changed)


def cancel(chosen: Chosen, reason: str) -> dict[str, Any]:
    """The parameters of control_cancel.sql. Raises InvalidRequest."""
    if not isinstance(reason, str):
        raise InvalidRequest(f"reason is {reason!r}: give a str")
    states = chosen.states if isinstance(chosen, JobFilter) else None
    running_too = states is None or JobState.RUNNING in [JobState(state) for state in states]
    return {"reason": reason.replace("\x00", "\ufffd")[:ERROR_TEXT_CHARS_MAX], "running_too": running_too}


def retry(chosen: Chosen) -> dict[str, Any]:
    """The parameters of control_retry.sql. Raises InvalidRequest for a filter that names no state."""
    if isinstance(chosen, JobFilter) and not chosen.states:
        raise InvalidRequest('say what to retry, e.g. states=["discarded"]: else completed jobs would run once more')
    return {}


def reprioritise(priority: int) -> dict[str, Any]:
    """The parameters of control_reprioritise.sql. Raises InvalidRequest."""
    return {"priority": given.whole("priority", priority, PRIORITY_MIN, PRIORITY_MAX)}


def reschedule(run_at: dt.datetime | dt.timedelta) -> dict[str, Any]:
    """The parameters of control_reschedule.sql. Raises InvalidRequest."""
    at, seconds = moment("run_at", run_at)
    return {"run_at": at, "after_s": seconds}


def change(
    statement: str, chosen: Chosen, more: dict[str, Any], *, bite: int = BITE_JOBS, progress: Progress | None = None
) -> Request[Changed]:
    """Sends a change to all the chosen jobs, bite by bite; `progress` is told the sum after each. Raises InvalidRequest."""
    given.whole("bite", bite, 1, BITE_JOBS_MAX)
    total = Changed()
    bites = _walk(chosen, bite) if isinstance(chosen, JobFilter) else _given(chosen, bite)
    at = None
    while True:
        pairs, at = yield from bites(at)
        if pairs:
            ids, revisions = zip(*pairs, strict=True)
            params = {"ids": BigIntArray(list(ids)), "revisions": BigIntArray(list(revisions))}
            [(changed, cancelling, running, finished, taken, _)] = yield Query(statement, params | more)
            known = changed + cancelling + running + finished + taken
            total += Changed(
                changed=changed, cancelling=cancelling, running=running, finished=finished, taken=taken,
                unknown=max(0, len(ids) - known),
            )  # fmt: skip
            if progress is not None:
                progress(total)
        if at is None:
            return total


_Bite = tuple[list[tuple[int, int]], int | None]
"""(id, revision) pairs, and where the next bite begins; None: there is none."""


def _given(chosen: int | Sequence[int], bite: int) -> Callable[[int | None], Request[_Bite]]:
    ids = sorted({chosen} if isinstance(chosen, int) else set(chosen))

    def take(at: int | None) -> Request[_Bite]:
        yield from ()  # a request that asks nothing
        begin = at or 0
        end = begin + bite
        return [(job_id, ANY_REVISION) for job_id in ids[begin:end]], end if end < len(ids) else None

    return take


def _walk(chosen: JobFilter, bite: int) -> Callable[[int | None], Request[_Bite]]:
    if chosen.is_everything():
        raise InvalidRequest("the filter has no condition, so it means every job: say which, e.g. by states or kinds")
    if chosen.ids is not None and len(chosen.ids) > bite:
        raise InvalidRequest(f"a filter takes at most {bite} ids; pass the ids themselves instead of a filter")
    wanted = parameters(chosen)

    def take(at: int | None) -> Request[_Bite]:
        part = yield from window(wanted, after=at or 0, n=bite)
        after = part.after if chosen.ids is None else None
        return [(row[0], row[1]) for row in part.rows], after

    return take
