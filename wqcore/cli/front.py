"""What all commands share: the options before the command, the two consoles, settings, a client, exit codes, completion."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson
import typer
from rich.console import Console
from rich.markup import escape

from wqcore import launch
from wqcore.client import SyncClient
from wqcore.settings import HOME, Settings, load

EXIT_REFUSED, EXIT_USAGE, EXIT_DATABASE, EXIT_DISCARDED, EXIT_CANCELLED, EXIT_LATE = 1, 2, 3, 4, 5, 6
EXIT_CODES = {
    0: "done, or drained; `jobs wait`: the job has completed",
    EXIT_REFUSED: "some of it was refused, not confirmed, not found or could not be done; a problem was found",
    EXIT_USAGE: "wrong usage, configuration or handler module",
    EXIT_DATABASE: "the database cannot be used, or its schema does not fit",
    EXIT_DISCARDED: "`jobs wait`: the job was discarded",
    EXIT_CANCELLED: "`jobs wait`: the job was cancelled",
    EXIT_LATE: "`jobs wait`, `workers drain --wait`: the time was over first",
    70: "the workers could not start; the log says why",
    130: "Ctrl-C",
    131: "ended at once by SIGQUIT, without a drain",
}
"""What a command's exit code means; `--help` ends with it, and docs/howto/command-line.md has the same table."""

EPILOG = "Exit codes: " + " · ".join(f"{code} {text.replace('`', '')}" for code, text in EXIT_CODES.items())
PIPED_WIDTH = 1000
"""What another program reads is not cut off at the width of a terminal."""

app = typer.Typer(
    name="wqcore",
    help="A job executor on PostgreSQL. Without a command it runs the workers of the configuration.",
    epilog=EPILOG,
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _console(*, stderr: bool) -> Console:
    """A console without markup on standard output: a queue may be called [/red]."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, markup=stderr, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


class Choices:
    """The options given before the command."""

    config = Path("conf/dev.toml")
    group: str | None = None
    database: str | None = None


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The TOML file; default conf/dev.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Refused(Exception):  # noqa: N818 (what was asked for was not done; nothing is broken)
    """Ends the command with exit code 1 and this sentence."""


def room(help_: str, **options: Any) -> typer.Typer:
    """A family of commands, e.g. `wqcore jobs …`."""
    return typer.Typer(help=help_, epilog=EPILOG, **options)


@contextmanager
def client(config: Path | None) -> Iterator[SyncClient]:
    """A client of the configured databases, or of the one that was chosen."""
    found = settings(config)
    with launch.database(found) as dsn, SyncClient(found, dsn=dsn) as connected:
        yield connected if Choices.database is None else connected.at(Choices.database)


def chosen(found: Settings, dsn: str) -> tuple[Settings, str]:
    """Settings and DSN of the chosen database. Raises ConfigError when there is none of that name."""
    part = found.part(Choices.database or HOME)
    return part, dsn if Choices.database in (None, HOME) else str(part.database.dsn)


def settings(config: Path | None, group: str | None = None) -> Settings:
    """The settings of the chosen file. Raises ConfigError."""
    path = config if config is not None else Choices.config
    return load(path, overrides={"process.group": group or Choices.group})


def say(text: str) -> None:
    """A line about what is going on, on standard error."""
    err.print(f"wqcore: {plain(text)}")


def plain(text: str) -> str:
    """Text in which nothing is markup."""
    return escape(text)


def print_json(found: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(orjson.dumps(found, default=_jsonable, option=orjson.OPT_INDENT_2))


def print_json_line(found: Any) -> None:
    """One JSON document in one line."""
    typer.echo(orjson.dumps(found, default=_jsonable))


def _jsonable(value: Any) -> Any:
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else str(value)


def printed(found: Any, text: str, *, as_json: bool) -> None:
    """The result of a command: a sentence for people, or JSON for programs."""
    if as_json:
        print_json(found)
    else:
        out.print(text)


def confirm(question: str, *, yes: bool) -> None:
    """Asks; raises Refused unless the answer is yes. Without a terminal there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is here to say so: repeat it with --yes, or look first with --dry-run")
    err.print(f"{plain(question)} [bold]\\[y/N][/bold] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


# --- completion -----------------------------------------------------------------------------------------------------------


def queue_names(context: typer.Context, incomplete: str) -> list[str]:
    """The configured queues, for a shell; no database is asked."""
    return [name for name in _completing(context)[1] if name.startswith(incomplete)]


def kind_names(context: typer.Context, incomplete: str) -> list[str]:
    """The kinds that the configured modules declare, for a shell; imports them."""
    return [name for name in _completing(context, kinds=True)[0] if name.startswith(incomplete)]


def kinds_and_queues(context: typer.Context, *, kinds: bool) -> tuple[list[str], list[str]]:
    """The names that a search can have."""
    return _completing(context, kinds=kinds)


def _completing(context: typer.Context, *, kinds: bool = False) -> tuple[list[str], list[str]]:
    """(kinds, queues) of the configuration; nothing at all where it cannot be read: a TAB must not print an error."""
    path: Any = None
    at: Any = context
    while at is not None and path is None:
        path, at = at.params.get("config"), at.parent
    names: list[str] = []
    with (
        contextlib.suppress(Exception),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        found = settings(Path(path) if path is not None else None)
        queues = sorted(found.queues)
        if kinds:
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            for module in found.process.handlers:
                importlib.import_module(module)
            from wqcore.catalog import catalog

            names = sorted(kind.name for kind in catalog)
        return names, queues
    return [], []
