"""`wqcore schedules`: recurring jobs and their next ticks."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from wqcore.cli import front
from wqcore.control.schedules import NEXT_TICKS
from wqcore.watch import timetable

schedules = front.room(
    "Show recurring jobs and their next ticks, or change one.", invoke_without_command=True, no_args_is_help=False
)
front.app.add_typer(schedules, name="schedules")
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]
NextOption = Annotated[int, typer.Option("--next", help="How many coming ticks to show.", min=0, max=100)]


@schedules.callback()
def show_schedules(
    context: typer.Context,
    config: front.ConfigOption = None,
    as_json: front.JsonOption = False,
    next_ticks: NextOption = NEXT_TICKS,
) -> None:
    """Show recurring jobs and their next ticks."""
    if config is not None:
        front.Choices.config = config
    if context.invoked_subcommand is None:
        _show(None, as_json=as_json, next_ticks=next_ticks)


def _show(config: Path | None, *, as_json: bool, next_ticks: int) -> None:
    with front.client(config) as client:
        found = client.schedules(next_ticks=next_ticks)
    if as_json:
        front.print_json([timetable.plain(info) for info in found])
    elif found:
        now = dt.datetime.now(dt.UTC)
        front.out.print(timetable.table(found, now), soft_wrap=False)
        for line in timetable.remarks(found, now):
            front.out.print(line)
    else:
        front.out.print(
            "no schedules: declare one with wqcore.recurring, under [schedules], or with Client.set_schedule"
        )


@schedules.command("list")
def list_schedules(
    config: front.ConfigOption = None, as_json: front.JsonOption = False, next_ticks: NextOption = NEXT_TICKS
) -> None:
    """The same as without a command."""
    _show(config, as_json=as_json, next_ticks=next_ticks)


@schedules.command("pause")
def pause_schedule(name: NameArgument, config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Pause a recurring job: its ticks pass without a job."""
    with front.client(config) as client:
        changed = client.pause_schedule(name)
    said = f"paused {name}" if changed else f"{name} was paused already"
    front.printed({"name": name, "changed": changed}, said, as_json=as_json)


@schedules.command("resume")
def resume_schedule(name: NameArgument, config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Let a recurring job go on with its next tick."""
    with front.client(config) as client:
        changed = client.resume_schedule(name)
    said = f"resumed {name}" if changed else f"{name} was not paused"
    front.printed({"name": name, "changed": changed}, said, as_json=as_json)


@schedules.command("trigger")
def trigger_schedule(name: NameArgument, config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Insert its job now, whatever its ticks."""
    with front.client(config) as client:
        job = client.trigger_schedule(name)
    front.printed({"name": name, "job": job}, f"inserted job {job} of {name}", as_json=as_json)


@schedules.command("delete")
def delete_schedule(name: NameArgument, config: front.ConfigOption = None, as_json: front.JsonOption = False) -> None:
    """Remove it; one that code or configuration declare comes back with the next start."""
    with front.client(config) as client:
        client.delete_schedule(name)
    front.printed({"name": name, "deleted": True}, f"deleted {name}", as_json=as_json)
