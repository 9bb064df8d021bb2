"""`wqcore workers`: masters and their workers, the live stack of one, and draining from any machine."""

from __future__ import annotations

import socket
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from wqcore import clock
from wqcore.cli import front
from wqcore.client import SyncClient
from wqcore.control import search
from wqcore.control.masters import MasterInfo, RunningJob, WorkerInfo, named
from wqcore.errors import ConfigError, DatabaseUnavailable
from wqcore.proc import stacks
from wqcore.settings import Settings
from wqcore.watch import tables

JOBS_SHOWN = 3
LOOK_S = 0.25

workers = front.room("Show masters and their workers, see what one is doing, drain one.", no_args_is_help=True)
front.app.add_typer(workers, name="workers")


@workers.command("list")
def list_workers(
    all_jobs: Annotated[
        bool, typer.Option("--jobs", help=f"All running jobs, not the {JOBS_SHOWN} longest of each.")
    ] = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """List masters and their workers, with what each runs."""
    settings = front.settings(config)
    with front.client(config) as client:
        found = client.masters()
    if as_json:
        front.print_json([msgspec.to_builtins(master) for master in found])
    elif found:
        front.out.print(_table(found, settings, None if all_jobs else JOBS_SHOWN), soft_wrap=False)
    else:
        front.out.print("no master runs")


@workers.command("stack")
def show_stack(
    pid: Annotated[int, typer.Argument(help="A worker or keeper on this host.", min=1)],
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Show where each thread of a worker or keeper is now, also when its loop is blocked; it goes on as before."""
    threads = stacks.stacks(pid)
    jobs = _jobs_of(pid, config)
    if as_json:
        shown = [{"thread": one.thread, "stack": one.lines, "silent": one.silent} for one in threads]
        front.print_json({"pid": pid, "threads": shown, "jobs": jobs and [msgspec.to_builtins(job) for job in jobs]})
        return
    for one in threads:
        name = "main thread" if one.thread == pid else f"thread {one.thread}"
        what = (
            "gave no answer: it blocks signals, or gets no processor"
            if one.silent
            else ""
            if one.lines
            else "runs no Python"
        )
        front.out.print(Text(name, style="bold") + Text(f" {what}" if what else ", innermost call first"))
        for line in one.lines:
            front.out.print(Text(line))
    if jobs is None:
        front.out.print("running jobs: not known, since the database cannot be asked", style="dim")
    else:
        running = ", ".join(f"{job.id} ({job.kind}, {tables.span(job.for_s)})" for job in jobs)
        front.out.print(f"running jobs, at the last heartbeat: {running or 'none'}")


@workers.command("drain")
def drain_masters(
    targets: Annotated[list[str], typer.Argument(help="Masters: a host, a pid, HOST:PID, or the beginning of an id.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until they have left.")] = False,
    timeout: Annotated[str | None, typer.Option(help="With --wait: give up after this time, e.g. 90s.")] = None,
    yes: front.YesOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Let masters drain and end, wherever they run, as TERM does; whoever supervises them may start them anew."""
    limit_s = search.span(timeout).total_seconds() if timeout is not None else None
    settings = front.settings(config)
    with front.client(config) as client:
        meant = named(client.masters(), targets)
        if len(meant) > 1:
            for master in meant:
                front.err.print(f"  {front.plain(_name(master))}: {master.running} running jobs")
            front.confirm(f"Drain {len(meant)} masters?", yes=yes)
        asked = set(client.drain_masters([master.id for master in meant]))
        told = [master for master in meant if master.id in asked]
        left = _wait(client, told, limit_s, settings) if wait else []
    names = ", ".join(_name(master) for master in told)
    if wait:
        sentence = f"still draining: {', '.join(_name(one) for one in left)}" if left else f"drained and gone: {names}"
    else:
        sentence = f"asked to drain: {names}" if told else "they have left meanwhile"
    found = {"asked": [master.id for master in told], "draining": [master.id for master in left] if wait else None}
    front.printed(found, sentence, as_json=as_json)
    if left:
        raise typer.Exit(front.EXIT_LATE)


def _wait(client: SyncClient, asked: list[MasterInfo], limit_s: float | None, settings: Settings) -> list[MasterInfo]:
    """Waits until they have removed their rows; one that falls silent has ended otherwise, and is not waited for."""
    until = None if limit_s is None else clock.monotonic() + limit_s
    wanted = {master.id for master in asked}
    silent_s = max(settings.process.dead_after_s, 5 * settings.process.beat_interval_s)
    while True:
        left = [one for one in client.masters() if one.id in wanted and one.beat_age_s < silent_s]
        if not left or (until is not None and clock.monotonic() >= until):
            return left
        clock.sleep(LOOK_S)


def _jobs_of(pid: int, config: Any) -> list[RunningJob] | None:
    """What the worker ran at the last heartbeat; None where that cannot be asked."""
    try:
        with front.client(config) as client:
            here = [master for master in client.masters() if master.host == socket.gethostname()]
    except (DatabaseUnavailable, ConfigError):
        return None
    return [job for master in here for worker in master.workers if worker.pid == pid for job in worker.jobs]


def _table(found: list[MasterInfo], settings: Settings, jobs_shown: int | None) -> Table:
    table = tables.new_table(
        "pid", "what", "state", "running", "done/s", "memory", "longest running",
        right=("pid", "done/s", "memory"), fold=("what", "longest running"),
    )  # fmt: skip
    for master in found:
        silent = master.beat_age_s > settings.process.dead_after_s
        state = "silent" if silent else "draining" if master.drain_asked_at else "on"
        table.add_row(
            Text(str(master.pid), style="bold"),
            Text(master.host, style="bold") + Text(f" {master.group or 'all queues'}, {master.version}", style="dim"),
            Text(state, style="red" if silent else "yellow" if master.drain_asked_at else "green"),
            "",
            "",
            "",
            Text(f"{master.id[:8]}, {tables.span(master.beat_age_s)} ago", style="red" if silent else "dim"),
        )
        for worker in master.workers:
            table.add_row(*_row(worker, jobs_shown))
        if master.keeper_pid is not None:
            table.add_row(str(master.keeper_pid), Text(" keeper", style="dim"))
    return table


def _row(worker: WorkerInfo, jobs_shown: int | None) -> tuple[str | Text, ...]:
    shown = worker.jobs[:jobs_shown] if jobs_shown is not None else worker.jobs
    lines = [f"{job.id} {job.kind} {tables.span(job.for_s)}" for job in shown]
    more = worker.running - len(shown)
    stuck = worker.silent_s > tables.SILENT_S
    return (
        str(worker.pid or "–"),
        f" {worker.queue or '–'}",
        Text(f"silent {tables.span(worker.silent_s)}" if stuck else worker.state,
             style="red" if stuck else "" if worker.state == "working" else "yellow"),
        Text(f"{worker.running}/{worker.seats}", style="red" if worker.running >= worker.seats > 0 else ""),
        tables.rate(worker.completed_per_s),
        tables.size(worker.memory_bytes),
        Text("\n".join(lines + ([f"and {more} more"] if more > 0 else []))),
    )  # fmt: skip


def _name(master: MasterInfo) -> str:
    return f"{master.host}:{master.pid}"
