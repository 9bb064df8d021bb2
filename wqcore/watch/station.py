"""Everything that a master's port tells, put together in its keeper: `/metrics`, `/livez` and `/readyz`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from wqcore.db.migrate import queue_line
from wqcore.proc.board import FREE, Board, Sheet
from wqcore.settings import Settings
from wqcore.watch import page as layout
from wqcore.watch.exposition import MasterCollector
from wqcore.watch.health import Check, Health
from wqcore.watch.page import Page
from wqcore.watch.port import Answer, Port
from wqcore.watch.survey import Survey, Who


def open_station(
    settings: Settings,
    *,
    dsn: str,
    port: int,
    board: Board,
    page: Page,
    keeper: Sheet,
    beat_at: Callable[[], float],
    homes: Mapping[str, str],
) -> None:
    """Starts the threads that look and answer; they end with the process.

    Args:
        keeper: the keeper's sheet.
        beat_at: when the last heartbeat went through (monotonic s); 0: none has.
        homes: kind → queue of the kinds that this process knows.
    """
    survey = Survey(settings, dsn, lambda: _processes(board, page))
    needed = len(queue_line(settings.database.schema).steps())

    def versions() -> tuple[int | None, int]:
        database = survey.seen.database
        return (None if database is None else int(database["version"])), needed

    health = Health(settings.process, board, page, keeper, beat_at=beat_at, versions=versions)
    registry = CollectorRegistry()
    registry.register(
        MasterCollector(settings, board, page, health, homes=homes, beat_at=beat_at, seen=lambda: survey.seen)
    )

    def metrics(accept: str) -> Answer:
        encode, content_type = choose_encoder(accept)
        return Answer(200, encode(registry), content_type)

    survey.start()
    Port(
        settings.watch.host,
        port,
        {
            "/metrics": metrics,
            "/livez": lambda accept: told("live", health.live(), accept),
            "/readyz": lambda accept: told("ready", health.ready(), accept),
        },
    ).start()


def told(what: str, checks: list[Check], accept: str) -> Answer:
    """200 when all checks hold, else 503; as JSON where that is asked for, else as text."""
    good = not any(check.problem for check in checks)
    status = 200 if good else 503
    if "application/json" in accept:
        found = [{"name": check.name, "ok": check.problem is None, "problem": check.problem} for check in checks]
        return Answer(status, orjson.dumps({what: good, "checks": found}) + b"\n", "application/json")
    lines = [what if good else f"not {what}"]
    lines += [f"[{'-' if check.problem else '+'}] {check.name}: {check.problem or 'ok'}" for check in checks]
    return Answer(status, "\n".join(lines).encode() + b"\n")


def _processes(board: Board, page: Page) -> Iterator[Who]:
    yield Who("master", "", os.getppid())
    yield Who("keeper", "", os.getpid())
    for sheet, segment in zip(board.sheets, page.segments, strict=True):
        place, pid = segment.header[layout.PLACE], segment.header[layout.PID]
        if sheet.state != FREE and place and pid:
            yield Who("worker", page.places[place - 1].rpartition("/")[0], pid)
