"""What a keeper decides: over any number of passes each tick is fired once, or skipped because it is too old."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wqcore import ticks
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.errors import DeclarationError
from wqcore.recurring import Timetable, declared, problems
from wqcore.settings import Queue, Schedule, Settings
from wqcore.upkeep.cron import NEVER, Due, plan

START = dt.datetime(2026, 3, 29, 0, 0, tzinfo=dt.UTC)


def due(cron: str | None, every_s: float | None, zone: str = "UTC") -> Due:
    return Due("s", cron, every_s, zone, 0.0, None, None, START)


@given(
    st.sampled_from([(None, 7.0), (None, 60.0), ("*/5 * * * *", None), ("*/20 * * * * *", None)]),
    st.lists(st.integers(0, 300), min_size=1, max_size=12),
    st.integers(1, 8),
)
def test_passes_at_any_times_fire_every_tick_once_and_in_order(
    timing: tuple[str | None, float | None], gaps: list[int], budget: int
) -> None:
    row, now, found = due(*timing, "Europe/Berlin"), START, []
    for gap in gaps:
        now += dt.timedelta(seconds=gap)
        while True:
            made = plan(row, now, START, budget)
            assert len(made.fire) <= budget
            assert made.skipped == 0
            found += made.fire
            row = row._replace(last_tick=made.fire[-1] if made.fire else row.last_tick, next_tick=made.next_tick)
            if not made.fire:
                break
    assert found == list(ticks.within(ticks.made(*timing, "Europe/Berlin"), START + dt.timedelta(microseconds=1), now))


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_fired_and_skipped_ticks_are_all_there_are(missed_s: int, window_s: int) -> None:
    now = START + dt.timedelta(seconds=missed_s)
    made = plan(due(None, 10.0), now, now - dt.timedelta(seconds=window_s), 10_000)
    assert len(made.fire) + made.skipped == missed_s // 10  # below the number up to which they are counted
    assert all(tick >= now - dt.timedelta(seconds=window_s) for tick in made.fire)
    assert made.next_tick > now


def test_nothing_goes_back_behind_the_last_tick() -> None:
    row = due(None, 10.0)._replace(last_tick=START + dt.timedelta(hours=1))
    made = plan(row, START + dt.timedelta(minutes=1), START, 10)
    assert made.fire == []
    assert made.next_tick == START + dt.timedelta(hours=1, seconds=10)


def test_a_schedule_that_ticks_no_more_has_no_next_tick() -> None:
    row = due("0 0 */29 2 MON#5", None)
    assert plan(row, START, START, 10) == ([], 0, NEVER)
    assert ticks.coming(ticks.made(row.cron, None), NEVER, 3) == []
    assert ticks.made(None, 5.0).after(NEVER) is None


# --- declarations


class Report(msgspec.Struct, rename="camel"):
    for_team: str = "all"


def catalog() -> Catalog:
    found = Catalog()
    found.declare(
        Kind(
            "report", Report, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )
    )  # fmt: skip
    return found


def test_a_declaration_in_code_keeps_its_args_as_they_are_sent() -> None:
    timetable = Timetable(catalog())
    timetable.declare("nightly", Report("x"), cron="@daily", priority=5)
    [(source, schedule)] = declared(Settings(), timetable).values()
    assert (source, schedule.kind, schedule.args, schedule.priority) == ("code", "report", {"forTeam": "x"}, 5)


def test_a_declaration_that_cannot_work_is_refused_where_it_stands() -> None:
    timetable = Timetable(catalog())
    timetable.declare("a", Report(), every_s=5)
    with pytest.raises(DeclarationError, match="'a' is declared twice"):
        timetable.declare("a", Report(), every_s=5)
    with pytest.raises(DeclarationError, match="'b'.*Bad hour"):
        timetable.declare("b", Report(), cron="0 24 * * *")
    with pytest.raises(DeclarationError, match="'b'.*not both"):
        timetable.declare("b", Report(), cron="0 2 * * *", every_s=4)
    with pytest.raises(DeclarationError, match="'c'.*kind"):
        timetable.declare("c", Undeclared(), every_s=5)
    with pytest.raises(DeclarationError, match="'d'.*backfill_s"):
        timetable.declare("d", Report(), every_s=5, backfill_s=-1)


class Undeclared(msgspec.Struct):
    pass


def test_configuration_and_code_are_held_together_by_the_check() -> None:
    timetable = Timetable(catalog())
    timetable.declare("both", Report(), every_s=5)
    timetable.declare("lost", Report(), every_s=5, queue="nowhere")
    settings = Settings(
        queues={"default": Queue()},
        schedules={
            "both": Schedule(kind="report", every_s=5),
            "kind": Schedule(kind="nope", every_s=5),
            "args": Schedule(kind="report", args={"forTeam": 5}, every_s=5),
            "fine": Schedule(kind="report", args={"forTeam": "x"}, every_s=5),
        },
    )
    found = problems(settings, catalog(), timetable)
    for text in ("both is declared in the code too", "kind: unknown kind 'nope'", "args: args of report", "'nowhere'"):
        assert len([problem for problem in found if text in problem]) == 1, (text, found)
    assert len(found) == 4
