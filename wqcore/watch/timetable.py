"""What `wqcore schedules` shows: a table for people, plain data for programs."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from wqcore.control.schedules import ScheduleInfo

STYLES = {"on": "green", "paused": "yellow", "unclaimed": "yellow", "failing": "red"}


def plain(info: ScheduleInfo) -> dict[str, Any]:
    """A schedule as built-in objects, with its state."""
    found: dict[str, Any] = msgspec.to_builtins(info)
    return {"name": info.name, "state": info.state} | found


def table(schedules: list[ScheduleInfo], now: dt.datetime) -> Table:
    """One row a schedule; times are those of its own time zone. Two lines a cell, so that it fits 80 columns."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    found.add_column("schedule", overflow="fold", min_width=14)
    for column in ("when", "next ticks", "last tick", "state"):
        found.add_column(column, no_wrap=True)
    for info in schedules:
        found.add_row(
            _lines(Text(info.name, style="bold"), Text(info.kind, style="dim")),
            _lines(*_when(info)),
            Text("\n".join(_local(info, tick, now) for tick in info.next_ticks) or "–"),
            _lines(
                Text(_local(info, info.last_tick, now) if info.last_tick else "–"),
                Text(f"job {info.last_job}" if info.last_job else "", style="dim"),
            ),
            _lines(Text(info.state, style=STYLES[info.state]), Text(f"by {info.source}", style="dim")),
            end_section=True,
        )
    return found


def remarks(schedules: list[ScheduleInfo], now: dt.datetime) -> list[str]:
    """A line for each schedule that does not tick as it should, or as one might think."""
    said = []
    for info in schedules:
        if info.paused_at is not None:
            said.append(f"{info.name} is paused since {_local(info, info.paused_at, now)}")
        elif info.unclaimed:
            said.append(f"{info.name} is unclaimed: no master declares it any more, so it does not tick")
        if info.last_error is not None:
            said.append(f"{info.name} cannot make its job: {info.last_error}")
    return said


def _lines(*texts: Text) -> Text:
    return Text("\n").join(text for text in texts if text.plain)


def _when(info: ScheduleInfo) -> tuple[Text, Text]:
    text = f"every {info.every_s:g} s" if info.cron is None else info.cron
    return Text(text), Text(info.timezone if info.cron is not None else "", style="dim")


def _local(info: ScheduleInfo, moment: dt.datetime, now: dt.datetime) -> str:
    """Short: the year only where it is not this one, seconds only where there are some."""
    try:
        zone = ZoneInfo(info.timezone)
    except (KeyError, OSError, ValueError):  # a name that this machine does not know: its schedule says so
        zone = ZoneInfo("UTC")
    here = moment.astimezone(zone)
    year = "" if here.year == now.astimezone(zone).year else f" {here.year}"
    return f"{here:%d %b}{year} {here:%H:%M}" + (f":{here:%S}" if here.second else "")
