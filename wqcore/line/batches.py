"""Jobs of a batch kind share one run: each has a seat, and the seats of a batch wait for its end together.

A batch gathers for `max_wait_s` after its first job, or until it is full; then one task runs the handler, under one
time-out. Time-out, shutdown and a lost lease cancel the run, so all its jobs end. A job that is cancelled alone, or is
gone, is dropped: its result is ignored and the others go on. One with a serial key keeps its seat until the run has
ended, because the next job of the key must not run beside it.

On the board each job is a started one, so a crash of the process charges every job of the batch once.
"""

from __future__ import annotations

import asyncio
import contextvars
from types import TracebackType
from typing import Any

from wqcore import clock
from wqcore.job import Job
from wqcore.line import current
from wqcore.line.seat import CANCELLED, GONE, Seat
from wqcore.signature import BatchHandler, BatchItem


class _Place:
    """One job of a batch."""

    def __init__(self, item: BatchItem[Any], seat: Seat) -> None:
        self.item = item
        self.seat = seat
        self.over = False
        self.asked = False
        self.dropped = False
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        self.waiter: asyncio.Future[None] | None = None

    def end(self, error: BaseException | None) -> None:
        self.over, self.error = True, error
        # as it is now: each seat that raises a shared error would add its own frames
        self.traceback = error.__traceback__ if error is not None else None
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class _Batch:
    def __init__(self) -> None:
        self.places: list[_Place] = []
        self.timer: asyncio.TimerHandle | None = None
        self.run: asyncio.Task[None] | None = None
        self.stopped = False

    def stop(self) -> None:
        """Cancels the run, once: a second cancellation would interrupt its cleaning up."""
        if self.run is not None and not self.stopped:
            self.stopped = True
            self.run.cancel()


class Batches:
    """A batch handler as the executor calls it, once a job."""

    def __init__(
        self, handler: BatchHandler, *, places: int, timeout_s: float, context: contextvars.Context, name: str
    ) -> None:
        self._handler = handler
        self._places_max = min(handler.max_batch, places)
        self._timeout_s = timeout_s
        self._context = context
        self._name = name
        self._gathering: _Batch | None = None

    async def __call__(self, args: Any, job: Job) -> None:
        seat = job._run_side
        assert isinstance(seat, Seat)  # noqa: S101 - the executor gives each job its seat
        batch, place = self._gathering, _Place(BatchItem(args, job), seat)
        if batch is None:
            batch = self._gathering = _Batch()
            batch.timer = asyncio.get_running_loop().call_later(self._handler.max_wait_s, self._begin, batch)
        batch.places.append(place)
        if len(batch.places) >= self._places_max:
            self._begin(batch)
        while not place.over:
            place.waiter = asyncio.get_running_loop().create_future()
            try:
                await place.waiter
            except asyncio.CancelledError:
                if self._lets_go(batch, place):
                    raise
        if place.dropped:
            raise asyncio.CancelledError
        if place.error is not None:
            raise place.error.with_traceback(place.traceback)

    def _begin(self, batch: _Batch) -> None:
        """Starts the shared run of a batch; its time begins now."""
        if self._gathering is batch:
            self._gathering = None
        if batch.timer is not None:
            batch.timer.cancel()
        if not batch.places or batch.run is not None:
            return
        deadline = clock.monotonic() + self._timeout_s
        for place in batch.places:
            place.seat.deadline = deadline
        # in the executor's context: the run belongs to no single seat
        loop = asyncio.get_running_loop()
        context = current.context_of_batch(tuple(place.item.job for place in batch.places), self._context)
        batch.run = context.run(loop.create_task, self._run(batch))
        batch.run.set_name(f"wqcore batch of {self._name}")

    async def _run(self, batch: _Batch) -> None:
        places = batch.places
        errors = await self._handler.run([place.item for place in places])
        for place, error in zip(places, errors, strict=True):
            place.end(error)

    def _lets_go(self, batch: _Batch, place: _Place) -> bool:
        """A seat was cancelled: whether it leaves at once."""
        if batch.run is None:
            batch.places.remove(place)
            return True
        if place.asked:
            return True  # a seat is cancelled a second time only when its executor ends
        place.asked = True
        if place.seat.why in (CANCELLED, GONE):
            place.dropped = True
            if not all(other.dropped for other in batch.places):
                return place.item.job.serial_key is None
        batch.stop()
        return False
