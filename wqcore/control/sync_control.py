"""The methods of `SyncClient` over jobs, queues and schedules: the requests of `asyncio_control.py`, by calls that block."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, Unpack

from wqcore import clock
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


class SyncControl:
    """The same for `SyncClient`: arguments, results and errors are those of `Client`."""

    _catalog: Catalog

    _routes: Routes[Any]

    def _do(self, request: Request[T], conn: Any = None, *, at: Target | None = None) -> T:
        raise NotImplementedError

    def job(self, job_id: int) -> JobInfo | None:
        """As `Client.job`."""
        at = self._routes.of_job(job_id)
        info = self._do(jobs.job(job_id), at=at)
        return None if info is None else self._routes.marked(at, info)

    def owner(self, job_id: int) -> Owner:
        """As `Client.owner`."""
        return self._do(jobs.owner(job_id), at=self._routes.of_job(job_id))

    def jobs(self, chosen: JobFilter = EVERYTHING, *, limit: int = 100, after: int = 0) -> list[JobInfo]:
        """As `Client.jobs`."""
        at = self._routes.of_filter(chosen)
        if len(at) > 1:
            self._routes.only(chosen.queues, "a page of jobs")
        return [self._routes.marked(at[0], info) for info in self._do(jobs.jobs(chosen, limit, after), at=at[0])]

    def count(self, chosen: JobFilter = EVERYTHING) -> int:
        """As `Client.count`."""
        return sum([self._do(jobs.count(chosen), at=at) for at in self._routes.of_filter(chosen)])

    def cancel(
        self, chosen: Chosen, *, reason: str = CANCELLED, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """As `Client.cancel`."""
        more = changes.cancel(chosen, reason)
        return self._change("control_cancel", chosen, more, bite, progress)

    def retry(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """As `Client.retry`."""
        return self._change("control_retry", chosen, changes.retry(chosen), bite, progress)

    def reprioritise(
        self, chosen: Chosen, priority: int, *, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """As `Client.reprioritise`."""
        more = changes.reprioritise(priority)
        return self._change("control_reprioritise", chosen, more, bite, progress)

    def reschedule(
        self,
        chosen: Chosen,
        run_at: dt.datetime | dt.timedelta,
        *,
        bite: int = BITE_JOBS,
        progress: Progress | None = None,
    ) -> Changed:
        """As `Client.reschedule`."""
        more = changes.reschedule(run_at)
        return self._change("control_reschedule", chosen, more, bite, progress)

    def delete(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """As `Client.delete`."""
        return self._change("control_delete", chosen, {}, bite, progress)

    def wait(self, job_id: int, *, timeout_s: float | None = None) -> JobInfo:
        """As `Client.wait`."""
        at = self._routes.of_job(job_id)
        return self._routes.marked(at, self._do(results.wait(job_id, timeout_s), at=at))

    def result(self, job_id: int, *, timeout_s: float | None = None) -> Any:
        """As `Client.result`."""
        return results.output_of(self.wait(job_id, timeout_s=timeout_s))

    def outcomes(
        self,
        *,
        kinds: Sequence[str] | None = None,
        queues: Sequence[str] | None = None,
        outcomes: Sequence[JobState | str] | None = None,
        since: str | None = None,
        poll_s: float = POLL_S,
    ) -> Iterator[Event]:
        """As `Client.outcomes`: an endless, blocking iterator."""
        at = self._routes.only(queues, "a stream of outcomes")
        reader = Reader(kinds=kinds, queues=queues, outcomes=outcomes, since=since)
        while True:
            events = self._do(reader.read(), at=at)
            for event in events:
                yield self._routes.marked(at, event)
            if not events:
                clock.sleep(poll_s)

    def position(self) -> str:
        """As `Client.position`."""
        return self._do(outcomes.position(), at=self._routes.only(None, "a stream of outcomes"))

    # --- queues -----------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueInfo]:
        """As `Client.queues`."""
        return [info for at in self._routes.targets for info in self._do(queues.queues(), at=at)]

    def pause(self, queue: str | None = None) -> int:
        """As `Client.pause`."""
        return sum([self._do(queues.pause(queue), at=at) for at in self._of(queue)])

    def resume(self, queue: str | None = None) -> int:
        """As `Client.resume`."""
        return sum([self._do(queues.resume(queue), at=at) for at in self._of(queue)])

    def set_limits(self, queue: str, **changes: Any) -> dict[str, Any]:
        """As `Client.set_limits`."""
        return self._do(queues.set_limits(queue, changes), at=self._routes.of_queue(queue))

    # --- masters ----------------------------------------------------------------------------------------------------

    def masters(self) -> list[MasterInfo]:
        """As `Client.masters`."""
        return [info for at in self._routes.targets for info in self._do(masters.masters(), at=at)]

    def drain_masters(self, ids: Iterable[str]) -> list[str]:
        """As `Client.drain_masters`."""
        wanted = given.master_ids(ids)
        return [id_ for at in self._routes.targets for id_ in self._do(masters.ask_to_drain(wanted), at=at)]

    # --- schedules --------------------------------------------------------------------------------------------------

    def schedules(self, *, next_ticks: int = schedules.NEXT_TICKS) -> list[ScheduleInfo]:
        """As `Client.schedules`."""
        found = [info for at in self._routes.targets for info in self._do(schedules.schedules(next_ticks), at=at)]
        return sorted(found, key=lambda info: info.name)

    def set_schedule(
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
        """As `Client.set_schedule`."""
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
        self._do(schedules.set_schedule(name, schedule), at=at)

    def pause_schedule(self, name: str) -> bool:
        """As `Client.pause_schedule`."""
        return self._do(schedules.pause_schedule(name), at=self._schedule_at(name))

    def resume_schedule(self, name: str) -> bool:
        """As `Client.resume_schedule`."""
        return self._do(schedules.resume_schedule(name), at=self._schedule_at(name))

    def trigger_schedule(self, name: str) -> int:
        """As `Client.trigger_schedule`."""
        at = self._schedule_at(name) or self._routes.home
        return JobId(self._do(schedules.trigger_schedule(name), at=at), at.name)

    def delete_schedule(self, name: str) -> None:
        """As `Client.delete_schedule`."""
        self._do(schedules.delete_schedule(name), at=self._schedule_at(name))

    # --- which database ---------------------------------------------------------------------------------------------

    def _of(self, queue: str | None) -> list[Any]:
        """The database of a queue; None: all."""
        return self._routes.targets if queue is None else [self._routes.of_queue(queue)]

    def _change(
        self, statement: str, chosen: Chosen, more: dict[str, Any], bite: int, progress: Progress | None
    ) -> Changed:
        """Sends a change to all the chosen jobs, database by database."""
        total = Changed()
        for at, some in self._routes.of_chosen(chosen):
            told = None if progress is None else changes.added_to(total, progress)
            total += self._do(changes.change(statement, some, more, bite=bite, progress=told), at=at)
        return total

    def _schedule_at(self, name: str) -> Target | None:
        """Where a recurring job is. Raises InvalidRequest when there is one of that name in several databases."""
        if not self._routes.several:
            return None
        found = [at for at in self._routes.targets if self._do(schedules.exists(name), at=at)]
        if len(found) > 1:
            where = ", ".join(at.name for at in found)
            raise InvalidRequest(f"schedule {name!r} is in the databases {where}: use client.at(<database>)")
        return found[0] if found else None
