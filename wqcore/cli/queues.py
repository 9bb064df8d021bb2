"""`wqcore queues`: list, pause, resume, limits."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from wqcore.cli import front
from wqcore.control import search
from wqcore.control.queues import QueueInfo
from wqcore.errors import InvalidLimits, UnknownQueue
from wqcore.settings import Limits, Rate, Settings
from wqcore.watch import tables

LIMITS = Limits.__struct_fields__
_PER = {1.0: "s", 60.0: "m", 3600.0: "h"}
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(.+?))?(?:,burst=(\d+(?:\.\d+)?))?")

queues = front.room("Show queues, pause them, change what they may do while they run.", no_args_is_help=True)
front.app.add_typer(queues, name="queues")
NamesArgument = Annotated[
    list[str] | None, typer.Argument(help="Queues.", autocompletion=front.queue_names, show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="All queues.")]
RateHelp = "A rate of starts, e.g. 100/s, 5000/1h, 10/s,burst=50."


@queues.command("list")
def list_queues(as_json: front.JsonOption = False, config: front.ConfigOption = None) -> None:
    """List queues: slots, pauses, limits that were changed at run time, and how long finished jobs are kept."""
    with front.client(config) as client:
        found = client.queues()
    if as_json:
        front.print_json([msgspec.to_builtins(info) for info in found])
        return
    table = tables.new_table(
        "queue", "slots", "kept (h)", "changed limits", "", right=("slots",), fold=("queue", "changed limits")
    )
    for info in found:
        table.add_row(
            Text(info.name, style="bold"),
            str(info.slots),
            "/".join(f"{info.keep_hours.get(outcome, 0):g}" for outcome in ("completed", "cancelled", "discarded")),
            ", ".join(f"{name} {_shown(value)}" for name, value in info.limits.items()) or "–",
            Text(f"paused since {tables.local(info.paused_at)}", style="yellow") if info.paused_at else "",
        )
    front.out.print(table, soft_wrap=False)


@queues.command("pause")
def pause_queues(
    names: NamesArgument = None,
    everything: AllOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Pause queues: nothing of them is started; what runs goes on."""
    _switch("paused", names, everything=everything, as_json=as_json, config=config)


@queues.command("resume")
def resume_queues(
    names: NamesArgument = None,
    everything: AllOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Let paused queues go on."""
    _switch("resumed", names, everything=everything, as_json=as_json, config=config)


@queues.command("limits")
def limit_queue(
    name: Annotated[str, typer.Argument(help="The queue.", autocompletion=front.queue_names)],
    rate: Annotated[str | None, typer.Option(help=RateHelp)] = None,
    rate_per_key: Annotated[str | None, typer.Option(help="The same for each serial key.")] = None,
    max_per_key: Annotated[int | None, typer.Option(help="Jobs of one serial key that run at a time.")] = None,
    max_workers_total: Annotated[int | None, typer.Option(help="Jobs that run at a time, over all hosts.")] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(help=f"Take a change back, so that the configuration counts: {', '.join(LIMITS)}, or all."),
    ] = None,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Show what a queue may do, or change it while it runs."""
    given = {
        "rate": _rate("--rate", rate),
        "rate_per_key": _rate("--rate-per-key", rate_per_key),
        "max_per_key": max_per_key,
        "max_workers_total": max_workers_total,
    }
    changes: dict[str, Any] = dict.fromkeys(_unset(unset or []))
    changes |= {limit: value for limit, value in given.items() if value is not None}
    settings = front.settings(config)
    with front.client(config) as client:
        changed = client.set_limits(name, **changes) if changes else _found(client.queues(), name).limits
    if as_json:
        front.print_json({"queue": name, "changed": changed, "configured": _configured(settings, name)})
        return
    _show_limits(changed, _configured(settings, name))


def _switch(what: str, names: list[str] | None, *, everything: bool, as_json: bool, config: Any) -> None:
    if bool(names) == everything:
        raise InvalidLimits("say which queues, or --all")
    with front.client(config) as client:
        known = client.queues()
        chosen = [_found(known, name).name for name in names or []] or [info.name for info in known]
        change = client.pause if what == "paused" else client.resume
        changed = [name for name in chosen if change(name)]
    was = [name for name in chosen if name not in changed]
    sentence = "; ".join(
        part for part in (
            f"{what} {', '.join(changed)}" if changed else "",
            f"{', '.join(was)}: {'paused already' if what == 'paused' else 'not paused'}" if was else "",
        ) if part
    )  # fmt: skip
    front.printed({what: changed, "unchanged": was}, sentence or "no queues", as_json=as_json)


def _found(known: list[QueueInfo], name: str) -> QueueInfo:
    for info in known:
        if info.name == name:
            return info
    raise UnknownQueue(f"unknown queue {name!r}; known are: {', '.join(info.name for info in known) or 'none'}")


def _rate(option: str, text: str | None) -> Rate | None:
    """A rate as a person writes it."""
    if text is None:
        return None
    match = _RATE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InvalidLimits(f"{option} {text!r}: write JOBS/TIME, e.g. 100/s, 5000/1h or 10/s,burst=50")
    jobs, per, burst = match.groups()
    per_s = search.span(per if per and per[0].isdigit() else f"1{per or 's'}").total_seconds()
    fields = {"jobs": float(jobs), "per_s": per_s} | ({"burst": float(burst)} if burst else {})
    try:
        return msgspec.convert(fields, Rate)
    except msgspec.ValidationError as error:
        raise InvalidLimits(f"{option} {text!r}: {error}") from None


def _unset(names: list[str]) -> list[str]:
    wanted = [name.replace("-", "_") for text in names for name in text.split(",")]
    return list(LIMITS) if wanted == ["all"] else wanted


def _configured(settings: Settings, name: str) -> dict[str, Any] | None:
    """The limits that this configuration has; None: the queue is not in it."""
    queue = settings.queues.get(name)
    return None if queue is None else msgspec.to_builtins(queue.limits({}))


def _show_limits(changed: dict[str, Any], configured: dict[str, Any] | None) -> None:
    table = tables.new_table("limit", "in force", "configured", fold=("in force", "configured"))
    for limit in LIMITS:
        own = "not in this file" if configured is None else _shown(configured[limit])
        table.add_row(limit, Text(_shown(changed[limit]), style="yellow") if limit in changed else own, own)
    front.out.print(table, soft_wrap=False)
    if changed:
        front.out.print(f"changed at run time: {', '.join(changed)}; --unset takes a change back", style="dim")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        burst = f", burst {value['burst']:g}" if "burst" in value else ""
        per = value.get("per_s", 1.0)
        return f"{value['jobs']:g}/{_PER.get(per, f'{per:g}s')}{burst}"
    return "none" if value is None else str(value)
