"""`python -m handlers.cli`: what a dashboard does, on the database itself; each change is one transaction.

    org create TITLE              an organization with a project, its environments and their keys
    endpoint add URL ID           an endpoint: pinged, stored, indexed
    event send NAME [PAYLOAD]     an event
    runs list                     the newest runs of an environment
    runs show RUN                 one with its tasks and executions

`--key` (or TRIGGER_API_KEY) names the environment. `--json` prints for programs; NO_COLOR is heard. Exit codes: 0 done ·
1 refused, or not found · 2 wrong usage or configuration · 3 the database cannot be used.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import psycopg
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

import handlers  # noqa: F401 (declares the kinds, the settings and the tables)
import wqcore
from handlers import ids, records, store
from handlers.ingest import Event, ingest

EXIT_REFUSED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3
COLOURS = {
    "SUCCESS": "green", "COMPLETED": "green", "FAILURE": "red", "ERRORED": "red", "ABORTED": "red", "TIMED_OUT": "red",
    "CANCELED": "dim", "INVALID_PAYLOAD": "red", "UNRESOLVED_AUTH": "red", "STARTED": "cyan", "RUNNING": "cyan",
}  # fmt: skip
T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
organizations, endpoints, events, runs = (typer.Typer(no_args_is_help=True) for _ in range(4))
app.add_typer(organizations, name="org", help="Organizations.")
app.add_typer(endpoints, name="endpoint", help="Endpoints of an environment.")
app.add_typer(events, name="event", help="Events of an environment.")
app.add_typer(runs, name="runs", help="Runs of an environment.")
PIPED_WIDTH = 1000
"""What another program reads is not cut off at the width of a terminal."""
_out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
_err = Console(highlight=False, soft_wrap=True, stderr=True)


class _Choices:
    """The options given before the command."""

    config = Path("conf/dev.toml")


class Refused(Exception):  # noqa: N818 (what was asked for cannot be done; nothing is broken)
    """Ends the command with exit code 1 and this sentence."""


AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Key = Annotated[str, typer.Option("--key", envvar="TRIGGER_API_KEY", help="The environment's API key.")]


@app.callback()
def front(config: Annotated[Path, typer.Option("--config", "-c", help="The TOML file.")] = _Choices.config) -> None:
    """The platform's records, by hand."""
    _Choices.config = config


@organizations.command("create")
def create_organization(
    title: Annotated[str, typer.Argument(help="What it is called.")],
    email: Annotated[str | None, typer.Option(help="Where its welcome is sent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an organization, and print its keys, which are shown only here."""
    if not title.strip():
        raise typer.BadParameter("the title is empty", param_hint="TITLE")
    made = _run(lambda db: records.create_organization(db, title, email))
    if as_json:
        return _print_json(made)
    _out.print(Text(f"{made['title']} is {made['id']}; its keys, which are not shown again:"))
    table = Table("environment", "type", "key", box=None)
    for found in made["environments"]:
        table.add_row(found["slug"], found["type"], found["api_key"])
    return _out.print(table)


@endpoints.command("add")
def add_endpoint(
    url: Annotated[str, typer.Argument(help="Where it is, e.g. https://shop.example/api/trigger.")],
    id_: Annotated[str, typer.Argument(metavar="ID", help="What it calls itself.")],
    key: Key,
    as_json: AsJson = False,
) -> None:
    """Register an endpoint that answers, or move one to another URL; it is indexed by a job."""

    async def add(db: store.Store) -> store.Row:
        return await records.add_endpoint(db, await _environment(db, key), url, id_)

    row = _run(add)
    if as_json:
        return _print_json({"id": row.id, "slug": row.slug, "url": row.url})
    return _out.print(Text(f"endpoint {row.slug} is {row.id}; its index is enqueued"))


@events.command("send")
def send_event(
    name: Annotated[str, typer.Argument(help="What the triggers listen for.")],
    key: Key,
    payload: Annotated[str, typer.Argument(help="JSON.")] = "null",
    id_: Annotated[str | None, typer.Option("--id", help="An event of this id comes in once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send an event."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise typer.BadParameter(f"the payload is not JSON: {error}") from error

    async def send(db: store.Store) -> store.Row:
        environment = await _environment(db, key)
        [record] = await ingest(db, environment.id, [Event(id=id_ or ids.new("event"), name=name, payload=value)])
        return record

    record = _run(send)
    if as_json:
        return _print_json({"id": record.event_id, "record": record.id, "isNew": record.is_new})
    return _out.print(Text(f"event {record.event_id} " + ("was sent" if record.is_new else "had been sent before")))


@runs.command("list")
def list_runs(
    key: Key,
    status: Annotated[str | None, typer.Option(help="Only these, e.g. FAILURE.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest runs."""
    if status is not None and status not in records.RUN_STATUSES:
        raise typer.BadParameter(f"a run is one of {', '.join(records.RUN_STATUSES)}", param_hint="--status")

    async def listed(db: store.Store) -> list[store.Row]:
        return await db.rows("cli_runs", environment=(await _environment(db, key)).id, status=status, limit=limit)

    found = _run(listed)
    if as_json:
        return _print_json([row._asdict() for row in found])
    # a shortened id could not be given to `runs show`
    table = Table(Column("run", min_width=30), "job", "no.", "status", "event", "created", "took", box=None)
    for row in found:
        created = f"{row.created_at.astimezone():%m-%d %H:%M:%S}"
        took = _took(row.started_at, row.completed_at)
        # Text: markup in what users named stays text
        table.add_row(row.id, Text(row.job), str(row.number), _coloured(row.status), Text(row.event), created, took)
    return _out.print(table if found else "no runs", soft_wrap=False)


@runs.command("show")
def show_run(run: Annotated[str, typer.Argument(help="Its id.")], as_json: AsJson = False) -> None:
    """Show a run with its tasks and executions."""
    found = _run(lambda db: records.run(db, run))
    if found is None:
        raise Refused(f"there is no run {run}")
    if as_json:
        return _print_json(found)
    tree = Tree(_line(found["status"], f"{found['job']} no. {found['number']}", found, found["id"]))
    tree.add(Text(f"event {found['event']} ({found['eventName']})"))
    if found["output"] is not None:
        tree.add(Text(f"output {_short(found['output'])}"))
    _add_tasks(tree.add("tasks") if found["tasks"] else tree, found["tasks"])
    branch = tree.add("executions") if found["executions"] else tree
    for execution in found["executions"]:
        retries = f"{execution['retries']} retries" if execution["retries"] else ""
        branch.add(_line(execution["status"], execution["reason"], execution, retries, execution["error"]))
    return _out.print(tree)


def _add_tasks(branch: Tree, tasks: list[dict[str, Any]]) -> None:
    for task in tasks:
        attempts = f"{task['attempts']} attempts" if task["attempts"] > 1 else ""
        key = "" if task["displayKey"] is None else f"[{task['displayKey']}]"
        line = _line(task["status"], task["name"], task, key, attempts, task["error"])
        _add_tasks(branch.add(line), task.get("subtasks", []))


def _line(status: str, name: str, times: dict[str, Any], *more: str | None) -> Text:
    took = _took(times["startedAt"], times["completedAt"])
    return Text(" ").join([_coloured(status), Text(name), *(Text(word, "dim") for word in (took, *more) if word)])


def _coloured(status: str) -> Text:
    return Text(status, COLOURS.get(status, "yellow"))


def _took(started: dt.datetime | None, ended: dt.datetime | None) -> str:
    return "" if started is None or ended is None else f"{(ended - started).total_seconds():.2f} s"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 500 else f"{text[:500]}…"


async def _environment(db: store.Store, key: str) -> records.Environment:
    found = await records.environment(db, key)
    if found is None:
        raise Refused("no environment has this key: `org create` prints the keys of a new organization")
    return found


def _run(ask: Callable[[store.Store], Awaitable[T]]) -> T:
    """Asks the configured database."""

    async def attached() -> T:
        async with wqcore.attached(wqcore.load(_Choices.config), say=lambda text: _err.print(Text(text, "dim"))):
            return await ask(await store.open_store())

    return asyncio.run(attached())


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def main() -> None:
    """Every expected error becomes one sentence and an exit code."""
    try:
        app()
    except wqcore.ConfigError as error:
        _fail(EXIT_USAGE, *error.problems)
    except (wqcore.DatabaseUnavailable, wqcore.SchemaError, psycopg.OperationalError) as error:
        _fail(EXIT_DATABASE, str(error))
    except psycopg.DataError:
        _fail(EXIT_REFUSED, "it holds a character that cannot be stored (NUL), or a number or time out of range")
    except (Refused, wqcore.Discard, wqcore.Retry) as error:
        _fail(EXIT_REFUSED, str(error))


def _fail(code: int, *sentences: str) -> None:
    for sentence in sentences:
        _err.print(Text("error: ", "red") + Text(sentence.strip()))
    sys.exit(code)


if __name__ == "__main__":
    main()
