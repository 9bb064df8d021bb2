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


def table(schedules: list[ScheduleInfo]) -> Table:
    """One row a schedule; times are those of its own time zone."""
    found = Table(title="schedules", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("schedule", "kind", "when", "next ticks", "last tick", "last job", "state"):
        found.add_column(column, justify="right" if column == "last job" else "left", overflow="fold")
    for info in schedules:
        found.add_row(
            Text(info.name, style="bold"),
            Text(info.kind),
            Text(_when(info)),
            Text("\n".join(_local(info, tick) for tick in info.next_ticks) or "–"),
            Text(_local(info, info.last_tick) if info.last_tick else "–"),
            Text(str(info.last_job or "–")),
            _state(info),
        )
    return found


def _when(info: ScheduleInfo) -> str:
    if info.cron is None:
        return f"every {info.every_s:g} s"
    return info.cron if info.timezone == "UTC" else f"{info.cron}\n{info.timezone}"


def _local(info: ScheduleInfo, moment: dt.datetime) -> str:
    try:
        zone = ZoneInfo(info.timezone)
    except (KeyError, OSError, ValueError):  # a name that this machine does not know: its schedule says so
        zone = ZoneInfo("UTC")
    return f"{moment.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}"


def _state(info: ScheduleInfo) -> Text:
    said = {
        "paused": f"paused since {info.paused_at:%Y-%m-%d %H:%M} UTC" if info.paused_at else "paused",
        "unclaimed": f"nobody declares it (was in {info.source})",
        "failing": f"failing: {info.last_error}",
        "on": f"on, by {info.source}",
    }
    return Text(said[info.state], style=STYLES[info.state])
