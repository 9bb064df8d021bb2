"""Fires recurring jobs: each tick makes its job once, however many keepers try and whichever of them dies.

A schedule's row holds `next_tick`, the first tick that nobody has dealt with (null: the first one after `updated_at`).
A keeper that finds it due computes the ticks up to now by the database's clock and, in one transaction, moves the row
(`schedule_claim.sql`, conditional on what it saw) and inserts a job for each of them (`schedule_fire.sql`). Whoever comes
second finds the row moved and inserts nothing. A crash before the commit leaves the row as it was, and another keeper,
or this one when it is back, fires the same ticks.

Ticks that were missed are made up for when they are not older than the schedule's `backfill_s`, at least
`MISSED_S_MIN`; older ones are left out, with a line in the log. What a forward step of the database's clock jumps over
was not missed by anybody: it is fired however old it looks. A backward step fires nothing twice, because neither
`next_tick` nor `last_tick` goes back; ticks go on when the clock has caught up.

A schedule that cannot fire (its kind is gone, `enqueue` refuses its args, its row is locked) keeps its due tick, is
noted in `last_error`, tried again after a pause, and stops no other.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import msgspec
import psycopg

from wqcore import clock, ticks
from wqcore.db import faults
from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements

log = logging.getLogger("wqcore.schedules")

LOOK_EVERY_S = 1.0
"""A notification that was lost costs no more than this."""
MISSED_S_MIN = 60.0
"""A keeper is replaced within seconds, a host within `dead_after_s` and a rolling deploy within a minute."""
STEP_S_MAX = 7_200.0
"""A clock that steps further than this was set, not corrected (and a machine that was suspended looks the same): what it
jumps over counts as missed."""
TICKS_MAX = 1_000
"""Ticks that one pass fires, over all schedules; the rest is fired in the next one, so that the heartbeat goes on."""
SCHEDULES_MAX = 1_000
SKIPPED_COUNTED_MAX = 1_000
"""Only for the log. A cron tick takes about 0.1 ms to compute, and the heartbeat waits meanwhile."""
PASS_S = 1.0
"""A pass that has taken longer than this goes on later: the heartbeat waits for it."""
LOCK_TIMEOUT_MS = 300
"""An open transaction of a user's that holds the schedule, or the job key of its job, must not hold up the keeper."""
TRY_AGAIN_S = 5.0
LOG_AGAIN_S = 60.0
NEVER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
"""`next_tick` of a schedule that ticks no more; PostgreSQL's infinity has no datetime."""


class Due(NamedTuple):
    """A schedule whose tick is near, as `schedule_due.sql` returns it."""

    name: str
    cron: str | None
    every_s: float | None
    timezone: str
    backfill_s: float
    last_tick: dt.datetime | None
    next_tick: dt.datetime | None
    version: dt.datetime


class Plan(NamedTuple):
    """What is to be done with a schedule now."""

    fire: list[dt.datetime]
    skipped: int
    """Missed ticks that are too old; counted up to SKIPPED_COUNTED_MAX."""
    next_tick: dt.datetime


def plan(due: Due, now: dt.datetime, oldest: dt.datetime, budget: int) -> Plan:
    """The ticks up to `now`, at most `budget` of them; those before `oldest` are skipped. Raises ValueError."""
    timing = ticks.made(due.cron, due.every_s, due.timezone)
    first = due.next_tick or timing.after(due.version)
    if first is not None and due.last_tick is not None and first <= due.last_tick:
        first = timing.after(due.last_tick)
    skipped = 0
    if first is not None and first < oldest:
        skipped = 1 + sum(1 for _ in islice(_following(timing, first, oldest, inclusive=False), SKIPPED_COUNTED_MAX))
        first = timing.after(oldest - dt.timedelta(microseconds=1))
    if first is None:
        return Plan([], skipped, NEVER)
    if first > now:
        return Plan([], skipped, first)
    fire = [first, *islice(_following(timing, first, now, inclusive=True), budget - 1)]
    return Plan(fire, skipped, timing.after(fire[-1]) or NEVER)


class Cron:
    """The schedules of one keeper.

    Args:
        declared: the names of those that this keeper's program declares; it fires these and those of the API.
        process: the id of the master, under which the declarations are noted.
    """

    def __init__(self, statements: Statements, *, declared: Iterable[str], process: str) -> None:
        self._statements = statements
        self._declared = sorted(declared)
        self._process = process
        self._held: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._seen: tuple[dt.datetime, float] | None = None

    def changed(self) -> None:
        """Some schedule was changed: those that could not fire are tried again."""
        self._held.clear()

    async def note_declared(self, conn: AsyncConnection) -> None:
        """Shows people which schedules this master declares."""
        if self._declared:
            await conn.execute(
                self._statements["schedule_declare"], {"process": self._process, "names": self._declared}
            )

    async def run(self, conn: AsyncConnection) -> float:
        """Fires what is due; the seconds after which it should be called again."""
        began = clock.monotonic()
        self._held = {name: until for name, until in self._held.items() if until > began}
        cursor = await conn.execute(
            self._statements["schedule_due"],
            {"declared": self._declared, "held": list(self._held), "ahead_s": LOOK_EVERY_S, "n": SCHEDULES_MAX},
        )
        rows = await cursor.fetchall()
        now: dt.datetime = rows[0][0]
        found = [Due(*row[1:]) for row in rows if row[1] is not None]
        budget = max(1, TICKS_MAX // max(1, len(found)))
        wait_s, finished = LOOK_EVERY_S, True
        for due in found:
            if clock.monotonic() - began > PASS_S:
                finished = False
                break
            after = await self._advance(conn, due, now, self._oldest(now, began, due.backfill_s), budget)
            if after is not None:
                wait_s = min(wait_s, (after - now).total_seconds() - (clock.monotonic() - began))
        if finished:
            self._seen = (now, began)
        return max(0.0, wait_s) if finished else 0.0

    def _oldest(self, now: dt.datetime, began: float, backfill_s: float) -> dt.datetime:
        """Before this a missed tick is too old to be fired."""
        missed_s = max(backfill_s, MISSED_S_MIN)
        oldest = now - dt.timedelta(seconds=missed_s)
        if self._seen is not None and began - self._seen[1] < missed_s:
            step_s = (now - self._seen[0]).total_seconds()
            if step_s <= STEP_S_MAX:
                oldest = min(oldest, self._seen[0])
        return oldest

    async def _advance(
        self, conn: AsyncConnection, due: Due, now: dt.datetime, oldest: dt.datetime, budget: int
    ) -> dt.datetime | None:
        """Deals with one schedule; its next tick, or None when it has to wait."""
        try:
            made = plan(due, now, oldest, budget)
            if not made.fire and made.next_tick == due.next_tick:
                return made.next_tick
            taken = await self._take(conn, due, made)
        except ValueError as error:  # an expression that this version cannot read
            await self._failed(conn, due, str(error))
            return None
        except psycopg.Error as error:
            if faults.is_transient(error) and not faults.waited_too_long(error):
                raise
            refused = faults.refusal(error)
            await self._failed(conn, due, str(refused) if refused else faults.one_line(error))
            return None
        if taken and made.skipped:
            count = f"more than {SKIPPED_COUNTED_MAX}" if made.skipped > SKIPPED_COUNTED_MAX else str(made.skipped)
            self._say(
                f"{due.name} skipped",
                f"schedule {due.name}: {count} missed ticks older than {oldest:%Y-%m-%d %H:%M:%S} UTC are left out; "
                f"backfill_s = {due.backfill_s:g} says how old they may be",
            )
        return made.next_tick

    async def _take(self, conn: AsyncConnection, due: Due, made: Plan) -> bool:
        """Moves the row and inserts the jobs, both or none; False when another keeper was faster."""
        async with conn.transaction():
            await conn.execute(f"set local lock_timeout = {LOCK_TIMEOUT_MS}")
            cursor = await conn.execute(
                self._statements["schedule_claim"],
                {
                    "name": due.name,
                    "version": due.version,
                    "seen": due.next_tick,
                    "tick": made.fire[-1] if made.fire else None,
                    "next": made.next_tick,
                },
            )
            if await cursor.fetchone() is None:
                return False
            if made.fire:
                metadata = [_metadata(due.name, tick) for tick in made.fire]
                await conn.execute(self._statements["schedule_fire"], {"name": due.name, "metadata": metadata})
        return True

    async def _failed(self, conn: AsyncConnection, due: Due, problem: str) -> None:
        """Notes it for people, and leaves the schedule alone for a while."""
        self._held[due.name] = clock.monotonic() + TRY_AGAIN_S
        self._say(due.name, f"schedule {due.name} cannot fire, and is tried again: {problem}")
        try:
            async with conn.transaction():
                await conn.execute(f"set local lock_timeout = {LOCK_TIMEOUT_MS}")
                await conn.execute(
                    self._statements["schedule_error"],
                    {"name": due.name, "version": due.version, "error": problem[:1000].replace("\x00", "")},
                )
        except psycopg.Error as error:
            if not faults.waited_too_long(error):
                raise

    def _say(self, what: str, text: str) -> None:
        """Logs it, once a minute for each schedule."""
        now = clock.monotonic()
        if now - self._logged.get(what, -LOG_AGAIN_S) >= LOG_AGAIN_S:
            self._logged = {key: at for key, at in self._logged.items() if now - at < LOG_AGAIN_S}
            self._logged[what] = now
            log.warning("%s", text)


def _following(
    timing: ticks.Ticks, first: dt.datetime, until: dt.datetime, *, inclusive: bool
) -> Iterable[dt.datetime]:
    end = until if inclusive else until - dt.timedelta(microseconds=1)
    return ticks.within(timing, first + dt.timedelta(microseconds=1), end)


def _metadata(name: str, tick: dt.datetime) -> str:
    text = tick.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return msgspec.json.encode({"schedule": name, "tick": text}).decode()
