"""`wqcore doctor`: what is wrong with database and configuration, and what to change."""

from __future__ import annotations

from collections import Counter

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.cli import front
from wqcore.proc.preload import preload
from wqcore.watch import doctor as doctoring

_MARKS = {"ok": ("✓", "green"), "remark": ("!", "yellow"), "problem": ("✗", "red"), "unknown": ("?", "cyan")}


@front.app.command()
def doctor(config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Look for what is wrong with the database and the configuration, and say what to change.

    Writes nothing. Exits with 1 when it found a problem, with 3 when the database cannot be used.
    """
    settings = front.settings(config)
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    kinds = [name for kind in catalog for name in (kind.name, *kind.aliases)]
    with launch.database(settings) as dsn:
        facts = doctoring.gather(*front.chosen(settings, dsn), kinds=kinds)
    found = doctoring.findings(facts)
    counts = Counter(finding.level for finding in found)
    if as_json:
        front.print_json([msgspec.to_builtins(finding) for finding in found])
    else:
        front.out.print(_table(found), soft_wrap=False)
        front.out.print(
            f"{counts['ok']} right, {counts['remark']} remarks, {counts['problem']} problems, "
            f"{counts['unknown']} could not be looked at"
        )
    if facts.unreachable is not None:
        raise typer.Exit(front.EXIT_DATABASE)
    if counts["problem"]:
        raise typer.Exit(front.EXIT_REFUSED)


def _table(found: list[doctoring.Finding]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        mark, colour = _MARKS[finding.level]
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(mark, style=colour), Text(finding.check), text)
    return table
