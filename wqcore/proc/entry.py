"""What the children run: a worker with one shard, or the keeper. Forked by the master, which knows these only by name."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import psycopg
import uvloop
from setproctitle import setproctitle

from wqcore import clock
from wqcore.catalog import catalog
from wqcore.db import faults
from wqcore.db.connect import connect_sync
from wqcore.errors import DatabaseUnavailable, WqcoreError
from wqcore.keeper import Keeper, read_lines
from wqcore.launch import sync_kinds
from wqcore.proc.board import DRAINING, FREE, WORKING, Sheet
from wqcore.proc.children import EXIT_BOOT_FAILED, EXIT_FENCED
from wqcore.proc.master import Post
from wqcore.proc.preload import preload
from wqcore.recurring import declared
from wqcore.resource import close_resources, use_app_settings
from wqcore.settings import Settings
from wqcore.shard import Shard

log = logging.getLogger("wqcore.worker")

TICK_S = 0.25
MASTER_SILENT_S = 3.0


@dataclass(frozen=True)
class Program:
    """What every child needs to know."""

    settings: Settings
    dsn: str
    process_id: str
    version: str


def worker(post: Post) -> int:
    """A worker process: exit code 0 when drained, 75 when fenced, 70 when it could not start."""
    program = _program(post)
    faulthandler.enable()
    sheet = post.board.sheets[post.sheet_number]
    setproctitle(f"wqcore: worker {post.place} starting")
    try:
        if not program.settings.process.preload:
            preload(program.settings.process.handlers, timeout_s=program.settings.process.boot_timeout_s)
            _make_kinds_known(post, program)
        use_app_settings(program.settings.app)
    except WqcoreError as error:
        log.error("%s: %s", post.place, error)
        return EXIT_BOOT_FAILED
    sheet.set_kinds([kind.name for kind in catalog])
    return _run(_work(post, program, sheet))


def _make_kinds_known(post: Post, program: Program) -> None:
    """Without a preload the master has seen no kind: the first worker of each queue tells the database.

    Nothing that runs depends on it, only callers from SQL and schedules: an outage is no reason not to start.
    """
    if not post.place.endswith("/0"):
        return
    try:
        conn = connect_sync(program.dsn, program.settings.database, name="wqcore launch")
        try:
            sync_kinds(conn, program.settings, catalog)
        finally:
            conn.close()
    except (psycopg.Error, DatabaseUnavailable) as error:
        log.warning("kinds are not made known to callers from SQL before the next start: %s", faults.one_line(error))


def keeper(post: Post) -> int:
    """The keeper's process."""
    program = _program(post)
    faulthandler.enable()
    setproctitle("wqcore: keeper")
    return _run(_keep(post, program, post.board.sheets[post.sheet_number]))


async def _work(post: Post, program: Program, sheet: Sheet) -> int:
    settings, queue = program.settings, post.queue or ""
    shard = Shard(
        settings,
        dsn=program.dsn,
        queue=queue,
        workers=post.workers,
        shard_id=sheet.shard,
        process_id=program.process_id,
        catalog=catalog,
        sheet=sheet,
    )
    loop = asyncio.get_running_loop()
    asked = 0

    def on_term() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            sheet.set_state(DRAINING)
            shard.drain()
            loop.call_later(settings.process.drain_timeout_s, shard.cancel_running)
            loop.call_later(settings.process.drain_timeout_s + settings.process.cancel_grace_s, shard.leave_now)
        elif asked == 2:
            shard.cancel_running()
            loop.call_later(settings.process.cancel_grace_s, shard.leave_now)
        else:
            shard.leave_now()

    loop.add_signal_handler(signal.SIGTERM, on_term)

    def title() -> str:
        running = shard.executor.running
        sheet.totals(running, shard.executor.counters.completed, shard.executor.counters.failed())
        state = " draining" if asked else ""
        return f"wqcore: worker {post.place} {running}/{post.workers}{state}"

    ticking = loop.create_task(_tick(sheet, title))
    sheet.set_state(WORKING)
    try:
        drained = await shard.run()
        return 0 if drained else EXIT_FENCED
    finally:
        ticking.cancel()
        await close_resources()


async def _keep(post: Post, program: Program, sheet: Sheet) -> int:
    board = post.board
    sheets = [other for other in board.sheets if other.seats]

    def report() -> dict[str, Any]:
        now = clock.monotonic_ns()
        shards = {}
        for other in sheets:
            if other.state != FREE:
                jobs = other.running()
                shards[str(other.shard)] = {
                    "workers": other.seats,
                    "completed": other.completed,
                    "failed": other.failed,
                    "running": [
                        [job.id, job.attempt, job.kind, round((now - job.began_ns) / 1e9, 1)] for job in jobs[:500]
                    ],
                    "running_count": len(jobs),
                }
        return {"shards": shards}

    def started(number: int) -> tuple[int, list[tuple[int, int]]]:
        return board.sheets[number].shard, board.sheets[number].started_jobs()

    worker_of_master = Keeper(
        program.settings,
        dsn=program.dsn,
        process_id=program.process_id,
        master_pid=os.getppid(),
        version=program.version,
        report=report,
        started=started,
        live_shards=lambda: {other.shard for other in sheets if other.state != FREE},
        master_lives=lambda: clock.monotonic_ns() - board.tick_ns < MASTER_SILENT_S * 1e9,
        answered=lambda number: _answer(post.answers_fd, number),
        declared=declared(program.settings),
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker_of_master.leave)
    os.set_blocking(post.orders_fd, False)
    loop.add_reader(post.orders_fd, read_lines(post.orders_fd, worker_of_master.ask))
    ticking = loop.create_task(_tick(sheet, lambda: "wqcore: keeper"))
    sheet.set_state(WORKING)
    try:
        await worker_of_master.run()
    finally:
        ticking.cancel()
    return 0


def _answer(descriptor: int, number: int) -> None:
    os.write(descriptor, b"%d\n" % number)


async def _tick(sheet: Sheet, title: Any) -> None:
    """Shows the master that this loop turns; ends the process when the master is gone (the kernel usually did)."""
    master, shown = os.getppid(), ""
    while True:
        sheet.tick(clock.monotonic_ns())
        if os.getppid() != master:
            os._exit(EXIT_BOOT_FAILED)
        now = title()
        if now != shown:
            setproctitle(now)
            shown = now
        await asyncio.sleep(TICK_S)


def _run(main: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _program(post: Post) -> Program:
    if not isinstance(post.program, Program):
        raise TypeError(f"a child was given {type(post.program).__name__} as its program")
    return post.program
