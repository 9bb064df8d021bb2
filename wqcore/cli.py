"""The command line: parses, prints, exits; no logic.

Exit codes: 0 done · 1 some input was refused, or a problem was found · 2 wrong usage or configuration · 3 the database
cannot be used · 70 the workers could not start · 131 ended at once by SIGQUIT.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.client import SyncClient
from wqcore.db import migrate as migrations
from wqcore.db import roles
from wqcore.db.connect import connect_sync
from wqcore.errors import ConfigError, DatabaseUnavailable, InsertError, SchemaError, WqcoreError
from wqcore.proc.preload import preload
from wqcore.recurring import declared
from wqcore.recurring import problems as schedule_problems
from wqcore.resource import app_problems, use_app_settings
from wqcore.settings import Settings, load
from wqcore.version import VERSION
from wqcore.watch import bulk, log, status, timetable

EXIT_REFUSED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3

app = typer.Typer(
    name="wqcore",
    help="A job executor on PostgreSQL. Without a command it runs the workers of the configuration.",
    invoke_without_command=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # a queue may be called [/red]
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class _Choices:
    """The options given before the command."""

    config = Path("conf/dev.toml")
    group: str | None = None
    dsn: str | None = None


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The TOML file; default conf/dev.toml.")]


@app.callback()
def front(
    context: typer.Context,
    config: ConfigOption = None,
    group: Annotated[str | None, typer.Option(help="Run only the queues of this group.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options that every command shares."""
    if version:
        _out.print(f"wqcore {VERSION}")
        raise typer.Exit
    if config is not None:
        _Choices.config = config
    _Choices.group = group
    if context.invoked_subcommand is None:
        run()


@app.command()
def run(
    config: ConfigOption = None, group: Annotated[str | None, typer.Option(help="Only this group.")] = None
) -> None:
    """Run the workers until TERM or Ctrl-C drains them."""
    settings = _settings(config, group)
    log.set_up(settings.logging)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the master takes its signals over
    try:
        with launch.database(settings) as dsn:
            launch.prepare(settings, dsn, _say)
            code = launch.run(settings, dsn, _say)
    except KeyboardInterrupt:
        _say("stopped before the workers were started")
        code = 0
    raise typer.Exit(code)


@app.command()
def migrate(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be applied.")] = False,
    show_sql: Annotated[
        bool, typer.Option("--show-sql", help="Print the SQL of what is pending; apply nothing.")
    ] = False,
    with_roles: Annotated[
        bool,
        typer.Option("--roles", help="Also make the roles <schema>_owner, _runner, _inserter, _producer and _observer."),
    ] = False,
) -> None:
    """Bring the database schema to this version, and make the configured queues and kinds known."""
    settings = _settings(config)
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    use_app_settings(settings.app)
    lines = [migrations.queue_line(settings.database.schema), *migrations.declared_lines()]
    with launch.database(settings) as dsn:
        conn = connect_sync(dsn, settings.database, name="wqcore migrate")
        try:
            migrated = False
            for line in lines:
                if dry_run or show_sql:
                    steps = migrations.pending(conn, line)
                    if show_sql:
                        sys.stdout.write(migrations.show(line, steps))
                    for step in steps:
                        _say(f"would apply {step.version:04d} {step.name} to schema {line.schema}")
                else:
                    steps = migrations.migrate(conn, line, say=_say)
                    migrated = migrated or bool(steps)
                if not steps:
                    _say(f"schema {line.schema} is up to date (version {len(line.steps())})")
            if not (dry_run or show_sql):
                launch.sync_queues(conn, settings)
                launch.sync_kinds(conn, settings, catalog)
                queue_schema = settings.database.schema
                if with_roles or (migrated and roles.exist(conn, queue_schema)):
                    for what, role in roles.make_roles(conn, queue_schema).items():
                        _say(f"role {role} {roles.ROLES[what]}")
        finally:
            conn.close()


@app.command()
def insert(
    kind: Annotated[str | None, typer.Argument(help="The kind, e.g. scheduleEmail.")] = None,
    payload: Annotated[str | None, typer.Argument(help="Its args as JSON.")] = None,
    file: Annotated[Path | None, typer.Option(help='JSON lines: {"kind": …, "args": {…}, "priority": …}.')] = None,
    strict: Annotated[bool, typer.Option(help="With --file: one bad line refuses the whole file.")] = False,
    queue: Annotated[str | None, typer.Option(help="Another queue than the kind's.")] = None,
    priority: Annotated[int | None, typer.Option(help="A higher number runs first.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Attempts before it is discarded.")] = None,
    run_at: Annotated[dt.datetime | None, typer.Option(help="Not before this time (UTC).")] = None,
    job_key: Annotated[str | None, typer.Option(help="Overwrite the waiting job of this name, if there is one.")] = None,
    config: ConfigOption = None,
) -> None:
    """Insert one job (KIND JSON) or many (--file)."""
    settings = _settings(config)
    if (file is None) == (kind is None or payload is None):
        raise ConfigError(["say either KIND and JSON, or --file FILE"])
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    with launch.database(settings) as dsn:
        if settings.database.migrate == "auto":
            launch.prepare(settings, dsn, _say)
        with SyncClient(settings, dsn=dsn) as client:
            if file is None:
                _, args = catalog.parse(kind or "", payload or "")
                job = client.insert(
                    args,
                    queue=queue,
                    priority=priority,
                    max_attempts=max_attempts,
                    run_at=run_at.replace(tzinfo=dt.UTC) if run_at else None,
                    job_key=job_key,
                )
                did = "replaced" if job.replaced else "is there already:" if job.skipped else "inserted"
                _out.print(f"{did} {kind} as job {job}" if not job.skipped else f"{kind} {did} job {job}")
                return
            refused = _insert_file(client, file, strict=strict)
    if refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command("status")
def show_status(
    config: ConfigOption = None, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Show queues, processes and what ended within the last hour."""
    settings = _settings(config)
    with launch.database(settings) as dsn:
        found = status.read(settings, dsn)
    if as_json:
        sys.stdout.write(orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    table = Table("queue", "ready", "due", "scheduled", "held", "shards", "", title="queues", title_justify="left")
    for row in found["queues"]:
        counts = [str(row[name]) for name in ("ready", "due", "scheduled", "held", "shards")]
        table.add_row(row["queue"], *counts, "paused" if row["paused"] else "")
    _out.print(table)
    table = Table("host", "pid", "group", "beat", "shards", "running", title="masters", title_justify="left")
    for row in found["processes"]:
        age = f"{row['beat_age_s']:.1f} s ago"
        table.add_row(row["host"], str(row["pid"]), row["group"] or "all", age, str(row["shards"]), str(row["running"]))
    _out.print(table)
    ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["last_hour"].items())) or "nothing"
    _out.print(f"ended within the last hour: {ended}")


@app.command("check-config")
def check_config(config: ConfigOption = None) -> None:
    """Check the configuration and the handlers it names; touches no database."""
    settings = _settings(config)
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    problems = [
        f"kind {kind.name!r} goes to queue {kind.queue!r}, which has no [queues.{kind.queue}]"
        for kind in catalog
        if kind.queue not in settings.queues
    ]
    problems += [
        f"kind {kind.name!r} has no handler: import the module that has it, or declare the kind with planned=True"
        for kind in catalog
        if kind.handler is None and not kind.planned
    ]
    problems += schedule_problems(settings)
    use_app_settings(settings.app)
    problems += app_problems()
    if problems:
        raise ConfigError(problems)
    for place in launch.places(settings):
        _out.print(f"{place.name}: {place.workers} workers, group {settings.group_of(place.queue or '')}")
    planned = sum(kind.planned for kind in catalog)
    recurring = declared(settings)
    _out.print(
        f"ok: {len(settings.queues)} queues, {len(catalog)} kinds ({planned} of them planned), {len(recurring)} schedules"
    )
    if not settings.process.preload and any(source == "code" for source, _ in recurring.values()):
        _say(launch.NOT_PRELOADED)


schedules = typer.Typer(
    help="Show recurring jobs and their next ticks, or change one.", invoke_without_command=True, no_args_is_help=False
)
app.add_typer(schedules, name="schedules")
NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]


@schedules.callback()
def show_schedules(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    next_ticks: Annotated[int, typer.Option("--next", help="How many coming ticks to show.", min=0, max=100)] = 3,
) -> None:
    """Show recurring jobs and their next ticks."""
    if config is not None:
        _Choices.config = config
    if context.invoked_subcommand is not None:
        return
    with _client(None) as client:
        found = client.schedules(next_ticks=next_ticks)
    if as_json:
        sys.stdout.write(orjson.dumps([timetable.plain(info) for info in found], option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
    elif found:
        now = dt.datetime.now(dt.UTC)
        _out.print(timetable.table(found, now), soft_wrap=False)
        for line in timetable.remarks(found, now):
            _out.print(line)
    else:
        _out.print("no schedules: declare one with wqcore.recurring, under [schedules], or with Client.set_schedule")


@schedules.command("pause")
def pause_schedule(name: NameArgument, config: ConfigOption = None) -> None:
    """Pause a recurring job: its ticks pass without a job."""
    with _client(config) as client:
        _out.print(f"paused {name}" if client.pause_schedule(name) else f"{name} was paused already")


@schedules.command("resume")
def resume_schedule(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a recurring job go on with its next tick."""
    with _client(config) as client:
        _out.print(f"resumed {name}" if client.resume_schedule(name) else f"{name} was not paused")


@schedules.command("trigger")
def trigger_schedule(name: NameArgument, config: ConfigOption = None) -> None:
    """Insert its job now, whatever its ticks."""
    with _client(config) as client:
        _out.print(f"inserted job {client.trigger_schedule(name)} of {name}")


@schedules.command("delete")
def delete_schedule(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove it; one that code or configuration declare comes back with the next start."""
    with _client(config) as client:
        client.delete_schedule(name)
    _out.print(f"deleted {name}")


def main() -> None:
    """The console script: every expected error becomes one sentence and an exit code."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # handlers live beside the configuration; `python -m` does the same
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        for problem in error.problems:
            _err.print(f"[red]error:[/red] {_plain(problem)}")
        sys.exit(EXIT_USAGE)
    except (DatabaseUnavailable, SchemaError) as error:
        _err.print(f"[red]error:[/red] {_plain(str(error))}")
        sys.exit(EXIT_DATABASE)
    except InsertError as error:
        _err.print(f"[red]refused:[/red] {_plain(str(error))}")
        sys.exit(EXIT_REFUSED)
    except WqcoreError as error:
        _err.print(f"[red]error:[/red] {_plain(str(error))}")
        sys.exit(EXIT_USAGE)


def _insert_file(client: SyncClient, file: Path, *, strict: bool) -> int:
    """Inserts a file of JSON lines; returns how many lines were refused."""
    with _open(file) as (lines, size), _progress(size) as (advance, say):
        report = bulk.insert_lines(client, catalog, lines, strict=strict, refused=say, read=advance)
    known = f"; {report.replaced} replaced, {report.skipped} were there already" if report.replaced + report.skipped else ""
    _out.print(f"inserted {report.inserted} jobs from {file}{known}; refused {report.refused} lines")
    return report.refused


@contextmanager
def _open(file: Path) -> Iterator[tuple[Any, int]]:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ConfigError([f"cannot read {file}: {error.strerror}"]) from None
    with opened:
        yield opened, file.stat().st_size


@contextmanager
def _progress(size: int) -> Iterator[tuple[Any, Any]]:
    """(advance, say): a bar on a terminal, plain lines elsewhere."""
    if not _err.is_terminal:
        yield lambda done, rows: None, lambda line: _err.print(_plain(line))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as progress:
        task = progress.add_task("inserting (bytes)", total=size)
        yield (
            lambda done, rows: progress.update(task, completed=done),
            lambda line: progress.console.print(_plain(line)),
        )


@contextmanager
def _client(config: Path | None) -> Iterator[SyncClient]:
    """A client of the configured database."""
    settings = _settings(config)
    with launch.database(settings) as dsn, SyncClient(settings, dsn=dsn) as client:
        yield client


def _settings(config: Path | None, group: str | None = None) -> Settings:
    path = config if config is not None else _Choices.config
    return load(path, overrides={"process.group": group or _Choices.group})


def _say(text: str) -> None:
    _err.print(f"wqcore: {_plain(text)}")


def _plain(text: str) -> str:
    return escape(text)
