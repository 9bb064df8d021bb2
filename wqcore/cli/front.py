"""What all commands share: the options before the command, the two consoles, settings and a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from wqcore import launch
from wqcore.client import SyncClient
from wqcore.settings import HOME, Settings, load

EXIT_REFUSED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3

app = typer.Typer(
    name="wqcore",
    help="A job executor on PostgreSQL. Without a command it runs the workers of the configuration.",
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # a queue may be called [/red]
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class Choices:
    """The options given before the command."""

    config = Path("conf/dev.toml")
    group: str | None = None
    database: str | None = None


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The TOML file; default conf/dev.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


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
    typer.echo(orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2))
