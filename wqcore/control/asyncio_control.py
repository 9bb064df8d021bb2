"""The methods of `Client` over jobs, queues and schedules; each sends a request of this room and returns its result.

A method that raised DatabaseUnavailable may have done a part of its bites; calling it again is right for all of them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar, Unpack

from wqcore.catalog import Catalog
from wqcore.control import changes, given, jobs, masters, outcomes, queues, results, schedules
from wqcore.control.changes import BITE_JOBS, CANCELLED, Changed, Chosen, Progress
from wqcore.control.filters import EVERYTHING, JobFilter
from wqcore.control.jobs import JobInfo, Owner
from wqcore.control.masters import MasterInfo
from wqcore.control.outcomes import POLL_S, Event, Reader
from wqcore.control.queues import QueueInfo
from wqcore.control.routes import JobId, Routes, Target
from wqcore.control.schedules import Args, ScheduleInfo
from wqcore.db.request import Request
from wqcore.errors import InvalidRequest
from wqcore.job import JobState
from wqcore.recurring import ScheduleOptions

T = TypeVar("T")


class AsyncControl:
    """Looking at jobs, changing them, waiting for them, following outcomes, queues, schedules: the part of `Client`."""

    _catalog: Catalog

    _routes: Routes[Any]

    async def _do(self, request: Request[T], conn: Any = None, *, at: Target | None = None) -> T:
        raise NotImplementedError

    # --- looking ----------------------------------------------------------------------------------------------------

    async def job(self, job_id: int) -> JobInfo | None:
        """The job, unfinished or in the history, or None."""
        at = self._routes.of_job(job_id)
        info = await self._do(jobs.job(job_id), at=at)
        return None if info is None else self._routes.marked(at, info)

    async def owner(self, job_id: int) -> Owner:
        """Who holds the job, and whether somebody has asked to cancel it."""
        return await self._do(jobs.owner(job_id), at=self._routes.of_job(job_id))

    async def jobs(self, chosen: JobFilter = EVERYTHING, *, limit: int = 100, after: int = 0) -> list[JobInfo]:
        """At most `limit` (1 … 10,000) jobs that match, by id, beyond the id `after`. Raises InvalidRequest."""
        at = self._routes.of_filter(chosen)
        if len(at) > 1:
            self._routes.only(chosen.queues, "a page of jobs")
        return [self._routes.marked(at[0], info) for info in await self._do(jobs.jobs(chosen, limit, after), at=at[0])]

    async def count(self, chosen: JobFilter = EVERYTHING) -> int:
        """How many jobs match, unfinished and in the history; walks them all. Raises InvalidRequest."""
        return sum([await self._do(jobs.count(chosen), at=at) for at in self._routes.of_filter(chosen)])

    # --- changing ---------------------------------------------------------------------------------------------------

    async def cancel(
        self, chosen: Chosen, *, reason: str = CANCELLED, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """Cancels jobs: an id, ids, or all that match a JobFilter.

        Those that wait end as cancelled, with `reason` as their error. The handler of a running one is cancelled by its
        worker, on whatever host, within a second; it is counted as `cancelling`, since it may complete first.

        `bite` jobs are changed in one transaction; `progress` is called with the sum after each. Raises InvalidRequest.
        """
        more = changes.cancel(chosen, reason)
        return await self._change("control_cancel", chosen, more, bite, progress)

    async def retry(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """Makes jobs run now: those that wait for their time, and finished ones, which come back from the history.

        A job that comes back keeps its id and errors, may be attempted once more at least, and has no deaths. A filter
        must name states. Otherwise as `cancel`.
        """
        return await self._change("control_retry", chosen, changes.retry(chosen), bite, progress)

    async def reprioritise(
        self, chosen: Chosen, priority: int, *, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """Gives waiting jobs another priority (−1000 … 1000, a higher number runs first). Otherwise as `cancel`."""
        more = changes.reprioritise(priority)
        return await self._change("control_reprioritise", chosen, more, bite, progress)

    async def reschedule(
        self,
        chosen: Chosen,
        run_at: dt.datetime | dt.timedelta,
        *,
        bite: int = BITE_JOBS,
        progress: Progress | None = None,
    ) -> Changed:
        """Gives waiting jobs another time: a datetime with time zone, or a timedelta from now. Otherwise as `cancel`."""
        more = changes.reschedule(run_at)
        return await self._change("control_reschedule", chosen, more, bite, progress)

    async def delete(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """Deletes jobs that wait, and finished ones from the history, without a trace. Otherwise as `cancel`."""
        return await self._change("control_delete", chosen, {}, bite, progress)

    # --- waiting and following --------------------------------------------------------------------------------------

    async def wait(self, job_id: int, *, timeout_s: float | None = None) -> JobInfo:
        """The job once it has finished, wherever it runs; None: waits for ever.

        Raises TimeoutError, or JobNotFound for a job that is neither unfinished nor in the history.
        """
        at = self._routes.of_job(job_id)
        if at.waiters is None:
            at.waiters = results.Waiters(lambda ids: self._do(results.ended(ids), at=at))
        try:
            async with asyncio.timeout(given.seconds("timeout_s", timeout_s)) as limit:
                while True:
                    kept = await at.waiters.ended(job_id)
                    info = await self._do(results.finished(job_id, kept=kept), at=at)
                    if info is not None:
                        return self._routes.marked(at, info)
        except TimeoutError:
            if limit.expired():
                raise results.late(job_id, timeout_s) from None
            raise

    async def result(self, job_id: int, *, timeout_s: float | None = None) -> Any:
        """The output of a job once it is completed, as decoded JSON (None: it left none).

        Raises JobFailed when it was cancelled or discarded; otherwise as `wait`.
        """
        return results.output_of(await self.wait(job_id, timeout_s=timeout_s))

    async def outcomes(
        self,
        *,
        kinds: Sequence[str] | None = None,
        queues: Sequence[str] | None = None,
        outcomes: Sequence[JobState | str] | None = None,
        since: str | None = None,
        poll_s: float = POLL_S,
    ) -> AsyncIterator[Event]:
        """Every outcome from now on, or after the position `since`: an endless iterator of OutcomeEvent and Gap.

        None means all of them. Outcomes that a queue does not keep are not seen. "Now" is when the iteration begins; to
        be sure of what you insert before, take `await position()` first. It asks the database each `poll_s` seconds.

        Raises InvalidRequest, or DatabaseUnavailable: then go on with the position of the last event.
        """
        at = self._routes.only(queues, "a stream of outcomes")
        reader = Reader(kinds=kinds, queues=queues, outcomes=outcomes, since=since)
        while True:
            events = await self._do(reader.read(), at=at)
            for event in events:
                yield self._routes.marked(at, event)
            if not events:
                await asyncio.sleep(poll_s)

    async def position(self) -> str:
        """The end of the stream of outcomes now, for `outcomes(since=…)`."""
        return await self._do(outcomes.position(), at=self._routes.only(None, "a stream of outcomes"))

    # --- queues -----------------------------------------------------------------------------------------------------

    async def queues(self) -> list[QueueInfo]:
        """All queues, by name."""
        return [info for at in self._routes.targets for info in await self._do(queues.queues(), at=at)]

    async def pause(self, queue: str | None = None) -> int:
        """Pauses a queue (None: all): nothing of it is started; what runs goes on. Returns how many were paused."""
        return sum([await self._do(queues.pause(queue), at=at) for at in self._of(queue)])

    async def resume(self, queue: str | None = None) -> int:
        """Resumes a queue (None: all); returns how many were resumed. Raises UnknownQueue."""
        return sum([await self._do(queues.resume(queue), at=at) for at in self._of(queue)])

    async def set_limits(self, queue: str, **changes: Any) -> dict[str, Any]:
        """Changes `max_per_key`, `rate`, `rate_per_key` or `max_workers_total` of a queue while it runs.

        None takes a change back. Returns what differs from the configuration then. Raises InvalidLimits, UnknownQueue.
        """
        return await self._do(queues.set_limits(queue, changes), at=self._routes.of_queue(queue))

    # --- masters ----------------------------------------------------------------------------------------------------

    async def masters(self) -> list[MasterInfo]:
        """All masters and their workers, as their last heartbeats show them."""
        return [info for at in self._routes.targets for info in await self._do(masters.masters(), at=at)]

    async def drain_masters(self, ids: Iterable[str]) -> list[str]:
        """Asks masters to drain, wherever they run, as TERM does; the ids of those that are there."""
        wanted = given.master_ids(ids)
        return [id_ for at in self._routes.targets for id_ in await self._do(masters.ask_to_drain(wanted), at=at)]

    # --- schedules --------------------------------------------------------------------------------------------------

    async def schedules(self, *, next_ticks: int = schedules.NEXT_TICKS) -> list[ScheduleInfo]:
        """All recurring jobs by name, each with so many coming ticks (default 3)."""
        found = [info for at in self._routes.targets for info in await self._do(schedules.schedules(next_ticks), at=at)]
        return sorted(found, key=lambda info: info.name)

    async def set_schedule(
        self,
        name: str,
        args: Args,
        *,
        kind: str | None = None,
        cron: str | None = None,
        every_s: float | None = None,
        timezone: str = "UTC",
        backfill_s: float = 0.0,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """Adds or changes a recurring job, with the arguments of `wqcore.recurring`; every master fires it.

        `args` is of a declared type, or a mapping together with the `kind`'s name. A new time counts from now. One that
        code or configuration declare is taken over, until it is deleted here.

        Raises InvalidSchedule, UnknownKind, PlannedKind, InvalidArgs, UnknownQueue or DatabaseUnavailable.
        """
        schedule = schedules.checked_schedule(
            self._catalog,
            name,
            args,
            kind,
            cron=cron,
            every_s=every_s,
            timezone=timezone,
            backfill_s=backfill_s,
            **options,
        )
        at = self._routes.of_queue(schedules.queue_of(self._catalog, name, schedule)) if self._routes.several else None
        await self._do(schedules.set_schedule(name, schedule), at=at)

    async def pause_schedule(self, name: str) -> bool:
        """Pauses a recurring job; False when it was paused already. Raises UnknownSchedule."""
        return await self._do(schedules.pause_schedule(name), at=await self._schedule_at(name))

    async def resume_schedule(self, name: str) -> bool:
        """Lets a recurring job go on with its next tick; ticks of the pause are not made up for.

        False when it was not paused. Raises UnknownSchedule.
        """
        return await self._do(schedules.resume_schedule(name), at=await self._schedule_at(name))

    async def trigger_schedule(self, name: str) -> int:
        """Inserts the job of a recurring job now, whatever its ticks, also while it is paused; returns its id.

        Raises UnknownSchedule, or InsertError when its kind or args are refused.
        """
        at = await self._schedule_at(name) or self._routes.home
        return JobId(await self._do(schedules.trigger_schedule(name), at=at), at.name)

    async def delete_schedule(self, name: str) -> None:
        """Removes a recurring job; jobs that it has made stay. Raises UnknownSchedule.

        One that code or configuration declare comes back when such a master starts: pause it instead.
        """
        await self._do(schedules.delete_schedule(name), at=await self._schedule_at(name))

    # --- which database ---------------------------------------------------------------------------------------------

    def _of(self, queue: str | None) -> list[Any]:
        """The database of a queue; None: all."""
        return self._routes.targets if queue is None else [self._routes.of_queue(queue)]

    async def _change(
        self, statement: str, chosen: Chosen, more: dict[str, Any], bite: int, progress: Progress | None
    ) -> Changed:
        """Sends a change to all the chosen jobs, database by database."""
        total = Changed()
        for at, some in self._routes.of_chosen(chosen):
            told = None if progress is None else changes.added_to(total, progress)
            total += await self._do(changes.change(statement, some, more, bite=bite, progress=told), at=at)
        return total

    async def _schedule_at(self, name: str) -> Target | None:
        """Where a recurring job is. Raises InvalidRequest when there is one of that name in several databases."""
        if not self._routes.several:
            return None
        found = [at for at in self._routes.targets if await self._do(schedules.exists(name), at=at)]
        if len(found) > 1:
            where = ", ".join(at.name for at in found)
            raise InvalidRequest(f"schedule {name!r} is in the databases {where}: use client.at(<database>)")
        return found[0] if found else None

    # --- stopping ---------------------------------------------------------------------------------------------------

    async def _stop_waiting(self) -> None:
        for at in self._routes.targets:
            waiters, at.waiters = at.waiters, None
            if waiters is not None:
                await waiters.stop()
