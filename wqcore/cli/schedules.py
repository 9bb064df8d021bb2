"""`wqcore schedules`: recurring jobs and their next ticks."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from wqcore.cli import front
from wqcore.watch import timetable

schedules = typer.Typer(
    help="Show recurring jobs and their next ticks, or change one.", invoke_without_command=True, no_args_is_help=False
)
front.app.add_typer(schedules, name="schedules")
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]


@schedules.callback()
def show_schedules(
    context: typer.Context,
    config: front.ConfigOption = None,
    as_json: front.JsonOption = False,
    next_ticks: Annotated[int, typer.Option("--next", help="How many coming ticks to show.", min=0, max=100)] = 3,
) -> None:
    """Show recurring jobs and their next ticks."""
    if config is not None:
        front.Choices.config = config
    if context.invoked_subcommand is not None:
        return
    with front.client(None) as client:
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


@schedules.command("pause")
def pause_schedule(name: NameArgument, config: front.ConfigOption = None) -> None:
    """Pause a recurring job: its ticks pass without a job."""
    with front.client(config) as client:
        front.out.print(f"paused {name}" if client.pause_schedule(name) else f"{name} was paused already")


@schedules.command("resume")
def resume_schedule(name: NameArgument, config: front.ConfigOption = None) -> None:
    """Let a recurring job go on with its next tick."""
    with front.client(config) as client:
        front.out.print(f"resumed {name}" if client.resume_schedule(name) else f"{name} was not paused")


@schedules.command("trigger")
def trigger_schedule(name: NameArgument, config: front.ConfigOption = None) -> None:
    """Insert its job now, whatever its ticks."""
    with front.client(config) as client:
        front.out.print(f"inserted job {client.trigger_schedule(name)} of {name}")


@schedules.command("delete")
def delete_schedule(name: NameArgument, config: front.ConfigOption = None) -> None:
    """Remove it; one that code or configuration declare comes back with the next start."""
    with front.client(config) as client:
        client.delete_schedule(name)
    front.out.print(f"deleted {name}")
