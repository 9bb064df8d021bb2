"""When a recurring job is due: a pure function of its expression and a time, so that all masters compute the same ticks.

`made(cron, every_s, timezone)` is a cron expression in a time zone, or an interval; `after(moment)` is its first tick
later than that moment, whichever moment is asked for: ticks do not depend on when somebody began to count.

Cron: five fields, or six with seconds first. Fields that name an hour and a minute mean the clock on the wall: when
that time is skipped (spring) they tick at the end of the gap, when it comes twice (autumn) they tick the first time. With
`*` in the hour or the minute they follow real time: nothing for what is skipped, both times for what comes twice.
Intervals count from 1970-01-01 00:00 UTC.

Why cronsim, and why only its arithmetic without zones (2.8 and croniter 7.0.0, both tried in Europe/Berlin and
Australia/Lord_Howe): croniter runs a nightly job twice in autumn, brings dateutil, has no types, and took 230 to 320 µs
a tick where cronsim takes 45. cronsim loses the night of a six-field `0 30 2 * * *` in spring, answers with a tick in the
past when it is asked within the hour that comes twice, and loses half an hour where the clock moves by half an hour. Its
calendar is right in each case, so the zone is put around it here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

EVERY_S_MIN, EVERY_S_MAX = 1.0, 366 * 86_400.0
CRON_CHARS_MAX = 200
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

LAST = dt.datetime(9900, 1, 1, tzinfo=dt.UTC)
"""Nothing ticks after this: looking on would leave what a datetime can say."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class Ticks(Protocol):
    """The times of one schedule."""

    def after(self, moment: dt.datetime) -> dt.datetime | None:
        """The first tick later than `moment` (UTC), or None when there is none within 50 years."""


@lru_cache(maxsize=1024)
def made(cron: str | None, every_s: float | None, timezone: str = "UTC") -> Ticks:
    """The ticks of a cron expression, or of an interval in seconds. Raises ValueError, which says what to correct."""
    if (cron is None) == (every_s is None):
        raise ValueError("give either cron or every_s" + ("" if cron is None else ", not both"))
    if cron is not None:
        return _Cron(cron, _zone(timezone))
    assert every_s is not None  # noqa: S101 - the first test has shown it
    if not EVERY_S_MIN <= every_s <= EVERY_S_MAX:
        raise ValueError(f"every_s = {every_s!r} is outside {EVERY_S_MIN:g} … {EVERY_S_MAX:g} seconds")
    return _Interval(every_s)


def within(ticks: Ticks, first: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
    """The ticks from `first` to `until`, both included."""
    tick = ticks.after(first - _MICROSECOND)
    while tick is not None and tick <= until:
        yield tick
        tick = ticks.after(tick)


def coming(ticks: Ticks, moment: dt.datetime, count: int) -> list[dt.datetime]:
    """At most `count` ticks later than `moment`."""
    found: list[dt.datetime] = []
    while len(found) < count and (tick := ticks.after(found[-1] if found else moment)) is not None:
        found.append(tick)
    return found


class _Interval:
    def __init__(self, every_s: float) -> None:
        self._every = round(every_s * 1_000_000)

    def after(self, moment: dt.datetime) -> dt.datetime | None:
        if moment >= LAST:
            return None
        passed = (moment - _EPOCH) // _MICROSECOND
        return _EPOCH + dt.timedelta(microseconds=(passed // self._every + 1) * self._every)


class _Cron:
    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = NICKNAMES.get(expression.strip().lower(), expression)
        self._zone = zone
        fields = self._expression.split()
        if len(expression) > CRON_CHARS_MAX or len(fields) not in (5, 6):
            raise ValueError(
                f"cron = {expression[:CRON_CHARS_MAX]!r} has {len(fields)} fields; write 5 (minute hour day month weekday),"
                f" 6 (second first), or one of {', '.join(sorted(NICKNAMES))}"
            )
        try:
            CronSim(self._expression, dt.datetime(2000, 1, 1))  # only to hear what is wrong with it
        except (CronSimError, AssertionError, ValueError) as error:
            raise ValueError(f"cron = {expression!r}: {error or 'not understood'}") from None
        minute, hour = fields[-5:-3]
        self._names_a_time = not minute.startswith("*") and not hour.startswith("*")

    def after(self, moment: dt.datetime) -> dt.datetime | None:
        if moment >= LAST:
            return None
        here = moment.astimezone(self._zone)
        # A wall time that comes twice is the first of the two with fold 0; following real time, both count.
        folds = (0,) if self._names_a_time else (0, 1)
        found = [tick for fold in folds if (tick := self._after(moment, here, fold)) is not None]
        return min(found, default=None)

    def _after(self, moment: dt.datetime, here: dt.datetime, fold: int) -> dt.datetime | None:
        """The first tick later than `moment` among the wall times that are read with `fold`."""
        wall = moment.astimezone(dt.UTC) + (here.replace(fold=fold).utcoffset() or dt.timedelta())
        for time in CronSim(self._expression, wall.replace(tzinfo=None)):
            if not self._exists(time):
                if not self._names_a_time:
                    continue
                time = self._end_of_gap(time)
            tick = time.replace(tzinfo=self._zone, fold=fold).astimezone(dt.UTC)
            if tick > moment:
                return tick
        return None

    def _exists(self, time: dt.datetime) -> bool:
        local = time.replace(tzinfo=self._zone)
        return local.astimezone(dt.UTC).astimezone(self._zone).replace(tzinfo=None) == time

    def _end_of_gap(self, time: dt.datetime) -> dt.datetime:
        time = time.replace(second=0)
        while not self._exists(time):
            time += dt.timedelta(minutes=1)
        return time


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError; a folder or a wrong path raises the others
        pass
    except KeyError:
        pass
    raise ValueError(f"timezone = {name!r} is not known; write an IANA name such as Europe/Berlin, or UTC")
