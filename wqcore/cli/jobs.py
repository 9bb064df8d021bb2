"""`wqcore jobs`: list, show, retry, cancel, delete, reschedule, wait. docs/howto/command-line.md has the search language."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import Progress, TextColumn
from rich.text import Text

from wqcore.cli import front
from wqcore.client import SyncClient
from wqcore.control import search
from wqcore.control.changes import BITE_JOBS, CANCELLED, Changed, Chosen
from wqcore.control.jobs import JobInfo
from wqcore.errors import InvalidSearch
from wqcore.job import JobState
from wqcore.watch import jobcard, tables

EXAMPLES_SHOWN = 2
LIST_LIMIT = 20
WAITED = {
    JobState.COMPLETED: 0,
    JobState.DISCARDED: front.EXIT_DISCARDED,
    JobState.CANCELLED: front.EXIT_CANCELLED,
}

jobs = front.room("Show jobs, and change them: by their ids, or all that match a search.", no_args_is_help=True)
front.app.add_typer(jobs, name="jobs")


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    """Qualifiers and their values. A shell that breaks words at colons (bash) gives `kind`, `:` and `s` for `kind:s`."""
    words = [*(context.params.get("words") or []), incomplete]
    begun, prefix = incomplete, ""
    for parts in (3, 2):
        if len(words) >= parts and words[1 - parts] == ":":
            prefix = words[-parts] + ":"
            begun = prefix + "".join(words[2 - parts :] if parts == 3 else [])
            break
    kinds, queues = front.kinds_and_queues(context, kinds=begun.startswith("ki"))
    return [_AfterColon(found.removeprefix(prefix)) for found in search.complete(begun, kinds, queues)]


class _AfterColon(str):
    """A value that goes on after the colon; typer would leave it out, because it does not begin with the word `:`."""

    __slots__ = ()

    def startswith(self, *_: object) -> bool:
        return True


SearchArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"Ids, and qualifiers: {search.KNOWN}",
        metavar="[ID|QUALIFIER:VALUE]...",
        autocompletion=_complete,
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only count what would be changed.")]
IdArgument = Annotated[int, typer.Argument(help="The job's id.", min=1, max=(1 << 63) - 1)]
CarriedOption = Annotated[
    bool, typer.Option("--args", help="Show its args, metadata and output too: they can hold secrets.")
]


@jobs.command("list")
def list_jobs(
    words: SearchArgument = None,
    limit: Annotated[int, typer.Option(help="Show at most so many.", min=1, max=10_000)] = LIST_LIMIT,
    after: Annotated[int, typer.Option(help="Go on after this id.", min=0)] = 0,
    carried: CarriedOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """List jobs that match, by id."""
    chosen = search.parse(words or []).filter
    with front.client(config) as client:
        found = client.jobs(chosen, limit=limit + 1, after=after)
    more = len(found) > limit
    del found[limit:]
    if as_json:
        front.print_json([jobcard.plain(info, carried=carried) for info in found])
        return
    if found:
        front.out.print(jobcard.table(found, carried=carried), soft_wrap=False)
        if more:
            front.out.print(f"more: --after {found[-1].id}, or a larger --limit", style="dim")
    else:
        front.out.print("no job matches" if words else "no jobs")


@jobs.command("show")
def show_job(
    job_id: IdArgument,
    carried: CarriedOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Show all that is known of a job: where it is, its attempts and errors, its times."""
    with front.client(config) as client:
        info = client.job(job_id)
        owner = client.owner(job_id) if info is not None and not info.is_finished else None
    if info is None:
        raise front.Refused(_unknown(job_id))
    if as_json:
        front.print_json(jobcard.plain(info, carried=carried) | {"owner": owner and msgspec.to_builtins(owner)})
    else:
        front.out.print(jobcard.card(info, owner, carried=carried), soft_wrap=False)


@jobs.command("wait")
def wait_for_job(
    job_id: IdArgument,
    timeout: Annotated[str | None, typer.Option(help="Give up after this time, e.g. 90s, 5m.")] = None,
    carried: CarriedOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Wait until a job has finished; the exit code tells how it ended."""
    timeout_s = _span(timeout).total_seconds() if timeout is not None else None
    with front.client(config) as client:
        try:
            info = client.wait(job_id, timeout_s=timeout_s)
        except TimeoutError as error:
            front.err.print(front.plain(str(error)))
            raise typer.Exit(front.EXIT_LATE) from None
    why = f": {info.last_error}" if info.last_error and info.state != JobState.COMPLETED else ""
    text = f"job {info.id} ({info.kind}) is {info.state}{why}"
    front.printed(jobcard.plain(info, carried=carried), text, as_json=as_json)
    raise typer.Exit(WAITED[info.state])


@jobs.command("retry")
def retry_jobs(
    words: SearchArgument = None,
    yes: front.YesOption = False,
    dry_run: DryRunOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Run jobs now: those that wait for their time, and finished ones once more. A search must name states."""
    wanted = _wanted("retry", words)
    if not wanted.names_only and not wanted.filter.states:
        raise InvalidSearch("say which to retry, e.g. state:discarded: else completed jobs would run once more")
    _change("retry", "retried", wanted, lambda client, chosen, tell: client.retry(chosen, progress=tell),
            yes=yes, dry_run=dry_run, as_json=as_json, config=config)  # fmt: skip


@jobs.command("cancel")
def cancel_jobs(
    words: SearchArgument = None,
    reason: Annotated[str, typer.Option(help="Becomes the job's error.")] = CANCELLED,
    yes: front.YesOption = False,
    dry_run: DryRunOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """End jobs as cancelled: at once when they wait; the handler of a running one is cancelled within a second."""
    _change("cancel", "cancelled", _wanted("cancel", words),
            lambda client, chosen, tell: client.cancel(chosen, reason=reason, progress=tell),
            yes=yes, dry_run=dry_run, as_json=as_json, config=config)  # fmt: skip


@jobs.command("delete")
def delete_jobs(
    words: SearchArgument = None,
    yes: front.YesOption = False,
    dry_run: DryRunOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Delete jobs that wait, and finished ones, without a trace."""
    _change("delete", "deleted", _wanted("delete", words),
            lambda client, chosen, tell: client.delete(chosen, progress=tell),
            yes=yes, dry_run=dry_run, as_json=as_json, config=config)  # fmt: skip


@jobs.command("reschedule")
def reschedule_jobs(
    words: SearchArgument = None,
    in_: Annotated[str | None, typer.Option("--in", help="So long from now, e.g. 90s, 2h.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="At this time, e.g. 2026-11-24T06:00Z; UTC without a zone.")
    ] = None,
    yes: front.YesOption = False,
    dry_run: DryRunOption = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Give waiting jobs another time to run."""
    if (in_ is None) == (at is None):
        raise InvalidSearch("say either --in or --at")
    when: dt.datetime | dt.timedelta = _span(in_) if in_ is not None else search.moment(at or "")
    _change("reschedule", "rescheduled", _wanted("reschedule", words),
            lambda client, chosen, tell: client.reschedule(chosen, when, progress=tell),
            yes=yes, dry_run=dry_run, as_json=as_json, config=config)  # fmt: skip


def _wanted(verb: str, words: list[str] | None) -> search.Search:
    if not words:
        raise InvalidSearch(f"say which to {verb}: ids, or qualifiers ({search.KNOWN})")
    return search.parse(words)


def _span(text: str) -> dt.timedelta:
    return search.span(text)


def _change(
    verb: str,
    done: str,
    wanted: search.Search,
    send: Callable[[SyncClient, Chosen, Callable[[Changed], None]], Changed],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    config: Any,
) -> None:
    """Ids are changed at once; what a search finds is counted and shown first, and changed when somebody agrees."""
    with front.client(config) as client:
        if wanted.names_only and not dry_run:
            changed = _told(client, wanted.ids, len(wanted.ids), send)
        else:
            count = client.count(wanted.filter)
            if dry_run or not count:
                found = f"would {verb} {_jobs(count)}" if dry_run else "no job matches"
                front.printed({"matching": count} | msgspec.to_builtins(Changed()), found, as_json=as_json)
                return
            if not yes:
                _examples(client.jobs(wanted.filter, limit=EXAMPLES_SHOWN), count)
            front.confirm(f"{verb.capitalize()} {_jobs(count)}?", yes=yes)
            changed = _told(client, wanted.filter, count, send)
    front.printed(msgspec.to_builtins(changed), _sentence(changed, done), as_json=as_json)
    if wanted.names_only and changed.changed + changed.cancelling < len(wanted.ids):
        raise typer.Exit(front.EXIT_REFUSED)


def _told(
    client: SyncClient,
    chosen: Chosen,
    count: int,
    send: Callable[[SyncClient, Chosen, Callable[[Changed], None]], Changed],
) -> Changed:
    """Sends the change; on a terminal, one of several bites shows how far it is."""
    if count <= BITE_JOBS or not front.err.is_terminal:
        return send(client, chosen, lambda changed: None)
    with Progress(TextColumn("{task.description}"), console=front.err, transient=True) as progress:
        task = progress.add_task("")
        return send(
            client, chosen,
            lambda changed: progress.update(task, description=f"{sum(msgspec.structs.astuple(changed))} of {count}"),
        )  # fmt: skip


def _examples(found: list[JobInfo], count: int) -> None:
    for info in found:
        front.err.print(Text("  ") + jobcard.line(info))
    if count > len(found):
        front.err.print(f"  … and {tables.number(count - len(found))} more")


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count != 1 else ''}"


def _sentence(changed: Changed, done: str) -> str:
    parts = [
        (changed.changed, done),
        (changed.cancelling, "running, their cancellation was asked for"),
        (changed.running, "left alone: a worker holds them"),
        (changed.finished, "left alone: they have ended"),
        (changed.taken, "left alone: another job has their key"),
        (changed.unknown, "unknown"),
    ]
    return "; ".join(f"{count} {text}" for count, text in parts if count) or f"0 {done}"


def _unknown(job_id: int) -> str:
    return f"job {job_id} is neither unfinished nor in the history: it never was, was deleted, or its time in the history is over"
