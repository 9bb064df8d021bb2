"""Recurring jobs at run time: list, set, pause, resume, trigger, delete.

A change is a row; keepers hear of it by a notification, and find it by themselves within a second. A schedule that is
set here belongs to every keeper, and what code or configuration declare under its name waits until it is deleted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec

from wqcore import ticks
from wqcore.catalog import Catalog
from wqcore.control import given
from wqcore.db.request import Query, Request
from wqcore.errors import InvalidArgs, InvalidSchedule, PlannedKind, UnknownKind, UnknownQueue, UnknownSchedule
from wqcore.recurring import Source, columns, schedule_of
from wqcore.settings import Schedule

SCHEDULES_MAX = 10_000
"""Schedules that a listing shows."""
NEXT_TICKS = 3

Args = msgspec.Struct | Mapping[str, Any]


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job as the database has it.

    Attributes:
        name (str), kind (str), args (dict), options (dict): what each tick inserts.
        source (str): `code`, `conf` or `api`: who has set it.
        declared_by (list of str): `host:pid` of the living masters that declare it.
        cron (str | None), every_s (float | None), timezone (str), backfill_s (float): when.
        next_ticks (list of datetime): the coming ticks; empty while it is paused, unclaimed or cannot tick.
        last_tick (datetime | None): the last tick that made its job.
        last_job (int | None): the id of the last job, by a tick or by hand.
        paused_at (datetime | None): since when it is paused.
        last_error (str | None): why the due tick could not make its job; it is tried again.
        created_at (datetime), updated_at (datetime): when it was first and last set.
    """

    name: str
    source: Source
    declared_by: list[str]
    kind: str
    args: dict[str, Any]
    cron: str | None
    every_s: float | None
    timezone: str
    backfill_s: float
    options: dict[str, Any]
    next_ticks: list[dt.datetime]
    last_tick: dt.datetime | None
    last_job: int | None
    paused_at: dt.datetime | None
    last_error: str | None
    created_at: dt.datetime
    updated_at: dt.datetime

    @property
    def unclaimed(self) -> bool:
        """True when it was declared by a program of which no master runs: nothing fires it."""
        return self.source != "api" and not self.declared_by

    @property
    def state(self) -> str:
        """`paused`, `unclaimed`, `failing` or `on`."""
        if self.paused_at is not None:
            return "paused"
        if self.unclaimed:
            return "unclaimed"
        return "failing" if self.last_error is not None else "on"


def schedules(next_ticks: int = NEXT_TICKS) -> Request[list[ScheduleInfo]]:
    """All schedules by name, each with so many coming ticks."""
    return [_info(row, next_ticks) for row in (yield Query("schedules", {"n": SCHEDULES_MAX}))]


def checked_schedule(catalog: Catalog, name: str, args: Args, kind: str | None, **given: Any) -> Schedule:
    """The schedule that a call describes; its args are checked where this program knows their type."""
    if isinstance(args, msgspec.Struct):
        known = catalog.kind_of(args)
    elif kind is None:
        raise InvalidSchedule(f"schedules.{name}: name its kind, or give args of a declared type")
    elif catalog.get(kind) is not None:
        known, args = catalog.parse(kind, dict(args))
    else:
        return schedule_of(name, kind, args, **given)
    return schedule_of(name, known.name, msgspec.json.decode(known.encode(args)), **given)


def queue_of(catalog: Catalog, name: str, schedule: Schedule) -> str:
    """The queue that its jobs go to. Raises InvalidSchedule when this program cannot tell."""
    kind = catalog.get(schedule.kind)
    queue = schedule.queue if isinstance(schedule.queue, str) else None if kind is None else kind.queue
    if queue is None:
        raise InvalidSchedule(f"schedules.{name}: this program does not know kind {schedule.kind!r}, so name its queue")
    return queue


def exists(name: str) -> Request[bool]:
    """Whether there is a schedule of that name."""
    return bool((yield Query("schedule_sources", {"names": [given.text("name", name)]})))


def set_schedule(name: str, schedule: Schedule) -> Request[None]:
    """Adds or changes a schedule, from now on one of the API.

    Raises InvalidSchedule, UnknownKind, PlannedKind, InvalidArgs or UnknownQueue; nothing is written then.
    """
    problems = schedule.problems(name)
    if problems:
        raise InvalidSchedule("; ".join(problems))
    queue = schedule.queue if isinstance(schedule.queue, str) else None
    [(known, planned, required, queue_known, queue_name)] = yield Query(
        "schedule_kind", {"kind": schedule.kind, "queue": queue}
    )
    if not known:
        raise UnknownKind(f"unknown kind {schedule.kind!r}: check the spelling, or start a master that declares it")
    if planned:
        raise PlannedKind(f"kind {schedule.kind!r} has no handler yet: write it and remove planned=True")
    lacking = [field for field in required if field not in schedule.args]
    if lacking:
        raise InvalidArgs(f"schedule {name!r}: args of {schedule.kind} lack {', '.join(lacking)}")
    if not queue_known:
        raise UnknownQueue(f"schedule {name!r}: unknown queue {queue_name!r}: start a master that has it")
    yield Query("schedule_set", columns(name, "api", schedule))


def pause_schedule(name: str) -> Request[bool]:
    """Pauses a schedule; False when it was paused already. Raises UnknownSchedule."""
    return _changed(name, (yield Query("schedule_pause", {"name": given.text("name", name)})))


def resume_schedule(name: str) -> Request[bool]:
    """Lets a schedule go on with its next tick; False when it was not paused. Raises UnknownSchedule."""
    return _changed(name, (yield Query("schedule_resume", {"name": given.text("name", name)})))


def trigger_schedule(name: str) -> Request[int]:
    """Inserts the job of a schedule now, also while it is paused; its id. Raises UnknownSchedule or InsertError."""
    metadata = msgspec.json.encode({"schedule": given.text("name", name), "triggered": True}).decode()
    rows = yield Query("schedule_fire", {"name": name, "metadata": [metadata]})
    if not rows:
        raise _unknown(name)
    return rows[0][0]  # type: ignore[no-any-return]


def delete_schedule(name: str) -> Request[None]:
    """Removes a schedule; jobs that it has made stay. Raises UnknownSchedule.

    One that code or configuration declare comes back with the next start of such a master: pause it instead.
    """
    if not (yield Query("schedule_delete", {"name": given.text("name", name)})):
        raise _unknown(name)


def _changed(name: str, rows: list[tuple[Any, ...]]) -> bool:
    [(exists, changed)] = rows
    if not exists:
        raise _unknown(name)
    return bool(changed)


def _unknown(name: str) -> UnknownSchedule:
    return UnknownSchedule(f"unknown schedule {name!r}: `wqcore schedules` lists them")


def _info(row: tuple[Any, ...], count: int) -> ScheduleInfo:
    (name, source, kind, args, cron, every_s, timezone, backfill_s, options, paused_at, last_tick, next_tick, last_job,
     last_error, created_at, updated_at, now, declared_by) = row  # fmt: skip
    coming: list[dt.datetime] = []
    try:
        timing = ticks.made(cron, every_s, timezone)
        if paused_at is None and (source == "api" or declared_by):
            base = max(now, next_tick - dt.timedelta(microseconds=1) if next_tick else now, last_tick or now)
            coming = ticks.coming(timing, base, count)
    except ValueError as error:
        last_error = str(error)
    return ScheduleInfo(
        name=name,
        source=source,
        declared_by=declared_by,
        kind=kind,
        args=msgspec.json.decode(args),
        cron=cron,
        every_s=every_s,
        timezone=timezone,
        backfill_s=backfill_s,
        options=msgspec.json.decode(options),
        next_ticks=coming,
        last_tick=last_tick,
        last_job=last_job,
        paused_at=paused_at,
        last_error=last_error,
        created_at=created_at,
        updated_at=updated_at,
    )
