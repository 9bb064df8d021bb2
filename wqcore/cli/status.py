"""`wqcore status`: queues, masters, the database, and what ended lately."""

from __future__ import annotations

from wqcore import launch
from wqcore.cli import front
from wqcore.watch import status, tables


@front.app.command("status")
def show_status(config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Show queues, masters, the database's health, and what ended within the last hour."""
    settings = front.settings(config)
    with launch.database(settings) as dsn:
        found = status.read(*front.chosen(settings, dsn))
    if as_json:
        front.print_json(found)
        return
    front.out.print(tables.queues_table(found), soft_wrap=False)
    front.out.print()
    if found["processes"]:
        front.out.print(tables.masters_table(found), soft_wrap=False)
    else:
        front.out.print("no master runs: `wqcore run` starts one", style="yellow")
    front.out.print()
    front.out.print(tables.ended_line(found))
    for line in tables.database_lines(found):
        front.out.print(line)
