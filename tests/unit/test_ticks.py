"""Ticks are a pure function of time: none is doubled, lost or out of order, whatever the clocks on the walls do."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from wqcore import ticks

ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Cairo",
    "Asia/Kolkata", "Pacific/Apia", "Europe/Dublin",
]  # fmt: skip
WILD = ["* * * * *", "*/7 * * * *", "30 * * * *", "*/10 2,3 * * *", "*/15 0 * * 0", "20 */2 * 3,10,11 *"]
FIXED = ["30 2 * * *", "0,30 2,3 * * *", "15 0 * * *", "0 0 1 * *", "59 1 * * 0", "0 12 29 2 *"]

moments = st.datetimes(dt.datetime(2005, 1, 1), dt.datetime(2037, 1, 1), timezones=st.just(dt.UTC))
near_changes = st.builds(
    lambda day, seconds: dt.datetime(*day, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds),
    st.sampled_from([(2026, 3, 29), (2026, 10, 25), (2026, 4, 5), (2026, 10, 4), (2026, 11, 1), (2026, 9, 6),
                     (2026, 4, 24), (2011, 12, 30), (2026, 3, 8)]),
    st.integers(-36 * 3600, 36 * 3600),
)  # fmt: skip


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def listed(cron: str, zone: str, after: str, count: int) -> list[str]:
    return [f"{tick:%d %H:%M:%S}" for tick in ticks.coming(ticks.made(cron, None, zone), utc(after), count)]


@given(st.sampled_from(WILD + FIXED), st.sampled_from(ZONES), near_changes | moments, st.integers(0, 10**9))
def test_every_later_question_gets_the_same_ticks_in_the_same_order(
    cron: str, zone: str, moment: dt.datetime, between: int
) -> None:
    timing = ticks.made(cron, None, zone)
    first = timing.after(moment)
    assert first is not None
    assert first > moment
    second = timing.after(first)
    assert second is not None
    assert second > first
    # asked from any moment before a tick, the answer is that tick
    later = moment + (first - moment) * (between / 10**9)
    if later < first:
        assert timing.after(later) == first
    later = first + (second - first) * (between / 10**9)
    if later < second:
        assert timing.after(later) == second


@given(st.sampled_from(WILD), st.sampled_from(ZONES), near_changes)
@settings(max_examples=50)
def test_wildcards_tick_at_exactly_the_minutes_whose_wall_time_fits(cron: str, zone: str, moment: dt.datetime) -> None:
    start = moment.replace(second=0, microsecond=0)
    minutes = [start + dt.timedelta(minutes=n) for n in range(1, 360)]
    fits = [minute for minute in minutes if fitting(cron, minute.astimezone(ZoneInfo(zone)))]
    assert list(ticks.within(ticks.made(cron, None, zone), minutes[0], minutes[-1])) == fits


def fitting(cron: str, local: dt.datetime) -> bool:
    wall = local.replace(tzinfo=None)
    return next(CronSim(cron, wall - dt.timedelta(seconds=1))) == wall


@given(st.sampled_from(["30 2 * * *", "15 0 * * *", "0 30 2 * * *", "5 23 * * *"]), st.sampled_from(ZONES))
@settings(max_examples=40)
def test_a_daily_time_ticks_once_on_every_day_of_the_year(cron: str, zone: str) -> None:
    found = list(ticks.within(ticks.made(cron, None, zone), utc("2026-01-01T12:00"), utc("2027-01-01T12:00")))
    assert len(found) == 365
    assert len({tick.astimezone(ZoneInfo(zone)).date() for tick in found}) == 365


def test_a_time_that_is_skipped_ticks_at_the_end_of_the_gap() -> None:
    assert listed("30 2 * * *", "Europe/Berlin", "2026-03-28T20:00", 2) == ["29 01:00:00", "30 00:30:00"]
    assert listed("0 30 2 * * *", "Europe/Berlin", "2026-03-28T20:00", 2) == ["29 01:00:00", "30 00:30:00"]
    # two that fall into the gap, and the one at its end, are one tick
    assert listed("0,30 2,3 * * *", "Europe/Berlin", "2026-03-28T20:00", 3) == [
        "29 01:00:00", "29 01:30:00", "30 00:00:00"
    ]  # fmt: skip


def test_a_time_that_comes_twice_ticks_the_first_time() -> None:
    assert listed("30 2 * * *", "Europe/Berlin", "2026-10-24T20:00", 2) == ["25 00:30:00", "26 01:30:00"]
    assert listed("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", 1) == ["26 01:30:00"]


def test_real_time_goes_on_in_the_hour_that_comes_twice() -> None:
    assert listed("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:50", 5) == [
        "25 00:00:00", "25 00:30:00", "25 01:00:00", "25 01:30:00", "25 02:00:00"
    ]  # fmt: skip
    assert listed("*/10 3 * * *", "Australia/Lord_Howe", "2026-04-04T14:00", 1) == ["04 16:30:00"]


def test_leap_days_and_seconds_of_cron() -> None:
    [leap] = ticks.coming(ticks.made("0 0 29 2 *", None), utc("2026-01-01T00:00"), 1)
    assert leap == utc("2028-02-29T00:00")
    assert listed("*/20 * * * * *", "UTC", "2026-01-01T00:00", 3) == ["01 00:00:20", "01 00:00:40", "01 00:01:00"]
    assert listed("@daily", "UTC", "2026-01-01T00:00", 1) == ["02 00:00:00"]


@given(st.floats(1, 1e6), moments)
def test_intervals_count_from_the_epoch_so_that_all_masters_agree(every_s: float, moment: dt.datetime) -> None:
    timing = ticks.made(None, every_s)
    tick = timing.after(moment)
    assert tick is not None
    step = dt.timedelta(microseconds=round(every_s * 1e6))
    assert (tick - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) % step == dt.timedelta()
    assert moment < tick <= moment + step
    assert timing.after(tick) == tick + step


def test_a_window_includes_both_of_its_ends() -> None:
    timing = ticks.made(None, 10.0)
    found = ticks.within(timing, utc("2026-01-01T00:00:00"), utc("2026-01-01T00:00:30"))
    assert [tick.second for tick in found] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("cron", "every_s", "zone", "text"),
    [
        (None, None, "UTC", "either cron or every_s"),
        ("* * * * *", 5.0, "UTC", "not both"),
        ("61 * * * *", None, "UTC", "Bad minute"),
        ("* * * *", None, "UTC", "4 fields"),
        ("0 0 30 2 *", None, "UTC", "Bad day-of-month"),
        ("*/0 * * * *", None, "UTC", "Bad minute"),
        ("* * L-2 * *", None, "UTC", "cron = "),
        ("* * L,5/2 * *", None, "UTC", None),
        ("0 3 * * *", None, "Berlin", "'Berlin'.*IANA"),
        ("0 3 * * *", None, "../etc/passwd", "IANA"),
        ("0 3 * * *", None, "", "IANA"),
        ("0 3 * * *", None, "Europe", "IANA"),
        (None, 0.5, "UTC", "outside 1"),
        (None, float("nan"), "UTC", "outside 1"),
    ],
)
def test_what_cannot_tick_is_refused_with_its_reason(
    cron: str | None, every_s: float | None, zone: str, text: str | None
) -> None:
    if text is None:
        ticks.made(cron, every_s, zone)
        return
    with pytest.raises(ValueError, match=text):
        ticks.made(cron, every_s, zone)


def test_a_date_that_never_comes_has_no_tick() -> None:
    assert ticks.made("0 0 1 1 MON#5", None).after(utc("2026-01-01T00:00")) is not None  # day or weekday
    assert ticks.coming(ticks.made("0 0 * 2 MON#5", None), utc("2026-01-01T00:00"), 1) == [utc("2044-02-29T00:00")]
