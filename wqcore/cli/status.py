"""`wqcore status`: queues, masters, and what ended lately."""

from __future__ import annotations

from rich.table import Table

from wqcore import launch
from wqcore.cli import front
from wqcore.watch import status


@front.app.command("status")
def show_status(config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Show queues, processes and what ended within the last hour."""
    settings = front.settings(config)
    with launch.database(settings) as dsn:
        found = status.read(*front.chosen(settings, dsn))
    if as_json:
        front.print_json(found)
        return
    table = Table("queue", "ready", "due", "scheduled", "held", "shards", "", title="queues", title_justify="left")
    for row in found["queues"]:
        counts = [str(row[name]) for name in ("ready", "due", "scheduled", "held", "shards")]
        table.add_row(row["queue"], *counts, "paused" if row["paused"] else "")
    front.out.print(table)
    table = Table("host", "pid", "group", "beat", "shards", "running", title="masters", title_justify="left")
    for row in found["processes"]:
        age = f"{row['beat_age_s']:.1f} s ago"
        table.add_row(row["host"], str(row["pid"]), row["group"] or "all", age, str(row["shards"]), str(row["running"]))
    front.out.print(table)
    ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["last_hour"].items())) or "nothing"
    front.out.print(f"ended within the last hour: {ended}")
