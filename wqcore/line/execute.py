"""Runs claimed jobs on a fixed number of seats; every run ends in exactly one outcome, whatever its handler does.

A seat is one long-lived task that calls handler after handler: a job that never waits costs no task of its own, and
`asyncio.current_task()`, time-outs and task groups work in handlers as in any task. A seat is replaced after a job that
left something behind in its task (a changed context variable, a pending cancellation), so that no job sees another's.

Before a handler's first step its job is written on the worker's sheet of the board, where the master finds it after a
SIGKILL; it stays there until its outcome is in the database.

Time-outs are armed by a number in the seat and kept by one sweep every `SWEEP_S`: no timer a job. A handler that does
not end within `cancel_grace_s` after its cancellation is logged and counted as stuck; its seat stays taken.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from wqcore import backoff, clock
from wqcore.catalog import Catalog, Kind
from wqcore.errors import LeaseLost
from wqcore.job import Job, Row, RunSide
from wqcore.line.bucket import Bucket
from wqcore.line.keys import Keys
from wqcore.line.settle import Again, Ended, Outcomes, error_of
from wqcore.outcome import Cancel, Discard, Retry, Snooze
from wqcore.settings import Limits

log = logging.getLogger("wqcore.task")

SWEEP_S = 0.1
BURST_S = 0.002
"""How long seats run jobs that never wait before the loop gets a turn: a fetch in flight is answered within it."""
UNKNOWN_KIND_DELAY_S = 15.0
UNKNOWN_KIND_GRACE_S = 3600.0
"""A kind that this program does not know is given back for an hour (a rolling deploy), then discarded."""

SUSPECT_HEAD_START_S = 0.05
"""A job whose process died once starts with nothing beside it for this long: 20 of them are all running after 1 s, and
one that kills at once takes no other with it. After a second death it runs alone until it ends."""

TIMEOUT, SHUTDOWN, LEASE, CANCELLED, GONE = "time-out", "shutdown", "lease", "cancel", "gone"
"""Why a run was cancelled. CANCELLED: somebody asked for it. GONE: the job is not ours any more, so it has no outcome."""

REPLACED = "replaced by a newer job of its job key before it started"


class Sheet(Protocol):
    """A worker's part of the board, as far as the executor writes it."""

    def started(self, seat: int, job_id: int, attempt: int, kind: int, began_ns: int) -> None: ...
    def finished(self, seat: int) -> None: ...


class Counters:
    """Totals of one worker since its start."""

    __slots__ = ("cancelled", "completed", "discarded", "interrupted", "retried", "snoozed", "stuck", "timed_out")

    def __init__(self) -> None:
        self.completed = self.retried = self.snoozed = self.discarded = self.cancelled = 0
        self.timed_out = self.interrupted = self.stuck = 0

    def failed(self) -> int:
        """Runs that ended in a retry, or in the end of the job without completion."""
        return self.retried + self.discarded + self.cancelled


class KindStats:
    """Totals of one kind in one worker."""

    __slots__ = ("runs", "seconds")

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0


class Seat:
    """One place where one job at a time runs."""

    __slots__ = ("began", "cancelled_at", "deadline", "idle", "index", "reason", "row", "stuck", "task", "why")

    def __init__(self, index: int) -> None:
        self.index = index
        self.task: asyncio.Task[None] | None = None
        self.row: tuple[Any, ...] | None = None
        self.began = 0.0
        self.deadline = 0.0
        self.idle: asyncio.Future[None] | None = None
        self.why: str | None = None
        self.reason = ""
        self.cancelled_at = 0.0
        self.stuck = False


class Executor:
    """The seats of one shard, the jobs that wait for one, and what became of those that ran."""

    def __init__(
        self,
        *,
        queue: str,
        workers: int,
        catalog: Catalog,
        sheet: Sheet,
        run_side: RunSide,
        on_change: Callable[[], None],
        cancel_grace_s: float,
        log_all_tasks: bool,
    ) -> None:
        self.queue = queue
        self.workers = workers
        self.outcomes = Outcomes()
        self.counters = Counters()
        self.keys = Keys()
        self.bucket: Bucket | None = None
        """The queue's rate, as far as it is this shard's share; None: as fast as it goes."""
        self.ageing_s = 0.0
        self.waiting = 0
        self.running = 0
        self.flush_at = 1
        self.low_water = 0
        self.stats: dict[str, KindStats] = {}
        self.seconds_since: Callable[[int], float] = lambda us: 0.0
        """Seconds since a time of the table (µs since 2000), by the database's clock."""
        self._kinds = {kind.name: (kind, number) for number, kind in enumerate(catalog)}
        self._sheet = sheet
        self._run_side = run_side
        self._on_change = on_change
        self._cancel_grace_s = cancel_grace_s
        self._log_all = log_all_tasks
        self._tiers: dict[int, deque[tuple[Any, ...]]] = {}
        self._order: list[int] = []
        self._seats = [Seat(index) for index in range(workers)]
        self._idle: list[Seat] = []
        self._burst_began = 0.0
        self._sweeper: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self._halted = False
        self.settling = False
        self._granted: set[int] = set()
        self._refill: asyncio.TimerHandle | None = None
        self._suspects: deque[tuple[Any, ...]] = deque()
        self._alone: Seat | None = None
        self._alone_until = 0.0

    def start(self) -> None:
        """Takes the seats. Must be called on the running loop."""
        self._context = contextvars.copy_context()
        for seat in self._seats:
            self._occupy(seat)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="wqcore time-outs")

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Queues claimed jobs, the highest priority first, and wakes a seat."""
        for row in rows:
            if row[Row.DEATHS]:
                self._suspects.append(row)
                continue
            self._tier(self._rank(row)).append(row)
        self.waiting += len(rows)
        self._wake_one()

    def _rank(self, row: tuple[Any, ...]) -> int:
        """The priority that a job has now: with ageing, one more for each `ageing_s` that it has waited."""
        priority: int = row[Row.PRIORITY]
        if self.ageing_s:
            since = row[Row.RUN_AT] if row[Row.RUN_AT] is not None else row[Row.CREATED_AT]
            priority += int(max(0.0, self.seconds_since(since)) / self.ageing_s)
        return priority

    def rank_again(self) -> None:
        """Puts the waiting jobs where their age has brought them."""
        rows = [row for priority in self._order for row in self._tiers[priority]]
        self._tiers.clear()
        self._order = []
        for row in rows:
            self._tier(self._rank(row)).append(row)

    def _tier(self, priority: int) -> deque[tuple[Any, ...]]:
        """The waiting jobs of one priority."""
        tier = self._tiers.get(priority)
        if tier is None:
            tier = self._tiers[priority] = deque()
            self._order = sorted(self._tiers, reverse=True)
        return tier

    def held(self) -> list[int]:
        """The ids of all jobs that wait, are parked, or run; not of those whose outcome waits to be written."""
        ids = [row[Row.ID] for tier in self._tiers.values() for row in tier]
        ids += [row[Row.ID] for row in self._suspects]
        ids += [row[Row.ID] for row in self.keys.parked_rows()]
        ids += [seat.row[Row.ID] for seat in self._seats if seat.row is not None]
        return ids

    def give_back(self, slots: set[int] | None = None) -> list[tuple[Any, ...]]:
        """Drops the jobs of `slots` (None: of all) that have not started, and returns them."""
        parked = self.keys.drop_parked(slots)
        return parked + self._drop_waiting(lambda row: slots is None or row[Row.SLOT] in slots)

    def _drop_waiting(self, chosen: Callable[[tuple[Any, ...]], bool]) -> list[tuple[Any, ...]]:
        """Removes jobs that wait for a seat."""
        dropped: list[tuple[Any, ...]] = []
        for waiting in (self._suspects, *self._tiers.values()):
            rows = [row for row in waiting if chosen(row)]
            if rows:
                dropped += rows
                kept = [row for row in waiting if not chosen(row)]
                waiting.clear()
                waiting.extend(kept)
        self.waiting -= len(dropped)
        for row in dropped:
            if row[Row.ID] in self._granted:
                self._granted.discard(row[Row.ID])
                self.pass_on(row[Row.SERIAL_KEY])
        return dropped

    def cancel_jobs(self, ids: dict[int, str]) -> None:
        """Carries cancellations out: id → reason. Those that run get an outcome when their handler has ended."""
        chosen = set(ids)
        for seat in self._seats:
            if seat.row is not None and seat.row[Row.ID] in chosen and seat.why is None:
                self._cancel(seat, CANCELLED, ids[seat.row[Row.ID]])
        now = clock.monotonic()
        for row in self.keys.drop_jobs(chosen) + self._drop_waiting(lambda row: row[Row.ID] in chosen):
            self.counters.cancelled += 1
            self._end(row, now, "cancelled", ids[row[Row.ID]], started=False)

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

    def running_us(self, job_id: int) -> int:
        """Microseconds since the running job `job_id` started; 0 when it does not run here."""
        now = clock.monotonic()
        return next(
            (int((now - seat.began) * 1e6) for seat in self._seats if seat.row and seat.row[Row.ID] == job_id), 0
        )

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
        await asyncio.wait(tasks, timeout=1.0)

    def _occupy(self, seat: Seat) -> None:
        seat.task = asyncio.get_running_loop().create_task(
            self._sit(seat), name=f"wqcore seat {seat.index}", context=self._context.copy()
        )

    def _wake_one(self) -> None:
        while self._idle and self.waiting:
            idle = self._idle.pop().idle
            if idle is not None and not idle.done():
                idle.set_result(None)
                return

    def _next(self) -> tuple[Any, ...] | None:
        """The next job that may start; a job whose serial key is busy is parked on the way."""
        if self._halted or self._alone is not None:
            return None
        if self.bucket is not None and self.waiting and not self._token():
            return None
        if self._suspects:
            return self._next_suspect()
        for priority in self._order:
            tier = self._tiers[priority]
            while tier:
                row = tier.popleft()
                self.waiting -= 1
                if row[Row.SERIAL_KEY] is None or self._may_start(row):
                    if self.bucket is not None:
                        self.bucket.take(clock.monotonic())
                    return row
        return None

    def _may_start(self, row: tuple[Any, ...]) -> bool:
        """Whether the job's key has room for it; else it is parked."""
        if row[Row.ID] in self._granted:
            self._granted.discard(row[Row.ID])
            return True
        if self.keys.take(row):
            return True
        self._arm_refill()
        if not self.waiting:
            self._on_change()  # all that was fetched is parked, so nobody else will ask for more
        return False

    def _token(self) -> bool:
        """Whether the queue's rate lets another job start; else a timer wakes a seat when it does."""
        assert self.bucket is not None  # noqa: S101 - the caller has looked
        now = clock.monotonic()
        if self.bucket.next_at(now) <= now:
            return True
        self._arm_refill()
        return False

    def _arm_refill(self) -> None:
        """One timer for the next token of the queue or of a key; none while nobody waits for one."""
        now = clock.monotonic()
        at = self.keys.next_refill_at()
        if self.bucket is not None and self.waiting:
            at = min(self.bucket.next_at(now), at if at is not None else math.inf)
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        if at is not None:
            self._refill = asyncio.get_running_loop().call_later(max(0.0, at - now) + 0.0005, self._refilled)

    def _refilled(self) -> None:
        self._refill = None
        for row in self.keys.refilled():
            self._let_in(row)
        self._arm_refill()
        self._wake_one()

    def set_limits(self, limits: Limits, bucket: Bucket | None) -> None:
        """Puts limits in force; jobs that they held back and that may start now do."""
        self.bucket = bucket
        self.keys.limit(limits.max_per_key, limits.rate_per_key)
        for row in self.keys.with_room():
            self._let_in(row)
        self._arm_refill()
        self._wake_one()

    def held_elsewhere(self, keys: dict[str, int]) -> None:
        """How many jobs of each key other shards still run, in slots that are ours now."""
        for key in self.keys.held_elsewhere(keys):
            row = self.keys.next_of(key)
            if row is not None:
                self._let_in(row)
        self._wake_one()

    def _let_in(self, row: tuple[Any, ...]) -> None:
        """A parked job may start: it goes to the head of its tier, and its key counts it as running."""
        self._granted.add(row[Row.ID])
        if row[Row.DEATHS]:
            self._suspects.appendleft(row)
        else:
            self._tier(self._rank(row)).appendleft(row)
        self.waiting += 1

    def _next_suspect(self) -> tuple[Any, ...] | None:
        """The next job that a process has died with, once nothing that has ended could be charged in its place."""
        if self.outcomes or self.settling or (self._suspects[0][Row.DEATHS] > 1 and self.running):
            self._on_change()
            return None
        row = self._suspects.popleft()
        self.waiting -= 1
        if row[Row.SERIAL_KEY] is not None and not self._may_start(row):
            return None
        if self.bucket is not None:
            self.bucket.take(clock.monotonic())
        return row

    def has_suspects(self) -> bool:
        """True while outcomes must be written at once, because a suspect waits for that."""
        return bool(self._suspects)

    def settled(self) -> None:
        """Outcomes have been written: whoever waited for that may start."""
        self.settling = False
        if self.waiting:
            self._wake_one()

    def _head_start_over(self, seat: Seat, row: tuple[Any, ...]) -> None:
        if self._alone is seat and seat.row is row:
            self._let_others_in()

    def _let_others_in(self) -> None:
        self._alone = None
        self._wake_one()

    async def _sit(self, seat: Seat) -> None:
        """The life of a seat: job after job, until one leaves the task unfit for another."""
        loop = asyncio.get_running_loop()
        clean_context = contextvars.copy_context()
        task = seat.task
        while True:
            row = self._next()
            if row is None:
                seat.idle = loop.create_future()
                self._idle.append(seat)
                try:
                    await seat.idle
                finally:
                    seat.idle = None
                self._burst_began = clock.monotonic()
                continue
            if self.waiting and self._idle:
                self._wake_one()
            self.running += 1
            now = await self._run(seat, row)
            self.running -= 1
            if row[Row.SERIAL_KEY] is not None:
                self.pass_on(row[Row.SERIAL_KEY])
            if self.waiting <= self.low_water or len(self.outcomes) >= self.flush_at:
                self._on_change()
            if task is not None and (task.cancelling() or contextvars.copy_context() != clean_context):
                self._occupy(seat)
                return
            if now - self._burst_began > BURST_S:
                await asyncio.sleep(0)
                self._burst_began = clock.monotonic()

    def pass_on(self, key: str) -> None:
        """A job of `key` has ended: the next parked one may start."""
        row = self.keys.end(key)
        if row is not None:
            self._let_in(row)
        elif self.keys.parked:
            self._arm_refill()

    async def _run(self, seat: Seat, row: tuple[Any, ...]) -> float:
        """Runs one job and records its outcome; returns the monotonic time of its end."""
        found = self._kinds.get(row[Row.KIND])
        seat.began = began = clock.monotonic()
        if found is None or found[0].handler is None:
            self._unknown_kind(row, began)
            return began
        if row[Row.MAX_ATTEMPTS] == 0:
            self.counters.cancelled += 1
            self._end(row, began, "cancelled", REPLACED, started=False)
            return began
        kind, number = found
        self._sheet.started(seat.index, row[Row.ID], row[Row.ATTEMPT], number, int(began * 1e9))
        seat.deadline = began + kind.timeout_s
        seat.row = row
        if row[Row.DEATHS]:
            self._alone = seat
            if row[Row.DEATHS] == 1:
                asyncio.get_running_loop().call_later(SUSPECT_HEAD_START_S, self._head_start_over, seat, row)
        if self._log_all:
            log.info("Task started", extra=self._log_fields(row))
        job = Job(row, self.queue, self._run_side)
        try:
            await kind.handler(kind.decode(row[Row.ARGS]), job)  # type: ignore[misc]
        except BaseException as error:  # every way out of a handler is an outcome: also SystemExit, also cancellation
            self._record(seat, row, kind, began, error)
        else:
            outcomes = self.outcomes  # read only now: the shard swaps it while handlers wait
            if job._output is None:
                outcomes.done_ids.append(row[Row.ID])
                outcomes.done_revisions.append(row[Row.REVISION])
                outcomes.done_began.append(began)
            else:
                outcomes.ended.append(Ended(row[Row.ID], row[Row.REVISION], began, "completed", None, job._output))
            self.counters.completed += 1
            if self._log_all:
                log.info("Task completed", extra=self._log_fields(row, began))
        now = clock.monotonic()
        seat.row = None
        if self._alone is seat:
            self._let_others_in()
        seat.why = None
        seat.stuck = False
        self._sheet.finished(seat.index)
        stats = self.stats.get(kind.name)
        if stats is None:
            stats = self.stats[kind.name] = KindStats()
        stats.runs += 1
        stats.seconds += now - began
        return now

    def _record(self, seat: Seat, row: tuple[Any, ...], kind: Kind, began: float, error: BaseException) -> None:
        """The outcome of a handler that did not return."""
        if isinstance(error, GeneratorExit):
            raise error
        if seat.why == GONE:
            self.counters.interrupted += 1
            log.info("Task interrupted", extra=self._log_fields(row, began, error="the job was deleted or replaced"))
            return
        if seat.why == CANCELLED and not isinstance(error, Discard):
            self.counters.cancelled += 1
            self._end(row, began, "cancelled", seat.reason)
            return
        if isinstance(error, asyncio.CancelledError):
            if seat.why in (SHUTDOWN, LEASE) or (seat.why is None and self._halted):
                self.counters.interrupted += 1
                log.info("Task interrupted", extra=self._log_fields(row, began, error=f"cancelled by {seat.why}"))
                return
            if seat.why == TIMEOUT:
                self.counters.timed_out += 1
                self._fail(row, kind, began, f"timed out after {kind.timeout_s:g} s")
            else:
                self._fail(row, kind, began, "the handler raised CancelledError: something it awaited was cancelled")
        elif isinstance(error, Snooze):
            self.counters.snoozed += 1
            self.outcomes.again.append(Again(row[Row.ID], row[Row.REVISION], row[Row.ATTEMPT], error.after_s, None))
        elif isinstance(error, Cancel):
            self.counters.cancelled += 1
            self._end(row, began, "cancelled", error)
        elif isinstance(error, Discard):
            self.counters.discarded += 1
            self._end(row, began, "discarded", error)
        elif isinstance(error, LeaseLost):
            self.counters.interrupted += 1
            log.warning("Task interrupted", extra=self._log_fields(row, began, error=str(error)))
        elif (
            isinstance(error, msgspec.MsgspecError)
            and error.__traceback__ is not None
            and (error.__traceback__.tb_next is None)
        ):
            # raised in this very frame: by the decoder of the args, not by the handler
            self.counters.discarded += 1
            self._end(row, began, "discarded", f"args do not fit {kind.args_type.__name__}: {error}")
        else:
            self._fail(row, kind, began, error, after_s=error.after_s if isinstance(error, Retry) else None)

    def _fail(
        self,
        row: tuple[Any, ...],
        kind: Kind,
        began: float,
        error: BaseException | str,
        *,
        after_s: float | None = None,
    ) -> None:
        attempt = row[Row.ATTEMPT] + 1
        if attempt >= row[Row.MAX_ATTEMPTS]:
            self.counters.discarded += 1
            self._end(row, began, "discarded", error)
            return
        self.counters.retried += 1
        if after_s is None:
            try:
                after_s = backoff.delay_s(kind.backoff, attempt)
            except Exception:  # a policy is user code; a job must not be lost by it
                log.exception("the backoff policy of kind %s failed; using the default", kind.name)
                after_s = backoff.river(attempt)
        self.outcomes.again.append(Again(row[Row.ID], row[Row.REVISION], attempt, after_s, error_of(row, error)))
        log.warning(
            "Task failed", extra=self._log_fields(row, began, error=_shown(error)) | {"retry_in_s": round(after_s, 3)}
        )

    def _end(
        self, row: tuple[Any, ...], began: float, outcome: str, error: BaseException | str, *, started: bool = True
    ) -> None:
        ended = Ended(row[Row.ID], row[Row.REVISION], began, outcome, error_of(row, error), started=started)
        self.outcomes.ended.append(ended)
        log.warning("Task %s", outcome, extra=self._log_fields(row, began, error=_shown(error)))

    def _unknown_kind(self, row: tuple[Any, ...], began: float) -> None:
        """A job that this program has no handler for: given back with a delay, for a grace time."""
        reason = f"no handler for kind {row[Row.KIND]!r} in this program"
        if self.seconds_since(row[Row.CREATED_AT]) < UNKNOWN_KIND_GRACE_S:
            self.counters.snoozed += 1
            self.outcomes.again.append(
                Again(row[Row.ID], row[Row.REVISION], row[Row.ATTEMPT], clock.jittered(UNKNOWN_KIND_DELAY_S), None)
            )
            log.warning("Task given back", extra=self._log_fields(row, began, error=reason))
        else:
            self.counters.discarded += 1
            self._end(row, began, "discarded", f"{reason}, an hour after it was inserted")

    def _log_fields(self, row: tuple[Any, ...], began: float | None = None, error: str | None = None) -> dict[str, Any]:
        fields = {
            "task_kind": row[Row.KIND],
            "job_id": row[Row.ID],
            "queue": self.queue,
            "attempt": row[Row.ATTEMPT] + 1,
        }
        if began is not None:
            fields["duration_ms"] = round((clock.monotonic() - began) * 1000, 2)
        if error is not None:
            fields["error"] = error
        return fields

    async def _sweep(self) -> None:
        """Cancels handlers that are over their time, and counts those that do not end even so."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = clock.monotonic()
            for seat in self._seats:
                if seat.row is None or now < seat.deadline:
                    continue
                if seat.why is None:
                    self._cancel(seat, TIMEOUT)
                elif not seat.stuck and now - seat.cancelled_at > self._cancel_grace_s:
                    seat.stuck = True
                    self.counters.stuck += 1
                    log.error(
                        "Task stuck", extra=self._log_fields(seat.row, seat.began, error="ignores its cancellation")
                    )


def _shown(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__qualname__}: {error_text(error)}"
    return text[:500]


def error_text(error: BaseException) -> str:
    """The message of an error of user code, whose `__str__` may itself raise."""
    try:
        return str(error)
    except Exception:  # see above
        return "(no readable text)"
