"""Waiting for the end of a job, in whatever process it runs, by looking: after 10 ms first, then less and less often.

Nobody notifies a waiter: jobs that nobody waits for pay nothing. A lost connection raises, and the same call may be
repeated; a job that ended meanwhile is found at once. A job that is nowhere to be found cannot be waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from wqcore import clock
from wqcore.control import given
from wqcore.control.jobs import JobInfo, job
from wqcore.db.connect import BigIntArray
from wqcore.db.request import Pause, Query, Request
from wqcore.errors import JobFailed, JobNotFound
from wqcore.job import JobState

LOOK_MIN_S, LOOK_MAX_S, LOOK_GROWTH = 0.010, 0.250, 1.5


def wait(job_id: int, timeout_s: float | None) -> Request[JobInfo]:
    """The job once it has finished. Raises JobNotFound or TimeoutError."""
    timeout_s = given.seconds("timeout_s", timeout_s)
    end = None if timeout_s is None else clock.monotonic() + timeout_s
    delay = LOOK_MIN_S
    while True:
        found = yield from ended([job_id])
        if job_id in found:
            info = yield from finished(job_id, kept=found[job_id])
            if info is not None:
                return info
        left = LOOK_MAX_S if end is None else end - clock.monotonic()
        if left <= 0:
            raise late(job_id, timeout_s)
        yield Pause(min(delay, left))
        delay = min(delay * LOOK_GROWTH, LOOK_MAX_S)


def ended(ids: list[int]) -> Request[dict[int, bool]]:
    """Those of the jobs that are not unfinished any more, and whether the history has them."""
    return dict((yield Query("jobs_ended", {"ids": BigIntArray(ids)})))


def finished(job_id: int, *, kept: bool) -> Request[JobInfo | None]:
    """A job that has ended; None when it was retried since. Raises JobNotFound."""
    info = (yield from job(job_id)) if kept else None
    if info is None:
        raise JobNotFound(
            f"job {job_id} is neither unfinished nor in the history: it never existed (or its insert is not committed), "
            "or it was deleted, or its queue keeps no such outcome, or for a shorter time (see [retention])"
        )
    return info if info.is_finished else None


def late(job_id: int, timeout_s: float | None) -> TimeoutError:
    """The error of a wait that was over first."""
    return TimeoutError(f"job {job_id} has not finished within {timeout_s:g} s; it goes on, so wait again or cancel it")


def output_of(info: JobInfo) -> Any:
    """The output of a finished job. Raises JobFailed when it was discarded or cancelled."""
    if info.state != JobState.COMPLETED:
        raise JobFailed(info.id, info.state, info.last_error)
    return info.output


class Waiters:
    """All that wait in one event loop through one client: one statement a look for all of them.

    `look` sends `ended`. A look that fails fails every waiter; the next waiter begins anew.
    """

    def __init__(self, look: Callable[[list[int]], Awaitable[dict[int, bool]]]) -> None:
        self._look = look
        self._waiting: dict[int, list[asyncio.Future[bool]]] = {}
        self._newcomer = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def ended(self, job_id: int) -> bool:
        """Returns when the job is not unfinished any more: whether the history has it."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, []).append(future)
        self._newcomer.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="wqcore waiting for jobs")
        try:
            return await future
        finally:
            futures = self._waiting.get(job_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(job_id, None)

    async def stop(self) -> None:
        """Ends the looking; whoever still waits is cancelled."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._tell(lambda future: future.cancel())

    async def _run(self) -> None:
        delay = LOOK_MIN_S
        while self._waiting:
            if self._newcomer.is_set():
                self._newcomer.clear()
                delay = LOOK_MIN_S
            try:
                found = await self._look(list(self._waiting))
            except Exception as error:  # whatever it is belongs to those who wait, not to this task
                self._fail(error)
                return
            for job_id, kept in found.items():
                for future in self._waiting.pop(job_id, []):
                    if not future.done():
                        future.set_result(kept)
            try:
                async with asyncio.timeout(delay):
                    await self._newcomer.wait()
                await asyncio.sleep(LOOK_MIN_S)  # whoever comes in the meantime shares the look
            except TimeoutError:
                delay = min(delay * LOOK_GROWTH, LOOK_MAX_S)

    def _fail(self, error: Exception) -> None:
        self._tell(lambda future: future.set_exception(error))

    def _tell(self, tell: Callable[[asyncio.Future[bool]], Any]) -> None:
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            for future in futures:
                if not future.done():
                    tell(future)
