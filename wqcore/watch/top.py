"""What `wqcore top` shows: the newest look, and for each queue how much waited and ended lately, as sparklines.

A cell of a sparkline is `CELL_S` seconds: the mean of the looks in it, scaled to the highest one shown. What is not known,
before the display was started or while the database was away, is blank.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import deque
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wqcore.watch.tables import (
    SILENT_S,
    database_lines,
    ended_line,
    masters_table,
    new_table,
    number,
    rate,
    running,
    span,
)

CELL_S = 10.0
CELLS_MAX = 36
"""Six minutes; fewer are shown where the terminal is narrow."""
BARS = "▁▂▃▄▅▆▇█"
LONGEST_SHOWN = 3


class History:
    """What the looks have found, in cells."""

    def __init__(self) -> None:
        self._cells: dict[str, deque[tuple[int, list[float]]]] = {}

    def add(self, name: str, value: float, now: float) -> None:
        """Takes one value, at the monotonic time `now`."""
        cells = self._cells.setdefault(name, deque(maxlen=CELLS_MAX))
        cell = math.floor(now / CELL_S)
        if not cells or cells[-1][0] != cell:
            cells.append((cell, []))
        cells[-1][1].append(value)

    def means(self, name: str, now: float, width: int) -> list[float | None]:
        """The last `width` cells up to `now`; None: nothing is known of that time."""
        known = {cell: sum(values) / len(values) for cell, values in self._cells.get(name, ())}
        last = math.floor(now / CELL_S)
        return [known.get(cell) for cell in range(last - width + 1, last + 1)]


def sparkline(values: list[float | None]) -> str:
    """A bar for each value: the lowest one for nothing, the highest one for the most."""
    most = max((value for value in values if value is not None), default=0.0)

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        if value <= 0 or most <= 0:
            return BARS[0]
        return BARS[max(1, round(value / most * (len(BARS) - 1)))]

    return "".join(map(bar, values))


class Top:
    """The looks of one display."""

    def __init__(self, where: str, every_s: float) -> None:
        self._where, self._every_s = where, every_s
        self._history = History()
        self._found: dict[str, Any] | None = None
        self._ended: dict[str, Any] = {"last_hour": {}, "last_hour_capped": []}
        self._away: str | None = None

    def saw(self, found: dict[str, Any], now: float) -> None:
        """Takes a look: what `Reader.live` has found, and `ended` when that was asked for, too."""
        self._found, self._away = found, None
        if "last_hour" in found:
            self._ended = {name: found[name] for name in self._ended}
        for row in found["queues"]:
            self._history.add(f"waiting {row['queue']}", row["waiting"], now)
            self._history.add(f"done {row['queue']}", row["completed_per_s"] + row["failed_per_s"], now)

    def missed(self, why: str) -> None:
        """The database could not be asked; the last look stays on the screen, marked as old."""
        self._away = why

    def frame(self, now: float, width: int, height: int, *, live: bool) -> Group:
        """The whole screen, or as much of it as fits."""
        clock = dt.datetime.now().astimezone()
        head = Text("wqcore", style="bold") + Text(f" {self._where} · {clock:%H:%M:%S}")
        if live:
            head += Text(f" · every {self._every_s:g} s · q leaves", style="dim")
        parts: list[RenderableType] = [head]
        if self._away is not None:
            parts.append(
                Text(f"what follows is old: {self._away}", style="bold red", no_wrap=True, overflow="ellipsis")
            )
        if self._found is None:
            return Group(*parts)
        masters = len(self._found["processes"])
        room = max(3, height - 14 - masters - LONGEST_SHOWN)
        parts += [Text(""), self._queues(self._found["queues"], now, width, room), Text("")]
        parts.append(masters_table(self._found) if masters else Text("no master runs", style="bold yellow"))
        longest = self._longest()
        if longest.plain:
            parts += [Text(""), longest]
        parts += [Text(""), Text(ended_line(self._ended)), *database_lines(self._found)]
        return Group(*parts)

    def lines(self) -> list[str]:
        """A look as plain lines, for what is no terminal."""
        now = dt.datetime.now().astimezone()
        if self._found is None or self._away is not None:
            return [f"{now:%H:%M:%S} {self._away or 'nothing is known yet'}"]
        return [
            f"{now:%H:%M:%S} {row['queue']}: running {row['running']}/{row['seats']}, waiting "
            f"{number(row['waiting'], more=row['capped'])} (oldest {span(row['oldest_waiting_s'])}), "
            f"done {rate(row['completed_per_s'])}/s, failed {rate(row['failed_per_s'])}/s, later "
            f"{number(row['scheduled'], more=row['later_capped'])}, retries {number(row['retryable'])}"
            + (", paused" if row["paused"] else "")
            for row in self._found["queues"]
        ]

    def _queues(self, rows: list[dict[str, Any]], now: float, width: int, room: int) -> Table:
        cells = max(6, min(CELLS_MAX, (width - 62) // 2))
        table = new_table("queue", "running", "oldest", "waiting", "done/s", "fail/s", right=("oldest", "fail/s"))
        table.columns[0].max_width = max(10, width - 48 - 2 * cells)
        shown = rows if len(rows) <= room else sorted(rows, key=lambda row: -row["waiting"])[: room - 1]
        for row in shown:
            waits = sparkline(self._history.means(f"waiting {row['queue']}", now, cells))
            done = sparkline(self._history.means(f"done {row['queue']}", now, cells))
            table.add_row(
                Text(row["queue"], style="bold yellow" if row["paused"] else "bold"),
                running(row),
                span(row["oldest_waiting_s"]),
                Text(f"{number(row['waiting'], more=row['capped']):>6} ") + Text(waits, style="yellow"),
                Text(f"{rate(row['completed_per_s']):>6} ") + Text(done, style="green"),
                Text(rate(row["failed_per_s"]), style="red" if row["failed_per_s"] else ""),
            )
        if len(shown) < len(rows):
            table.add_row(Text(f"{len(rows) - len(shown)} more", style="dim"))
        return table

    def _longest(self) -> Text:
        """The jobs that have run for longest."""
        jobs = [
            (job["for_s"], job, process)
            for process in (self._found or {})["processes"]
            if process["beat_age_s"] <= SILENT_S
            for job in process["jobs"]
        ]
        jobs.sort(key=lambda entry: -entry[0])
        parts = [
            Text(f"{job['id']} {job['kind']} ")
            + Text(span(for_s), style="bold")
            + Text(f" {process['host']}", style="dim")
            for for_s, job, process in jobs[:LONGEST_SHOWN]
        ]
        return Text("longest: ") + Text(" · ").join(parts) if parts else Text("")
