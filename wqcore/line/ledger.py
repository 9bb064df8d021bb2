"""Each run is entered once: as completed, to run again, as ended, or as interrupted, which leaves no outcome.

An error of a handler becomes a retry after its kind's backoff, or the end of the job after its last attempt. Entries
are in memory until the shard has written them; a crash before that leaves the job charged or untouched, as the board
shows it, and it runs again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec

from wqcore import backoff, clock
from wqcore.catalog import Kind
from wqcore.errors import LeaseLost
from wqcore.job import Row, table_us
from wqcore.line.seat import CANCELLED, GONE, LEASE, SHUTDOWN, TIMEOUT, Seat
from wqcore.line.settle import Again, Ended, Outcomes, error_of
from wqcore.line.traces import Tracing
from wqcore.line.voice import Kept, Voice
from wqcore.outcome import Cancel, Discard, Retry, Snooze
from wqcore.settings import Logging

log = logging.getLogger("wqcore.task")

UNKNOWN_KIND_DELAY_S = 15.0
UNKNOWN_KINDS_MAX = 1000
"""Unknown kinds whose first sight is remembered; jobs of more, which nobody has in a deploy, go by their own age alone."""


ASKED_FOR = "somebody asked for it"


class Counters:
    """Totals of one worker since its start."""

    __slots__ = ("cancelled", "completed", "discarded", "interrupted", "retried", "snoozed", "stuck", "timed_out")

    def __init__(self) -> None:
        self.completed = self.retried = self.snoozed = self.discarded = self.cancelled = 0
        self.timed_out = self.interrupted = self.stuck = 0

    def failed(self) -> int:
        """Runs that ended in a retry, or in the end of the job without completion."""
        return self.retried + self.discarded + self.cancelled

    def values(self) -> list[int]:
        """All totals, in the order of `__slots__`."""
        return [getattr(self, name) for name in self.__slots__]

    def add(self, before: list[int], now: list[int]) -> None:
        """Adds what has come between two `values` of another."""
        for name, old, new in zip(self.__slots__, before, now, strict=True):
            if new != old:
                setattr(self, name, getattr(self, name) + new - old)


class KindStats:
    """Totals of one kind in one worker."""

    __slots__ = ("counters", "runs", "seconds", "slow", "unstarted")

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self.slow: list[float] = []
        """Seconds of the runs that took longer than `Ledger.slow_from_s`, until somebody takes them in."""
        self.counters = Counters()
        """What became of runs that did not complete; the others completed."""
        self.unstarted = Counters()
        """What became of jobs that never ran."""


class Ledger:
    """The outcomes of one shard that wait to be written, and its totals."""

    def __init__(self, queue: str, log_settings: Logging) -> None:
        self.queue = queue
        self.outcomes = Outcomes()
        self.counters = Counters()
        self.stats: dict[str, KindStats] = {}
        self.others = KindStats()
        """Of jobs whose kind has no handler here."""
        self.slow_from_s = math.inf
        self.on_start_known: Callable[[tuple[Any, ...], float], None] | None = None
        """Told the row and the start of each run whose outcome does not go with a turn, when it ends."""
        self.error_texts = log_settings.errors == "text"
        """Whether the log shows what errors say; their texts can hold args and secrets."""
        self.tracing: Tracing | None = None
        """Puts spans around runs; set before the seats are taken."""
        self._voice = Voice(log_settings)
        self._voices: dict[str, Voice] = {}
        """By kind and alias, once the seats are taken."""
        self.unknown_kind_grace_s = 3600.0
        self._unknown_since: dict[str, float] = {}
        """When this worker first met a kind that its program does not know."""
        self.seconds_since: Callable[[int], float] = lambda us: 0.0
        """Seconds since a time of the table (µs since 2000), by the database's clock."""
        self._halted = False

    def _enter(
        self, seat: Seat, row: tuple[Any, ...], kind: Kind, stats: KindStats, began: float, error: BaseException
    ) -> None:
        """The outcome of a handler that did not return, and what it adds to the totals of its kind."""
        before = self.counters.values()
        self._record(seat, row, kind, began, error)
        stats.counters.add(before, self.counters.values())
        if self.on_start_known is not None:
            self.on_start_known(row, began)

    def _record(self, seat: Seat, row: tuple[Any, ...], kind: Kind, began: float, error: BaseException) -> None:
        """The outcome of a handler that did not return."""
        if isinstance(error, GeneratorExit):
            raise error
        kept = seat.lines
        if seat.why == GONE:
            self.counters.interrupted += 1
            self._say(logging.INFO, "Task interrupted", row, began, error="the job was deleted or replaced")
            return
        if seat.why == CANCELLED and not isinstance(error, Discard):
            self.counters.cancelled += 1
            self._end(row, began, "cancelled", seat.reason, shown=ASKED_FOR, kept=kept)
            return
        if isinstance(error, asyncio.CancelledError):
            if seat.why in (SHUTDOWN, LEASE) or (seat.why is None and self._halted):
                self.counters.interrupted += 1
                self._say(logging.INFO, "Task interrupted", row, began, error=f"cancelled by {seat.why}")
                return
            if seat.why == TIMEOUT:
                self.counters.timed_out += 1
                ending = "" if error.__cause__ is None else "; its thread ended later, with "
                self._fail(
                    row, kind, began,
                    f"timed out after {kind.timeout_s:g} s{ending}{ending and _with_text(error.__cause__)}",
                    shown=f"timed out after {kind.timeout_s:g} s{ending}{ending and _without_text(error.__cause__)}",
                    kept=kept,
                )  # fmt: skip
            else:
                reason = "the handler raised CancelledError: something it awaited was cancelled"
                self._fail(row, kind, began, reason, kept=kept)
        elif isinstance(error, Snooze):
            self.counters.snoozed += 1
            after_s = self._chosen_delay_s(error) or 0.0
            self._snooze(row, after_s)
            if seat.voice is not None and seat.voice.announces(row[Row.ID]):
                self._say(logging.INFO, "Task snoozed", row, began, retry_in_s=round(after_s, 3))
        elif isinstance(error, Cancel):
            self.counters.cancelled += 1
            self._end(row, began, "cancelled", error, kept=kept)
        elif isinstance(error, Discard):
            self.counters.discarded += 1
            self._end(row, began, "discarded", error, kept=kept)
        elif isinstance(error, LeaseLost):
            self.counters.interrupted += 1
            self._say(logging.WARNING, "Task interrupted", row, began, error=str(error))
        elif (
            isinstance(error, msgspec.MsgspecError)
            and error.__traceback__ is not None
            and (error.__traceback__.tb_next is None)
        ):
            # raised in this very frame: by the decoder of the args, not by the handler
            self.counters.discarded += 1
            problem = f"args do not fit {kind.args_type.__name__}"
            self._end(row, began, "discarded", f"{problem}: {error}", shown=problem)  # msgspec quotes values of enums
        else:
            after = self._chosen_delay_s(error) if isinstance(error, Retry) else None
            self._fail(row, kind, began, error, after_s=after, kept=kept)

    def _chosen_delay_s(self, outcome: Retry | Snooze) -> float | None:
        """Seconds from now, by the database's clock, until the time that a handler has chosen; None: it chose none."""
        if outcome.at is None:
            return outcome.after_s
        return max(0.0, -self.seconds_since(table_us(outcome.at)))

    def _fail(
        self,
        row: tuple[Any, ...],
        kind: Kind,
        began: float,
        error: BaseException | str,
        *,
        after_s: float | None = None,
        shown: str | None = None,
        kept: Kept | None = None,
    ) -> None:
        attempt = row[Row.ATTEMPT] + 1
        if attempt >= row[Row.MAX_ATTEMPTS]:
            self.counters.discarded += 1
            self._end(row, began, "discarded", error, shown=shown, kept=kept)
            return
        self.counters.retried += 1
        if after_s is None:
            try:
                after_s = backoff.delay_s(kind.backoff, attempt)
            except Exception:  # a policy is user code; a job must not be lost by it
                log.exception("the backoff policy of kind %s failed; using the default", kind.name)
                after_s = backoff.river(attempt)
        entry = error_of(row, error, kept.lines() if kept else None)
        self.outcomes.again.append(Again(row[Row.ID], row[Row.REVISION], attempt, after_s, entry, created_us=row[Row.CREATED_AT]))
        self._say(
            logging.WARNING, "Task failed", row, began, error=self._shown(error, shown), retry_in_s=round(after_s, 3)
        )

    def _snooze(self, row: tuple[Any, ...], after_s: float) -> None:
        ready_us = row[Row.CREATED_AT] if row[Row.RUN_AT] is None else row[Row.RUN_AT]
        self.outcomes.again.append(
            Again(row[Row.ID], row[Row.REVISION], row[Row.ATTEMPT], after_s, None, ready_us, row[Row.CREATED_AT])
        )

    def _end(
        self,
        row: tuple[Any, ...],
        began: float,
        outcome: str,
        error: BaseException | str,
        *,
        started: bool = True,
        shown: str | None = None,
        kept: Kept | None = None,
    ) -> None:
        """`shown` is what the log may say of an error that quotes others."""
        entry = error_of(row, error, kept.lines() if kept else None)
        self.outcomes.ended.append(
            Ended(row[Row.ID], row[Row.REVISION], began, outcome, entry, started=started, created_us=row[Row.CREATED_AT])
        )
        self._say(logging.WARNING, f"Task {outcome}", row, began, error=self._shown(error, shown))

    def _unknown_kind(self, row: tuple[Any, ...], began: float) -> None:
        """A job that this program has no handler for: given back with a delay, for a grace time.

        The time counts from this worker's first sight of the kind, not from the insert alone: a job that was inserted
        days ago for now can meet a worker of the old release, too.
        """
        kind, now = row[Row.KIND], clock.monotonic()
        reason = f"no handler for kind {kind!r} in this program"
        if len(self._unknown_since) < UNKNOWN_KINDS_MAX:
            self._unknown_since.setdefault(kind, now)
        known_s = now - self._unknown_since.get(kind, -math.inf)
        if min(known_s, self.seconds_since(row[Row.CREATED_AT])) < self.unknown_kind_grace_s:
            self.counters.snoozed += 1
            self._snooze(row, clock.jittered(UNKNOWN_KIND_DELAY_S))
            self._say(logging.WARNING, "Task given back", row, began, error=reason)
        else:
            self.counters.discarded += 1
            self._end(row, began, "discarded", f"{reason}, which has met the kind for {self.unknown_kind_grace_s:g} s")

    def _shown(self, error: BaseException | str, shown: str | None) -> str:
        """What the log says of an error."""
        if isinstance(error, str):
            return error[:500] if self.error_texts or shown is None else shown
        return _with_text(error)[:500] if self.error_texts else _without_text(error)

    def _say(
        self,
        level: int,
        message: str,
        row: tuple[Any, ...],
        began: float | None = None,
        *,
        error: str | None = None,
        retry_in_s: float | None = None,
    ) -> None:
        """A line of a task, where the level of its kind lets it be heard."""
        kind = row[Row.KIND]
        voice = self._voices.get(kind, self._voice)
        if level < voice.level or not log.isEnabledFor(level):
            return
        fields = {"task_kind": kind, "job_id": row[Row.ID], "queue": self.queue, "attempt": row[Row.ATTEMPT] + 1}
        if began is not None:
            fields["duration_ms"] = round((clock.monotonic() - began) * 1000, 2)
        if retry_in_s is not None:
            fields["retry_in_s"] = retry_in_s
        if error is not None:
            fields["error"] = error
        if self.tracing is not None and (trace_id := self.tracing.trace_id(row[Row.METADATA])) is not None:
            fields["trace_id"] = trace_id
        # made here: finding out who calls walks the stack, for a place that the message names as well
        log.handle(log.makeRecord(log.name, level, __file__, 0, message, (), None, extra=fields))


def _with_text(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__qualname__}: {error_text(error)}"


def _without_text(error: BaseException | None) -> str:
    """The class of an error and where it was raised."""
    trace = None if error is None else error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = type(error).__qualname__
    return name if trace is None else f"{name} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def error_text(error: BaseException) -> str:
    """The message of an error of user code, whose `__str__` may itself raise."""
    try:
        return str(error)
    except Exception:  # see above
        return "(no readable text)"
