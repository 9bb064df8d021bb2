"""What the command line shows of queues, masters and the database, as tables that fit 80 columns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

SILENT_S = 5.0
"""A heartbeat is a second old at most; one that is older than this deserves a colour."""
OLD_TRANSACTION_S = 300.0
"""A transaction that is older keeps vacuum from removing dead rows: their number begins to matter after minutes."""
NOTIFY_QUEUE_HIGH = 0.25


def new_table(*columns: str, right: Iterable[str] = (), fold: Iterable[str] = ()) -> Table:
    """A table without a frame; `right` columns are of numbers, `fold` columns go on in the next line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        number = column in set(right)
        folds = column in set(fold)
        table.add_column(
            column,
            min_width=len(column),
            justify="right" if number else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    return table


def gauge(part: float, whole: float, width: int = 8) -> Text:
    """How much of something is used, e.g. `████░░░░ 5/10`."""
    share = min(1.0, part / whole) if whole else 0.0
    full = round(share * width)
    full = 1 if part and not full else full
    style = "red" if share >= 1.0 else "yellow" if share >= 0.8 else "green"
    return Text("█" * full, style=style) + Text("░" * (width - full), style="dim") + Text(f" {part:g}/{whole:g}")


def running(row: dict[str, Any]) -> Text:
    """What of a queue's seats is taken, or why none is."""
    if row["paused"] and not row["running"]:
        return Text("paused", style="yellow")
    if not row["seats"]:
        return Text("no worker", style="red" if row["waiting"] else "dim")
    return gauge(row["running"], row["seats"], width=4)


def number(count: int | None, *, more: bool = False) -> str:
    """A count in few characters: 1234, 12.3k, 1.2M; `more`: it is a lower bound."""
    if count is None:
        return "–"
    text = str(count)
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)):
        if count >= size * 10 or (count >= size and size > 1_000):
            text = f"{count / size:.1f}".removesuffix(".0") + unit
            break
    return text + ("+" if more else "")


def rate(per_s: float) -> str:
    """Jobs a second in few characters."""
    if per_s >= 100:
        return number(round(per_s))
    return f"{per_s:.1f}" if per_s >= 0.05 else "0" if not per_s else "<0.1"


def span(seconds: float | None) -> str:
    """A time in two units at most: 0.3s, 12s, 5m03s, 2h10m, 3d4h."""
    if seconds is None:
        return "–"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def size(count: int | None) -> str:
    """Bytes in few characters."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024 or unit == "GB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def local(at: dt.datetime | None) -> str:
    """A moment in the time zone of whoever looks, without what goes without saying."""
    if at is None:
        return "–"
    here, now = at.astimezone(), dt.datetime.now().astimezone()
    if here.date() == now.date():
        return f"{here:%H:%M:%S}"
    return f"{here:%d %b %H:%M:%S}" if here.year == now.year else f"{here:%Y-%m-%d %H:%M:%S}"


def queues_table(found: dict[str, Any]) -> Table:
    """A row a queue."""
    table = new_table(
        "queue", "running", "waiting", "oldest", "done/s", "failed/s", "later", "retries", "",
        right=("waiting", "oldest", "done/s", "failed/s", "later", "retries"), fold=("queue",),
    )  # fmt: skip
    for row in found["queues"]:
        table.add_row(
            Text(row["queue"], style="bold"),
            running(row),
            number(row["waiting"], more=row["capped"]),
            span(row["oldest_waiting_s"]),
            rate(row["completed_per_s"]),
            Text(rate(row["failed_per_s"]), style="red" if row["failed_per_s"] else ""),
            number(row["scheduled"], more=row["later_capped"]),
            Text(number(row["retryable"], more=row["later_capped"]), style="yellow" if row["retryable"] else ""),
            Text("paused", style="yellow") if row["paused"] and row["running"] else "",
        )
    return table


def masters_table(found: dict[str, Any]) -> Table:
    """A row a master."""
    table = new_table(
        "master", "group", "heard of", "workers", "running", "done/s", "memory", "",
        right=("heard of", "workers", "done/s", "memory"), fold=("master",),
    )  # fmt: skip
    for row in found["processes"]:
        silent = row["beat_age_s"] > SILENT_S
        table.add_row(
            Text(f"{row['host']}:{row['pid']}", style="bold"),
            row["group"] or "all",
            Text(f"{span(row['beat_age_s'])} ago", style="red" if silent else ""),
            str(row["shards"]),
            gauge(row["running"], row["seats"]),
            rate(row["completed_per_s"]),
            size(row["memory_bytes"]),
            Text("draining", style="yellow") if row["drain_asked_at"] else "",
        )
    return table


def database_lines(found: dict[str, Any]) -> list[Text]:
    """Two lines on the database's health; what needs attention has a colour."""
    base = found["database"]
    oldest = base["oldest_transaction_s"]
    crowded = base["connections"] > 0.8 * base["connections_max"]
    first = [
        Text(f"PostgreSQL {base['version']}"),
        Text(f"answers in {base['round_trip_s'] * 1000:.1f} ms"),
        _warned(f"{base['connections']}/{base['connections_max']} connections", crowded),
        _warned(f"oldest transaction {span(oldest)}", (oldest or 0.0) > OLD_TRANSACTION_S),
    ]
    rows, dead = number(base["jobs_estimate"]), number(base["dead_estimate"])
    second = [
        Text(f"jobs: about {rows} rows and {dead} dead ones, {size(base['job_bytes'])}"),
        Text(f"history: {size(base['history_bytes'])}"),
    ]
    if base["notify_queue"]:
        share = f"notify queue {base['notify_queue']:.0%} full"
        second.append(_warned(share, base["notify_queue"] > NOTIFY_QUEUE_HIGH))
    if base["hidden"]:
        second.append(Text(f"{base['hidden']} sessions are hidden from this role", style="dim"))
    return [Text(" · ").join(first), Text(" · ").join(second)]


def ended_line(found: dict[str, Any]) -> str:
    """What ended lately."""
    counts = [
        f"{number(count, more=outcome in found['last_hour_capped'])} {outcome}"
        for outcome, count in sorted(found["last_hour"].items())
    ]
    return f"ended within the last hour: {', '.join(counts) or 'nothing'}"


def _warned(text: str, bad: bool) -> Text:
    return Text(text, style="bold yellow" if bad else "")
