"""The methods of both clients over jobs that exist; each sends a request of this room and returns its result.

A method that raised DatabaseUnavailable may have done a part of its bites; calling it again is right for all of them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from wqcore import clock
from wqcore.control import changes, jobs, outcomes, results
from wqcore.control.changes import BITE_JOBS, Changed, Chosen, Progress
from wqcore.control.filters import JobFilter
from wqcore.control.jobs import JobInfo
from wqcore.control.outcomes import POLL_S, Event
from wqcore.db.request import Request
from wqcore.job import JobState

T = TypeVar("T")

EVERYTHING = JobFilter()
CANCELLED = "cancelled by request"


class AsyncControl:
    """Looking at jobs, changing them, waiting for them, following outcomes: the part of `Client`."""

    _waiters: results.Waiters | None = None

    async def _do(self, request: Request[T]) -> T:
        raise NotImplementedError

    # --- looking ----------------------------------------------------------------------------------------------------

    async def job(self, job_id: int) -> JobInfo | None:
        """The job, unfinished or in the history, or None."""
        return await self._do(jobs.job(job_id))

    async def jobs(self, chosen: JobFilter = EVERYTHING, *, limit: int = 100, after: int = 0) -> list[JobInfo]:
        """At most `limit` (1 … 10,000) jobs that match, by id, beyond the id `after`. Raises InvalidRequest."""
        return await self._do(jobs.jobs(chosen, limit, after))

    async def count(self, chosen: JobFilter = EVERYTHING) -> int:
        """How many jobs match, unfinished and in the history; walks them all. Raises InvalidRequest."""
        return await self._do(jobs.count(chosen))

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
        return await self._do(changes.change("control_cancel", chosen, more, bite=bite, progress=progress))

    async def retry(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """Makes jobs run now: those that wait for their time, and finished ones, which come back from the history.

        A job that comes back keeps its id and errors, may be attempted once more at least, and has no deaths. A filter
        must name states. Otherwise as `cancel`.
        """
        return await self._do(
            changes.change("control_retry", chosen, changes.retry(chosen), bite=bite, progress=progress)
        )

    async def reprioritise(
        self, chosen: Chosen, priority: int, *, bite: int = BITE_JOBS, progress: Progress | None = None
    ) -> Changed:
        """Gives waiting jobs another priority (−1000 … 1000, a higher number runs first). Otherwise as `cancel`."""
        more = changes.reprioritise(priority)
        return await self._do(changes.change("control_reprioritise", chosen, more, bite=bite, progress=progress))

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
        return await self._do(changes.change("control_reschedule", chosen, more, bite=bite, progress=progress))

    async def delete(self, chosen: Chosen, *, bite: int = BITE_JOBS, progress: Progress | None = None) -> Changed:
        """Deletes jobs that wait, and finished ones from the history, without a trace. Otherwise as `cancel`."""
        return await self._do(changes.change("control_delete", chosen, {}, bite=bite, progress=progress))

    # --- waiting and following --------------------------------------------------------------------------------------

    async def wait(self, job_id: int, *, timeout_s: float | None = None) -> JobInfo:
        """The job once it has finished, wherever it runs; None: waits for ever.

        Raises TimeoutError, or JobNotFound for a job that is neither unfinished nor in the history.
        """
        if self._waiters is None:
            self._waiters = results.Waiters(lambda ids: self._do(results.ended(ids)))
        try:
            async with asyncio.timeout(timeout_s) as limit:
                while True:
                    kept = await self._waiters.ended(job_id)
                    info = await self._do(results.finished(job_id, kept=kept))
                    if info is not None:
                        return info
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
        reader = outcomes_reader(kinds, queues, outcomes, since)
        while True:
            events = await self._do(reader.read())
            for event in events:
                yield event
            if not events:
                await asyncio.sleep(poll_s)

    async def position(self) -> str:
        """The end of the stream of outcomes now, for `outcomes(since=…)`."""
        return await self._do(outcomes.position())

    async def _stop_waiting(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.stop()


class SyncControl:
    """The same for `SyncClient`: arguments, results and errors are those of `Client`."""

    def _do(self, request: Request[T]) -> T:
        raise NotImplementedError

    def job(self, job_id: int) -> JobInfo | None:
        """As `Client.job`."""
        return self._do(jobs.job(job_id))

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
        reader = outcomes_reader(kinds, queues, outcomes, since)
        while True:
            events = self._do(reader.read())
            yield from events
            if not events:
                clock.sleep(poll_s)

    def position(self) -> str:
        """As `Client.position`."""
        return self._do(outcomes.position())


def outcomes_reader(
    kinds: Sequence[str] | None, queues: Sequence[str] | None, ended: Sequence[JobState | str] | None, since: str | None
) -> outcomes.Reader:
    """A reader of the stream. Raises InvalidRequest."""
    return outcomes.Reader(kinds=kinds, queues=queues, outcomes=ended, since=since)
