"""A job as the command line shows it: a line, a row, a card. What it carries (args, metadata, output) only when asked for."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wqcore.control.jobs import JobInfo, Owner
from wqcore.job import JobState
from wqcore.watch.tables import local, new_table, span

STYLES = {
    JobState.AVAILABLE: "", JobState.SCHEDULED: "cyan", JobState.RETRYABLE: "yellow", JobState.RUNNING: "bold cyan",
    JobState.COMPLETED: "green", JobState.CANCELLED: "dim", JobState.DISCARDED: "red",
}  # fmt: skip
CARRIED = ("args", "metadata", "output")
ERROR_SHOWN_CHARS = 120


def plain(info: JobInfo, *, carried: bool) -> dict[str, Any]:
    """The job as built-in objects."""
    found: dict[str, Any] = msgspec.to_builtins(info)
    return {name: value for name, value in found.items() if carried or name not in CARRIED}


def line(info: JobInfo) -> Text:
    """The job in one line."""
    text = Text(f"{info.id} {info.kind} ") + Text(info.state, style=STYLES[info.state])
    text += Text(f", queue {info.queue}, created {span(_age_s(info.created_at))} ago")
    return text + Text(f": {_short(info.last_error)}" if info.last_error else "")


def table(found: list[JobInfo], *, carried: bool) -> Table:
    """A row a job."""
    shown = new_table("id", "state", "kind", "queue", "tries", "age", "", right=("id", "tries", "age"))
    for column, width in (("kind", 24), ("queue", 16)):
        index = [each.header for each in shown.columns].index(column)
        shown.columns[index].max_width = width
        shown.columns[index].min_width = min(width, max((cell_len(getattr(info, column)) for info in found), default=0))
    for info in found:
        last = Text(_short(info.last_error) if info.last_error else _when(info))
        if carried:
            last = Text(msgspec.json.encode(info.args).decode()) + Text(f" {last}" if last.plain else "", style="dim")
        shown.add_row(
            str(info.id),
            Text(info.state, style=STYLES[info.state]),
            info.kind,
            info.queue,
            f"{info.attempt}/{info.max_attempts}",
            span(_age_s(info.created_at)),
            last,
        )
    return shown


def card(info: JobInfo, owner: Owner | None, *, carried: bool) -> Group:
    """All that is known of a job."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(info, owner):
        facts.add_row(name, value)
    parts: list[RenderableType] = [
        Text(f"job {info.id} {info.kind}", style="bold") + Text(" is ") + Text(info.state, style=STYLES[info.state]),
        facts,
        Text(""),
        _timeline(info),
    ]  # fmt: skip
    if carried:
        for name in CARRIED:
            text = msgspec.json.format(msgspec.json.encode(getattr(info, name)), indent=2).decode()
            parts += [Text(""), Text(name, style="bold"), Text(text)]
    else:
        parts.append(Text("\nargs, metadata and output: with --args", style="dim"))
    return Group(*parts)


def _facts(info: JobInfo, owner: Owner | None) -> list[tuple[str, Text]]:
    found = [
        ("queue", f"{info.queue}, priority {info.priority}"),
        ("attempts", f"{info.attempt} of {info.max_attempts}" + (f", {info.deaths} deaths" if info.deaths else "")),
        ("serial key", info.serial_key),
        ("job key", info.job_key),
        ("where", _where(info, owner)),
        ("progress", None if info.progress is None else f"{info.progress:.0%} {info.progress_note or ''}"),
    ]
    if owner is not None and owner.cancel_asked_at is not None:
        found.append(("cancel", f"asked for {span(_age_s(owner.cancel_asked_at))} ago: {owner.cancel_reason}"))
    return [(name, Text(value)) for name, value in found if value]


def _where(info: JobInfo, owner: Owner | None) -> str | None:
    if owner is None or not owner.held:
        return None
    place = f"{owner.host or 'a master that was not heard of'}, worker {owner.worker_pid or 'unknown'}"
    place += f", master {owner.master_pid}" if owner.master_pid else ""
    return (
        f"runs on {place}, for {span(owner.running_s)}"
        if owner.running_s is not None
        else f"waits for a seat on {place}"
    )


def _timeline(info: JobInfo) -> Table:
    """What is known of its times, in their order."""
    events: list[tuple[dt.datetime | None, Text]] = [(info.created_at, Text("created"))]
    events += [
        (error.at, _error(error.attempt, error.error_class, error.error, error.traceback)) for error in info.errors
    ]
    if info.attempted_at is not None:
        events.append((info.attempted_at, Text("last run began")))
    if info.finished_at is not None:
        events.append((info.finished_at, Text(info.state, style=STYLES[info.state])))
    if info.run_at is not None and info.state in (JobState.SCHEDULED, JobState.RETRYABLE):
        events.append((info.run_at, Text(f"runs, in {span(-_age_s(info.run_at))}", style=STYLES[info.state])))
    dated = sorted((event for event in events if event[0] is not None), key=lambda event: event[0] or info.created_at)
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for at, text in [*dated, *(event for event in events if event[0] is None)]:
        shown.add_row(local(at), text)
    return shown


def _error(attempt: int | None, name: str | None, message: str, trace: list[str]) -> Text:
    text = Text(f"attempt {attempt} failed: " if attempt is not None else "ended: ", style="red")
    text += Text(f"{name}: " if name else "") + Text(message)
    return text + Text("".join(f"\n  {place}" for place in trace), style="dim")


def _when(info: JobInfo) -> str:
    if info.state in (JobState.SCHEDULED, JobState.RETRYABLE) and info.run_at is not None:
        return f"in {span(-_age_s(info.run_at))}"
    if info.progress is not None:
        return f"{info.progress:.0%} {info.progress_note or ''}".rstrip()
    return f"ended {span(_age_s(info.finished_at))} ago" if info.finished_at is not None else ""


def _short(text: str) -> str:
    first = " ".join(text.split())
    return first if len(first) <= ERROR_SHOWN_CHARS else first[: ERROR_SHOWN_CHARS - 1] + "…"


def _age_s(at: dt.datetime) -> float:
    return (dt.datetime.now(dt.UTC) - at).total_seconds()
