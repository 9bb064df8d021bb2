"""Recurring jobs that the program or its configuration declares; nothing here touches the database.

`recurring("nightlyReport", Report(...), cron="0 3 * * *")` stands beside the declaration of the kind. At the start of a
master `launch.py` writes what code and `[schedules.*]` declare into the table `schedule`; keepers fire from there
(`upkeep/cron.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.errors import DeclarationError, InsertError, InvalidSchedule
from wqcore.job import JobKeyMode
from wqcore.settings import Schedule, Settings

Source = Literal["code", "conf", "api"]
OPTIONS = ("queue", "priority", "max_attempts", "serial_key", "job_key", "job_key_mode", "metadata")


class ScheduleOptions(TypedDict, total=False):
    """What each job of a schedule gets where it is to differ from its kind; as in `InsertOptions`."""

    queue: str | None
    priority: int | None
    max_attempts: int | None
    serial_key: str | None
    job_key: str | None
    job_key_mode: JobKeyMode | None
    metadata: Mapping[str, Any] | None


class Timetable:
    """The recurring jobs that one program declares in code, by name."""

    def __init__(self, catalog: Catalog = default_catalog) -> None:
        self._catalog = catalog
        self._by_name: dict[str, Schedule] = {}

    def __iter__(self) -> Iterator[tuple[str, Schedule]]:
        return iter(self._by_name.items())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def declare(
        self,
        name: str,
        args: msgspec.Struct,
        *,
        cron: str | None = None,
        every_s: float | None = None,
        timezone: str = "UTC",
        backfill_s: float = 0.0,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """As `recurring`."""
        if name in self._by_name:
            raise DeclarationError(f"schedule {name!r} is declared twice: rename one")
        try:
            kind = self._catalog.kind_of(args)
            self._by_name[name] = schedule_of(
                name, kind.name, msgspec.json.decode(kind.encode(args)), cron=cron, every_s=every_s, timezone=timezone,
                backfill_s=backfill_s, **options,
            )  # fmt: skip
        except (InsertError, InvalidSchedule) as error:
            raise DeclarationError(f"schedule {name!r}: {error}") from None


timetable = Timetable()
"""The program's own: `recurring` adds to it."""


def recurring(
    name: str,
    args: msgspec.Struct,
    *,
    cron: str | None = None,
    every_s: float | None = None,
    timezone: str = "UTC",
    backfill_s: float = 0.0,
    **options: Unpack[ScheduleOptions],
) -> None:
    """Declares a recurring job: one job for each tick, whichever and however many masters run.

    Args:
        name: unique among all schedules; 1 to 128 bytes.
        args: the args of each job; their type must be declared as a kind before.
        cron: five fields (minute hour day month weekday), six with seconds first, or @hourly, @daily and the like.
            Give either this or `every_s`.
        every_s: seconds between ticks, 1 to 31,622,400, counted from 1970-01-01 UTC.
        timezone: the IANA name of the zone in which `cron` is read; default UTC.
        backfill_s: how old, in seconds, a missed tick may be to be made up for; default 0, and never less than 60.
        options: queue, priority, max_attempts, serial_key, job_key, job_key_mode, metadata of each job. Metadata also
            gets `schedule` (the name) and `tick` (ISO 8601, UTC).

    A master must import the module (`process.handlers`) with `process.preload = true`. Raises DeclarationError.
    """
    timetable.declare(
        name, args, cron=cron, every_s=every_s, timezone=timezone, backfill_s=backfill_s, **options
    )  # fmt: skip


def schedule_of(
    name: str,
    kind: str,
    args: Mapping[str, Any],
    *,
    cron: str | None = None,
    every_s: float | None = None,
    timezone: str = "UTC",
    backfill_s: float = 0.0,
    **options: Unpack[ScheduleOptions],
) -> Schedule:
    """The schedule that a call describes. Raises InvalidSchedule."""
    given = {"cron": cron, "every_s": every_s} | options
    fields = {"kind": kind, "args": args, "timezone": timezone, "backfill_s": backfill_s} | {
        key: value for key, value in given.items() if value is not None
    }
    try:
        schedule = msgspec.convert(msgspec.json.decode(msgspec.json.encode(fields)), Schedule)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidSchedule(f"schedules.{name}: {error}") from None
    problems = schedule.problems(name)
    if problems:
        raise InvalidSchedule("; ".join(problems))
    return schedule


def declared(settings: Settings, timetable: Timetable = timetable) -> dict[str, tuple[Source, Schedule]]:
    """All that this program declares, by name. The configuration must not repeat a name: see `problems`."""
    found: dict[str, tuple[Source, Schedule]] = {name: ("code", schedule) for name, schedule in timetable}
    found.update((name, ("conf", schedule)) for name, schedule in settings.schedules.items())
    return found


def declared_at(
    settings: Settings, database: str, catalog: Catalog = default_catalog, timetable: Timetable = timetable
) -> dict[str, tuple[Source, Schedule]]:
    """Those of them whose jobs go to a queue of that database, which holds and fires them."""
    found = declared(settings, timetable)
    if not settings.databases:
        return found
    here = {}
    for name, (source, schedule) in found.items():
        kind = catalog.get(schedule.kind)
        queue = schedule.queue if isinstance(schedule.queue, str) else "" if kind is None else kind.queue
        if settings.database_of(queue) == database:
            here[name] = (source, schedule)
    return here


def problems(settings: Settings, catalog: Catalog = default_catalog, timetable: Timetable = timetable) -> list[str]:
    """What is wrong between configuration and code: kinds, args and queues that do not fit, names declared twice."""
    found = [
        f"schedules.{name} is declared in the code too: rename one, or remove the table" for name in settings.schedules
        if name in timetable
    ]  # fmt: skip
    for name, (source, schedule) in declared(settings, timetable).items():
        if source == "conf":
            try:
                catalog.parse(schedule.kind, msgspec.json.encode(schedule.args))
            except (InsertError, TypeError, msgspec.MsgspecError) as error:
                found.append(f"schedules.{name}: {error}")
        if isinstance(schedule.queue, str) and schedule.queue not in settings.queues:
            found.append(f"schedule {name!r} goes to queue {schedule.queue!r}, which has no [queues.{schedule.queue}]")
    return found


def columns(name: str, source: Source, schedule: Schedule) -> dict[str, Any]:
    """The parameters of `schedule_set.sql`."""
    unset = msgspec.UNSET
    options = {key: getattr(schedule, key) for key in OPTIONS if getattr(schedule, key) is not unset}
    return {
        "name": name,
        "source": source,
        "kind": schedule.kind,
        "args": msgspec.json.encode(schedule.args).decode(),
        "cron": None if schedule.cron is unset else schedule.cron,
        "every_s": None if schedule.every_s is unset else schedule.every_s,
        "timezone": schedule.timezone,
        "backfill_s": schedule.backfill_s,
        "options": msgspec.json.encode(options).decode(),
    }
