"""The methods of `SyncClient` over jobs, queues and schedules: the requests of `asyncio_control.py`, by calls that block."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, Unpack

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.control import changes, jobs, masters, outcomes, queues, results, schedules
from wqcore.control.changes import BITE_JOBS, CANCELLED, Changed, Chosen, Progress
from wqcore.control.filters import EVERYTHING, JobFilter
from wqcore.control.jobs import JobInfo, Owner
from wqcore.control.masters import MasterInfo
from wqcore.control.outcomes import POLL_S, Event, Reader
from wqcore.control.queues import QueueInfo
from wqcore.control.schedules import Args, ScheduleInfo
from wqcore.db.request import Request
from wqcore.job import JobState
from wqcore.recurring import ScheduleOptions

T = TypeVar("T")


class SyncControl:
    """The same for `SyncClient`: arguments, results and errors are those of `Client`."""

    _catalog: Catalog

    def _do(self, request: Request[T]) -> T:
        raise NotImplementedError

    def job(self, job_id: int) -> JobInfo | None:
        """As `Client.job`."""
        return self._do(jobs.job(job_id))

    def owner(self, job_id: int) -> Owner:
        """As `Client.owner`."""
        return self._do(jobs.owner(job_id))

    def jobs(self, chosen: JobFilter = EVERYTHING, *, limit: int = 100, after: int = 0) -> list[JobInfo]:
        """As `Client.jobs`."""
        return self._do(jobs.jobs(chosen, limit, after))

    def count(self, chosen: JobFilter = EVERYTHING) -> int:
        """As `Client.count`."""
        return self._do(jobs.count(chosen))

    def cancel(
        self, chosen: Chosen, *, reason: str = CANCELLED, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """As `Client.cancel`."""
        more = changes.cancel(chosen, reason)
        return self._do(changes.change("control_cancel", chosen, more, bite=bite, progress=progress))

    def retry(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """As `Client.retry`."""
        return self._do(changes.change("control_retry", chosen, changes.retry(chosen), bite=bite, progress=progress))

    def reprioritise(
        self, chosen: Chosen, priority: int, *, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """As `Client.reprioritise`."""
        more = changes.reprioritise(priority)
        return self._do(changes.change("control_reprioritise", chosen, more, bite=bite, progress=progress))

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
        return self._do(changes.change("control_reschedule", chosen, more, bite=bite, progress=progress))

    def delete(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """As `Client.delete`."""
        return self._do(changes.change("control_delete", chosen, {}, bite=bite, progress=progress))

    def wait(self, job_id: int, *, timeout_s: float | None = None) -> JobInfo:
        """As `Client.wait`."""
        return self._do(results.wait(job_id, timeout_s))

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
        reader = Reader(kinds=kinds, queues=queues, outcomes=outcomes, since=since)
        while True:
            events = self._do(reader.read())
            yield from events
            if not events:
                clock.sleep(poll_s)

    def position(self) -> str:
        """As `Client.position`."""
        return self._do(outcomes.position())

    # --- queues -----------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueInfo]:
        """As `Client.queues`."""
        return self._do(queues.queues())

    def pause(self, queue: str | None = None) -> int:
        """As `Client.pause`."""
        return self._do(queues.pause(queue))

    def resume(self, queue: str | None = None) -> int:
        """As `Client.resume`."""
        return self._do(queues.resume(queue))

    def set_limits(self, queue: str, **changes: Any) -> dict[str, Any]:
        """As `Client.set_limits`."""
        return self._do(queues.set_limits(queue, changes))

    # --- masters ----------------------------------------------------------------------------------------------------

    def masters(self) -> list[MasterInfo]:
        """As `Client.masters`."""
        return self._do(masters.masters())

    def drain_masters(self, ids: Iterable[str]) -> list[str]:
        """As `Client.drain_masters`."""
        return self._do(masters.ask_to_drain(ids))

    # --- schedules --------------------------------------------------------------------------------------------------

    def schedules(self, *, next_ticks: int = schedules.NEXT_TICKS) -> list[ScheduleInfo]:
        """As `Client.schedules`."""
        return self._do(schedules.schedules(next_ticks))

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
        self._do(schedules.set_schedule(name, schedule))

    def pause_schedule(self, name: str) -> bool:
        """As `Client.pause_schedule`."""
        return self._do(schedules.pause_schedule(name))

    def resume_schedule(self, name: str) -> bool:
        """As `Client.resume_schedule`."""
        return self._do(schedules.resume_schedule(name))

    def trigger_schedule(self, name: str) -> int:
        """As `Client.trigger_schedule`."""
        return self._do(schedules.trigger_schedule(name))

    def delete_schedule(self, name: str) -> None:
        """As `Client.delete_schedule`."""
        self._do(schedules.delete_schedule(name))
