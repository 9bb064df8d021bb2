"""`wqcore insert`: one job, or a file of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wqcore import launch
from wqcore.catalog import catalog
from wqcore.cli import front
from wqcore.client import SyncClient
from wqcore.errors import ConfigError
from wqcore.proc.preload import preload
from wqcore.watch import bulk


@front.app.command()
def insert(
    kind: Annotated[str | None, typer.Argument(help="The kind, e.g. scheduleEmail.", autocompletion=front.kind_names)] = None,
    payload: Annotated[str | None, typer.Argument(help="Its args as JSON.")] = None,
    file: Annotated[Path | None, typer.Option(help='JSON lines: {"kind": …, "args": {…}, "priority": …}.')] = None,
    strict: Annotated[bool, typer.Option(help="With --file: one bad line refuses the whole file.")] = False,
    queue: Annotated[str | None, typer.Option(help="Another queue than the kind's.", autocompletion=front.queue_names)] = None,
    priority: Annotated[int | None, typer.Option(help="A higher number runs first.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Attempts before it is discarded.")] = None,
    run_at: Annotated[dt.datetime | None, typer.Option(help="Not before this time (UTC).")] = None,
    job_key: Annotated[
        str | None, typer.Option(help="Overwrite the waiting job of this name, if there is one.")
    ] = None,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Insert one job (KIND JSON) or many (--file)."""
    settings = front.settings(config)
    if (file is None) == (kind is None or payload is None):
        raise ConfigError(["say either KIND and JSON, or --file FILE"])
    preload(settings.process.handlers, timeout_s=settings.process.boot_timeout_s)
    with launch.database(settings) as dsn:
        if settings.database.migrate == "auto":
            launch.prepare(settings, dsn, front.say)
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
                said = f"{did} {kind} as job {job}" if not job.skipped else f"{kind} {did} job {job}"
                front.printed({"id": int(job), "replaced": job.replaced, "skipped": job.skipped}, said, as_json=as_json)
                return
            refused = _insert_file(client, file, strict=strict, as_json=as_json)
    if refused:
        raise typer.Exit(front.EXIT_REFUSED)


def _insert_file(client: SyncClient, file: Path, *, strict: bool, as_json: bool) -> int:
    """Inserts a file of JSON lines; returns how many lines were refused."""
    with _open(file) as (lines, size), _progress(size) as (advance, say):
        report = bulk.insert_lines(client, catalog, lines, strict=strict, refused=say, read=advance)
    known = (
        f"; {report.replaced} replaced, {report.skipped} were there already" if report.replaced + report.skipped else ""
    )
    said = f"inserted {report.inserted} jobs from {file}{known}; refused {report.refused} lines"
    front.printed(msgspec.to_builtins(report), said, as_json=as_json)
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
    if not front.err.is_terminal:
        yield lambda done, rows: None, lambda line: front.err.print(front.plain(line))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=front.err, transient=True) as progress:
        task = progress.add_task("inserting (bytes)", total=size)
        yield (
            lambda done, rows: progress.update(task, completed=done),
            lambda line: progress.console.print(front.plain(line)),
        )
