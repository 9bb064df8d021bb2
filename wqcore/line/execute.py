"""Runs claimed jobs on a fixed number of seats; every run ends in exactly one outcome, whatever its handler does.

A seat is one long-lived task that calls handler after handler: a job that never waits costs no task of its own, and
`asyncio.current_task()`, time-outs and task groups work in handlers as in any task. A seat is replaced after a job that
left something behind in its task (a changed context variable, a pending cancellation), so that no job sees another's.

Before a handler's first step its job is written on the worker's sheet of the board, where the master finds it after a
SIGKILL; it stays there until its outcome is in the database.

Time-outs are armed by a number in the seat and kept by one sweep every `SWEEP_S`: no timer a job. A handler that does
not end within `cancel_grace_s` after its cancellation is logged and counted as stuck; its seat stays taken.

What runs a kind is put together once, when the seats are taken: its handler, or a thread or a batch around it
(`threads.py`, `batches.py`), in the program's middleware.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Any

from wqcore import around, clock
from wqcore.catalog import Catalog, Kind
from wqcore.job import Job, Row
from wqcore.line import current
from wqcore.line.batches import Batches
from wqcore.line.ledger import ASKED_FOR, KindStats
from wqcore.line.seat import CANCELLED, GONE, LEASE, SHUTDOWN, TIMEOUT, Owner, Seat, Sheet
from wqcore.line.settle import Ended
from wqcore.line.threads import InThread, Threads
from wqcore.line.voice import SHARES, SPREAD, Kept, Voice
from wqcore.line.waiting import Waiting
from wqcore.settings import Logging
from wqcore.signature import BatchHandler, Handler, ThreadHandler

__all__ = ["CANCELLED", "GONE", "LEASE", "SHUTDOWN", "TIMEOUT", "Executor", "Sheet"]

log = logging.getLogger("wqcore.task")

SWEEP_S = 0.1
BURST_S = 0.002
"""How long seats run jobs that never wait before the loop gets a turn: a fetch in flight is answered within it."""
SUSPECT_HEAD_START_S, SUSPECTS_HEAD_START_S = 0.05, 0.5
"""A job whose process died once starts with nothing beside it for this long, so that one which kills at once takes no other with
it; after a second death it runs alone until it ends. The second number is shared by all that wait: with the first for each, the
jobs of a worker that ran 200 when it was killed needed ten seconds to start again, and so they need two. One that kills its
process a little later takes others along then, which run quite alone the next time: none is discarded for it."""

_ID, _KIND, _REVISION, _ATTEMPT, _MAX_ATTEMPTS, _DEATHS, _SERIAL_KEY, _ARGS = (
    Row.ID, Row.KIND, Row.REVISION, Row.ATTEMPT, Row.MAX_ATTEMPTS, Row.DEATHS, Row.SERIAL_KEY, Row.ARGS,
)  # fmt: skip
"""Globals, because on Python 3.11 each look at an attribute of a class costs a job 25 ns."""

REPLACED = "replaced by a newer job of its job key before it started"


class Runnable:
    """What a seat needs to run a kind, one look away each."""

    __slots__ = ("call", "decode", "kind", "number", "stats", "timeout_s", "voice")

    def __init__(
        self,
        kind: Kind,
        number: int,
        call: Handler,
        decode: Callable[[bytes], Any],
        timeout_s: float,
        stats: KindStats,
        voice: Voice,
    ) -> None:
        self.kind = kind
        self.number = number
        self.call = call
        self.decode = decode
        self.timeout_s = timeout_s
        self.stats = stats
        self.voice = voice


def head_start_s(others: int) -> float:
    """How long a job that one process has died with starts alone, when so many such jobs wait behind it."""
    return min(SUSPECT_HEAD_START_S, SUSPECTS_HEAD_START_S / (others + 1))


class Executor(Waiting):
    """The seats of one shard, the jobs that wait for one, and what became of those that ran."""

    def __init__(
        self,
        *,
        queue: str,
        workers: int,
        catalog: Catalog,
        sheet: Sheet,
        run_side: Owner,
        on_change: Callable[[], None],
        cancel_grace_s: float,
        log_settings: Logging,
    ) -> None:
        super().__init__(queue, on_change, log_settings)
        self.workers = workers
        self.flush_at = 1
        self.low_water = 0
        self.threads = Threads(queue)
        self._catalog = catalog
        self._kinds: dict[str, Runnable] = {}
        self._sheet = sheet
        self._cancel_grace_s = cancel_grace_s
        self._log_settings = log_settings
        self._attentive = False
        """Whether any kind's lines are announced, sampled, kept, or of a level of their own: else no job pays for that."""
        self._seats = [Seat(index, run_side, lambda: self._halted) for index in range(workers)]
        self._burst_began = 0.0
        self._sweeper: asyncio.Task[None] | None = None
        self._at_work = asyncio.Event()
        """Set by a seat that leaves its idling, cleared by the sweep that finds no run."""
        self._context = contextvars.copy_context()

    def start(self) -> None:
        """Takes the seats. Must be called on the running loop."""
        loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        current.follow(loop)
        for number, kind in enumerate(self._catalog):
            if kind.handler is not None:
                self.stats.setdefault(kind.name, KindStats())
                call = around.composed(self._caller(kind, kind.handler), self._catalog.work_middleware)
                if self.tracing is not None and not isinstance(kind.handler, BatchHandler):
                    call = self.tracing.running(call)
                voice = Voice(self._log_settings.of_kind(kind.name))
                runnable = Runnable(kind, number, call, kind.decode, kind.timeout_s, self.stats[kind.name], voice)
                self._kinds |= dict.fromkeys((kind.name, *kind.aliases), runnable)
                self._voices |= dict.fromkeys((kind.name, *kind.aliases), voice)
        self._attentive = any(voice.asks() for voice in self._voices.values()) or bool(self._log_settings.kinds)
        for seat in self._seats:
            seat.stand_on(loop)
            self._occupy(seat)
        self._sweeper = loop.create_task(self._sweep(), name="wqcore time-outs")

    def _caller(self, kind: Kind, handler: Handler) -> Handler:
        """What calls the handler of a kind in this worker."""
        if isinstance(handler, ThreadHandler):
            return InThread(handler.call, self.threads)
        if not isinstance(handler, BatchHandler):
            return handler
        if handler.max_batch > self.workers and kind.queue == self.queue:
            log.warning(
                "kind %s has max_batch = %d, but each job of a batch takes one of this process's %d workers, so its "
                "batches stay at %d: raise queues.%s.workers or lower processes",
                kind.name, handler.max_batch, self.workers, self.workers, self.queue,
            )  # fmt: skip
        if self.tracing is not None:
            handler = self.tracing.batch(handler)
        return Batches(
            handler, places=self.workers, timeout_s=kind.timeout_s, context=self._context, name=kind.name
        )

    def held(self) -> list[int]:
        """The ids of all jobs that wait, are parked, or run; not of those whose outcome waits to be written."""
        return [row[_ID] for row in self._held_rows()]

    def _held_rows(self) -> list[tuple[Any, ...]]:
        rows = [row for tier in self._tiers.values() for row in tier]
        rows += self._suspects
        rows += self.keys.parked_rows()
        rows += [seat.row for seat in self._seats if seat.row is not None]
        return rows

    def created(self) -> dict[int, int]:
        """When each job in memory was inserted, in µs since 2000, also of those whose outcome waits to be written."""
        return {row[_ID]: row[Row.CREATED_AT] for row in self._held_rows()} | dict(self.outcomes.created())

    def begun(self) -> list[tuple[Any, ...]]:
        """The rows of jobs that run, or have completed and are not acknowledged."""
        return [seat.row for seat in self._seats if seat.row is not None] + self.outcomes.done

    def cancel_jobs(self, ids: dict[int, str]) -> None:
        """Carries cancellations out: id → reason. Those that run get an outcome when their handler has ended."""
        chosen = set(ids)
        for seat in self._seats:
            if seat.row is not None and seat.row[Row.ID] in chosen and seat.why is None:
                self._cancel(seat, CANCELLED, ids[seat.row[Row.ID]])
        now = clock.monotonic()
        for row in self.keys.drop_jobs(chosen) + self._drop_waiting(lambda row: row[Row.ID] in chosen):
            self._cancelled_unstarted(row)
            self._end(row, now, "cancelled", ids[row[Row.ID]], started=False, shown=ASKED_FOR)

    def drop_jobs(self, ids: set[int]) -> None:
        """Forgets jobs that are gone from the table; a run of one is cancelled and has no outcome."""
        self.keys.drop_jobs(ids)
        self._drop_waiting(lambda row: row[Row.ID] in ids)
        for seat in self._seats:
            if seat.row is not None and seat.row[Row.ID] in ids and seat.why is None:
                self._cancel(seat, GONE, "")

    def _cancel(self, seat: Seat, why: str, reason: str = "") -> None:
        seat.why, seat.reason, seat.cancelled_at = why, reason, clock.monotonic()
        if seat.task is not None:
            seat.task.cancel()

    def halt(self) -> None:
        """Starts nothing more; what runs goes on."""
        self._halted = True

    def resume(self) -> None:
        """Undoes `halt`."""
        self._halted = False
        self._wake_one()

    def kept_of(self, job_id: int) -> str | None:
        """The lines that the running job `job_id` has to keep so far, as JSON. May be asked from any thread."""
        held = ((seat.row, seat.lines) for seat in self._seats)
        lines = next((lines for row, lines in held if row is not None and row[Row.ID] == job_id), None)
        return lines.json() if lines else None

    def running_us(self, job_id: int) -> int:
        """Microseconds since the running job `job_id` started; 0 when it does not run here."""
        now = clock.monotonic()
        # a thread may ask while the loop ends another seat's run, so each row is read once
        rows = ((seat.row, seat.began) for seat in self._seats)
        return next((int((now - began) * 1e6) for row, began in rows if row is not None and row[Row.ID] == job_id), 0)

    def cancel_running(self, why: str) -> None:
        """Cancels every running handler; `why` is SHUTDOWN or LEASE: the attempt is given back."""
        for seat in self._seats:
            if seat.row is not None and seat.why is None:
                self._cancel(seat, why)

    async def close(self) -> None:
        """Ends the seats. Whatever still runs is cancelled and gets no outcome."""
        self._halted = True
        tasks = [seat.task for seat in self._seats if seat.task is not None]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        if self._refill is not None:
            self._refill.cancel()
        for task in tasks:
            task.cancel()
        self.threads.close()
        await asyncio.wait(tasks, timeout=1.0)

    def _occupy(self, seat: Seat) -> None:
        seat.task = asyncio.get_running_loop().create_task(
            self._sit(seat), name=f"wqcore seat {seat.index}", context=current.context_of(seat, self._context)
        )

    def _head_start_over(self, seat: Seat, row: tuple[Any, ...]) -> None:
        if self._alone is seat and seat.row is row:
            self._let_others_in()

    def _let_others_in(self) -> None:
        self._alone = None
        self._wake_one()

    async def _sit(self, seat: Seat) -> None:
        """The life of a seat: job after job, until one leaves the task unfit for another.

        All of a job's way is in this one loop, because a call a job is a twentieth of what a job costs here.
        """
        loop = asyncio.get_running_loop()
        clean_context = contextvars.copy_context()
        task, index, queue, kinds, counters = seat.task, seat.index, self.queue, self._kinds, self.counters
        take, started, finished, monotonic = self._next, self._sheet.started, self._sheet.finished, clock.monotonic
        attentive, announced = self._attentive, False
        kept: Kept | None = None
        slow_from_s = self.slow_from_s
        now = monotonic()
        self._at_work.set()
        while True:
            row = take()
            if row is None:
                seat.idle = loop.create_future()
                self._idle.append(seat)
                try:
                    await seat.idle
                finally:
                    seat.idle = None
                self._at_work.set()
                self._burst_began = now = monotonic()
                continue
            if self._idle and self.waiting:
                self._wake_one()
            self.running += 1
            found = kinds.get(row[_KIND])
            if found is None or row[_MAX_ATTEMPTS] == 0:
                self._not_run(row, now, known=found is not None)
            else:
                seat.began = began = now
                started(index, row[_ID], row[_ATTEMPT], found.number, began)
                seat.deadline = began + found.timeout_s
                seat.row = row
                if row[_DEATHS]:
                    self._leave_alone(seat, row)
                if attentive:
                    seat.voice, seat.lines = found.voice, None
                    announced = row[_ID] * SPREAD % SHARES < found.voice.announced_below
                    if announced:
                        self._say(logging.INFO, "Task started", row)
                seat.job = job = Job(row, queue, seat)
                try:
                    await found.call(found.decode(row[_ARGS]), job)
                except BaseException as error:  # every way out of a handler is an outcome: SystemExit, cancellation too
                    self._enter(seat, row, found.kind, found.stats, began, error)
                    self._on_change()
                else:
                    outcomes = self.outcomes  # read only now: the shard swaps it while handlers wait
                    if attentive:
                        kept = seat.lines
                    if job._output is None and not kept:
                        outcomes.done.append(row)
                        outcomes.done_began.append(began)
                    else:
                        text = kept.json() if kept else None
                        outcomes.ended.append(
                            Ended(
                                row[_ID], row[_REVISION], began, "completed", None, job._output,
                                log=text, created_us=row[Row.CREATED_AT],
                            )
                        )
                        if self.on_start_known is not None:
                            self.on_start_known(row, began)
                    counters.completed += 1
                    if announced:
                        self._say(logging.INFO, "Task completed", row, began)
                now = monotonic()
                seat.row = seat.job = None
                if self._alone is seat:
                    self._let_others_in()
                if seat.why is not None:
                    seat.why, seat.stuck = None, False
                finished(index, row[_ID], row[_ATTEMPT])
                stats = found.stats
                stats.runs += 1
                stats.seconds += (seconds := now - began)
                if seconds > slow_from_s:
                    stats.slow.append(seconds)
            self.running -= 1
            if row[_SERIAL_KEY] is not None:
                self.pass_on(row[_SERIAL_KEY])
            if self.waiting <= self.low_water or len(self.outcomes.done) >= self.flush_at:
                self._on_change()
            if task is not None and (task.cancelling() or contextvars.copy_context() != clean_context):
                self._occupy(seat)
                return
            if now - self._burst_began > BURST_S:
                await asyncio.sleep(0)
                self._burst_began = now = monotonic()

    def _not_run(self, row: tuple[Any, ...], now: float, *, known: bool) -> None:
        """A job that is not run: its kind is unknown, or its job key was taken from it after its claim."""
        if not known:
            before = self.counters.values()
            self._unknown_kind(row, now)
            self.others.unstarted.add(before, self.counters.values())
            return
        self._cancelled_unstarted(row)
        self._end(row, now, "cancelled", REPLACED, started=False)

    def _cancelled_unstarted(self, row: tuple[Any, ...]) -> None:
        self.counters.cancelled += 1
        found = self._kinds.get(row[_KIND])
        (self.others if found is None else found.stats).unstarted.cancelled += 1

    def _leave_alone(self, seat: Seat, row: tuple[Any, ...]) -> None:
        """Nothing else starts beside a job that a process has died with: for a while, or until it ends."""
        self._alone = seat
        if row[_DEATHS] == 1:
            asyncio.get_running_loop().call_later(head_start_s(len(self._suspects)), self._head_start_over, seat, row)

    async def _sweep(self) -> None:
        """Cancels handlers that are over their time, and counts those that do not end even so; sleeps while none runs."""
        while True:
            await self._at_work.wait()
            await asyncio.sleep(SWEEP_S)
            if not self.running:
                self._at_work.clear()
            now = clock.monotonic()
            for seat in self._seats:
                if seat.row is None or (now < seat.deadline and seat.why is None):
                    continue
                if seat.why is None:
                    self._cancel(seat, TIMEOUT)
                elif not seat.stuck and now - seat.cancelled_at > self._cancel_grace_s:
                    seat.stuck = True
                    self.counters.stuck += 1
                    self._say(logging.ERROR, "Task stuck", seat.row, seat.began, error="ignores its cancellation")
