"""Recurring jobs over real masters: no tick is doubled or lost when one of them is killed."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import signal

import psutil
import pytest

from tests.fix_master import World, ready, send, until

TIMED = """
import wqcore
from world_handlers import Nap

wqcore.recurring("code", Nap(group="c"), cron="* * * * * *", timezone="Europe/Berlin", priority=9)
"""
SCHEDULES = {
    "schedules__conf": {"kind": "nap", "cron": "* * * * * *"},
    "schedules__slow": {"kind": "nap", "every_s": 2.0, "priority": 9},
}
PERIODS = {"code": 1, "conf": 1, "slow": 2}
HANDLERS = ["world_handlers", "timed_handlers"]


@pytest.fixture
def timed(world: World) -> World:
    """A world whose handlers declare a recurring job too."""
    (world.folder / "timed_handlers.py").write_text(TIMED)
    return world


def ticks(world: World, name: str) -> list[dt.datetime]:
    """The ticks that have made a job, one for each job."""
    rows = world.conn.execute(
        "select metadata ->> 'tick' from wqcore.jobs where metadata ->> 'schedule' = %s order by id", [name]
    ).fetchall()
    return [dt.datetime.fromisoformat(tick) for (tick,) in rows if tick]


def none_is_doubled_or_lost(world: World, name: str, period_s: float) -> None:
    found = ticks(world, name)
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(found)]
    assert gaps == [period_s] * (len(found) - 1), (name, found)


def is_just_before_a_tick(world: World) -> bool:
    return world.scalar("select extract(microseconds from now()) %% 1000000 > 950000") is True


def test_of_two_masters_one_is_killed_at_a_tick_and_no_tick_is_doubled_or_lost(timed: World) -> None:
    config = timed.configure(process={"handlers": HANDLERS}, **SCHEDULES)
    timed.start(config)
    timed.start(config)
    ready(timed, 2)
    for name in PERIODS:
        until(lambda name=name: len(ticks(timed, name)) >= 2, f"{name} has ticked twice", 40)
    declared = timed.scalar("select count(*) from wqcore.declaration")
    assert declared == 6
    until(lambda: is_just_before_a_tick(timed), "it is just before a tick")
    timed.masters[0].kill()
    killed_at = timed.scalar("select now()")
    for name, period_s in PERIODS.items():
        until(
            lambda name=name: sum(tick > killed_at for tick in ticks(timed, name)) >= 3, f"{name} ticks on", 40
        )  # fmt: skip
        none_is_doubled_or_lost(timed, name, period_s)


def test_a_keeper_that_is_killed_again_and_again_doubles_and_loses_nothing(timed: World) -> None:
    master = timed.start(timed.configure(process={"handlers": HANDLERS}, **SCHEDULES))
    ready(timed)
    for number in range(3):
        until(lambda number=number: len(ticks(timed, "code")) >= 2 * number + 1, "ticks go on", 40)
        until(lambda: is_just_before_a_tick(timed), "it is just before a tick")
        for child in psutil.Process(master.pid).children():
            if "keeper" in " ".join(child.cmdline()):
                send(child, signal.SIGKILL)
    until(lambda: len(ticks(timed, "code")) >= 10, "ten ticks", 60)
    for name, period_s in PERIODS.items():
        none_is_doubled_or_lost(timed, name, period_s)
    assert master.poll() is None


def test_after_a_pause_of_all_masters_the_ticks_in_between_are_made_up_for(timed: World) -> None:
    config = timed.configure(process={"handlers": HANDLERS}, **SCHEDULES)
    first = timed.start(config)
    ready(timed)
    until(lambda: len(ticks(timed, "code")) >= 2, "two ticks", 40)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    before = {name: len(ticks(timed, name)) for name in PERIODS}
    stopped_at = timed.scalar("select now()")
    until(lambda: timed.scalar("select now() - %s > interval '3 s'", stopped_at), "three seconds have passed")
    assert {name: len(ticks(timed, name)) for name in PERIODS} == before
    timed.start(config)
    started_at = timed.scalar("select now()")
    for name, period_s in PERIODS.items():
        until(lambda name=name: ticks(timed, name)[-1] > started_at, f"{name} ticks again", 40)
        none_is_doubled_or_lost(timed, name, period_s)


def test_without_preload_the_master_says_what_it_does_not_know_and_fires_those_of_the_configuration(
    timed: World,
) -> None:
    config = timed.configure(process={"handlers": HANDLERS, "preload": False}, **SCHEDULES)
    timed.start(config)
    ready(timed)
    until(lambda: len(ticks(timed, "conf")) >= 2, "conf has ticked twice", 40)
    assert "preload = false" in timed.log()
    assert ticks(timed, "code") == []
    checked = timed.cli(config, "check-config")
    assert checked.returncode == 0, checked.stderr
    assert "3 schedules" in checked.stdout
    assert "preload = false" in checked.stderr


def test_a_configuration_whose_schedule_does_not_fit_starts_nothing(timed: World) -> None:
    config = timed.configure(
        process={"handlers": HANDLERS}, schedules__x={"kind": "nope", "cron": "* * * * *"}, **SCHEDULES
    )
    for words in (["check-config"], ["run"]):
        said = timed.cli(config, *words)
        assert said.returncode == 2
        assert "schedules.x: unknown kind 'nope'" in said.stderr


def test_schedules_are_shown_and_changed_on_the_command_line(timed: World) -> None:
    config = timed.configure(process={"handlers": HANDLERS}, **SCHEDULES)
    timed.start(config)
    ready(timed)
    until(lambda: timed.scalar("select count(*) from wqcore.declaration") == 3, "the master has said what it declares")
    shown = timed.cli(config, "schedules")
    assert shown.returncode == 0, shown.stderr
    for text in ("code", "conf", "slow", "every 2 s", "Europe/Berlin", "by code"):
        assert text in shown.stdout, shown.stdout
    assert "paused slow" in timed.cli(config, "schedules", "pause", "slow").stdout
    listed = json.loads(timed.cli(config, "schedules", "--json").stdout)
    assert [(row["name"], row["state"]) for row in listed] == [("code", "on"), ("conf", "on"), ("slow", "paused")]
    assert "inserted job" in timed.cli(config, "schedules", "trigger", "slow").stdout
    assert "resumed slow" in timed.cli(config, "schedules", "resume", "slow").stdout
    assert "deleted slow" in timed.cli(config, "schedules", "delete", "slow").stdout
    gone = timed.cli(config, "schedules", "delete", "slow")
    assert gone.returncode == 1
    assert "unknown schedule 'slow'" in gone.stderr
