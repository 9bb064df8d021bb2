"""What the children run: a worker with one shard, or the keeper. Forked by the master, which knows these only by name."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from setproctitle import setproctitle

from wqcore import clock
from wqcore.catalog import catalog
from wqcore.client.own import use_database
from wqcore.db import faults
from wqcore.db.connect import connect_sync
from wqcore.errors import ConfigError, DatabaseUnavailable, HookFailed, WqcoreError
from wqcore.hooks import run_start_hooks, run_stop_hooks
from wqcore.keeper import Keeper, read_lines
from wqcore.launch import sync_kinds
from wqcore.proc.board import DRAINING, FREE, WORKING, Sheet
from wqcore.proc.children import EXIT_BOOT_FAILED, EXIT_FENCED, EXIT_LEFT_THREADS
from wqcore.proc.master import Post
from wqcore.proc.memory import first_to_be_killed, watch_memory
from wqcore.proc.preload import preload
from wqcore.proc.report import Report
from wqcore.proc.stacks import offer_stack
from wqcore.proc.strays import close, guard_copies, run
from wqcore.recurring import declared_at
from wqcore.resource import app_problems, use_app_settings
from wqcore.settings import Process, Settings
from wqcore.shard import Shard
from wqcore.watch.meters import Meter
from wqcore.watch.page import Page

log = logging.getLogger("wqcore.worker")

TICK_S = 0.25
MASTER_SILENT_S = 3.0
FLUSH_LOOKS, FLUSH_LOOK_S = 100, 0.005
"""How long a worker that leaves threads behind waits for its last outcomes to be written."""


@dataclass(frozen=True)
class Program:
    """What every child needs to know: of the database whose jobs it runs, and of all, for what its handlers insert."""

    settings: Settings
    dsn: str
    process_id: str
    version: str
    whole: Settings
    home_dsn: str
    database: str
    page: Page | None = None
    """Where everybody counts; None: nobody asks."""


def worker(post: Post) -> int:
    """A worker process: exit code 0 when drained, 75 when fenced, 76 with threads left behind, 70 when it could not start."""
    program = _program(post)
    faulthandler.enable()
    offer_stack()
    first_to_be_killed()
    sheet = post.board.sheets[post.sheet_number]
    sheet.set_pid(os.getpid())
    setproctitle(f"wqcore: worker {post.place} starting")
    try:
        if not program.settings.process.preload:
            preload(program.settings.process.handlers, timeout_s=program.settings.process.boot_timeout_s)
            _make_kinds_known(post, program)
        use_app_settings(program.settings.app)
        use_database(program.whole, program.home_dsn)
        problems = app_problems()
        if problems:
            raise ConfigError(problems)
    except WqcoreError as error:
        log.error("%s: %s", post.place, error)
        return EXIT_BOOT_FAILED
    sheet.set_kinds([kind.name for kind in catalog])
    if isinstance(program.settings.process.memory_soft_mb, int):
        watch_memory(sheet)
    return run(_work(post, program, sheet))


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
    offer_stack()
    setproctitle("wqcore: keeper")
    return run(_keep(post, program, post.board.sheets[post.sheet_number]))


async def _work(post: Post, program: Program, sheet: Sheet) -> int:
    settings, queue, meter = program.settings, post.queue or "", None
    if program.page is not None:
        meter = Meter(program.page, segment=post.sheet_number, place=post.place, queue=queue, catalog=catalog)
    shard = Shard(
        settings,
        dsn=program.dsn,
        queue=queue,
        workers=post.workers,
        shard_id=sheet.shard,
        process_id=program.process_id,
        catalog=catalog,
        sheet=sheet,
        meter=meter,
    )
    loop = asyncio.get_running_loop()
    end = _End(shard, sheet, settings.process)
    loop.add_signal_handler(signal.SIGTERM, end.asked_to)
    guard_copies(loop, shard.in_copy)

    def title() -> str:
        running = shard.executor.running
        sheet.totals(running, shard.executor.counters.completed, shard.executor.counters.failed())
        state = " draining" if end.asked else ""
        if meter is not None:
            meter.flush(shard.executor)
        return f"wqcore: worker {post.place} {running}/{post.workers}{state}"

    ticking = loop.create_task(_tick(sheet, title, lagged=None if meter is None else meter.lagged))
    try:
        code = await end.boot(post.place)
        booted = code is None
        if code is None:
            code = await end.work()
        if meter is not None:
            meter.flush(shard.executor)
        if code in (0, EXIT_FENCED):
            sheet.ended_by_itself()
        if booted:
            await run_stop_hooks()
        return code
    finally:
        await close(spared=ticking)
        ticking.cancel()


class _End:
    """How a worker starts and how it comes to its end: what the master has asked, and what is left then."""

    def __init__(self, shard: Shard, sheet: Sheet, limits: Process) -> None:
        self.asked = 0
        self._shard = shard
        self._sheet = sheet
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._booting: asyncio.Task[None] | None = None
        self._leaving = self._loop.create_future()

    def asked_to(self) -> None:
        """TERM: drain; again: cancel what runs; a third time: leave."""
        self.asked += 1
        if self._booting is not None:
            self._booting.cancel()
        if self.asked == 1:
            self._sheet.set_state(DRAINING)
            self._shard.drain()
            self._loop.call_later(self._limits.drain_timeout_s, self._shard.cancel_running)
            self._loop.call_later(self._limits.drain_timeout_s + self._limits.cancel_grace_s, self._leave)
        elif self.asked == 2:
            self._shard.cancel_running()
            self._loop.call_later(self._limits.cancel_grace_s, self._leave)
        else:
            self._leave()

    async def boot(self, place: str) -> int | None:
        """Runs the start hooks; an exit code when the worker is not to work."""
        self._booting = self._loop.create_task(run_start_hooks(self._limits.boot_timeout_s), name="wqcore start hooks")
        await asyncio.wait([self._booting])
        booting, self._booting = self._booting, None
        if self.asked:
            return 0
        if booting.cancelled():
            log.error("%s: a start hook raised CancelledError: something that it awaited was cancelled", place)
            return EXIT_BOOT_FAILED
        error = booting.exception()
        if isinstance(error, HookFailed):
            log.error("%s: %s", place, error)
            return EXIT_BOOT_FAILED
        if error is not None:
            raise error
        self._sheet.set_state(WORKING)
        return None

    async def work(self) -> int:
        """Runs the shard until it is drained, fenced, or left; the exit code."""
        running = self._loop.create_task(self._shard.run(), name="wqcore shard")
        await asyncio.wait({running, self._leaving}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return 0 if running.result() else EXIT_FENCED
        await self._written()
        if self._shard.executor.threads.busy:
            log.error(
                "%d handlers in threads did not end; they end with this process, and their jobs are given back",
                self._shard.executor.threads.busy,
            )
            # a lease given up now would let others run jobs that still run here: the keeper takes it from the dead
            self._sheet.nothing_started()
            return EXIT_LEFT_THREADS
        self._shard.leave_now()
        return 0 if await running else EXIT_FENCED

    def _leave(self) -> None:
        if self._shard.executor.threads.busy:
            if not self._leaving.done():
                self._leaving.set_result(None)
        else:
            self._shard.leave_now()

    async def _written(self) -> None:
        """Waits, not for long, until the outcomes of what has ended are in the database."""
        executor = self._shard.executor
        for _ in range(FLUSH_LOOKS):
            if not len(executor.outcomes) and not executor.settling:
                return
            await asyncio.sleep(FLUSH_LOOK_S)


async def _keep(post: Post, program: Program, sheet: Sheet) -> int:
    board = post.board
    sheets = [other for other in board.sheets if other.seats]

    def started(number: int) -> tuple[int, list[tuple[int, int]]]:
        return board.sheets[number].shard, board.sheets[number].started_jobs()

    worker_of_master = Keeper(
        program.settings,
        dsn=program.dsn,
        process_id=program.process_id,
        master_pid=os.getppid(),
        version=program.version,
        report=Report(sheets),
        started=started,
        live_shards=lambda: {other.shard for other in sheets if other.state != FREE},
        master_lives=lambda: clock.monotonic_ns() - board.tick_ns < MASTER_SILENT_S * 1e9,
        answered=lambda number: _answer(post.answers_fd, number),
        # not TERM: it is asked for with each beat, and a second TERM would hasten the drain
        drain_master=lambda: os.kill(os.getppid(), signal.SIGUSR1),
        declared=declared_at(program.whole, program.database),
        page=program.page,
    )
    port = program.settings.watch.port
    if program.page is not None and isinstance(port, int):
        from wqcore.watch.station import open_station  # only masters that are watched pay for its imports

        open_station(
            program.settings, dsn=program.dsn, port=port, board=board, page=program.page, keeper=sheet,
            beat_at=lambda: worker_of_master.beat_at, homes={kind.name: kind.queue for kind in catalog},
        )  # fmt: skip
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


async def _tick(sheet: Sheet, title: Any, lagged: Callable[[float], None] | None = None) -> None:
    """Shows the master that this loop turns; ends the process when the master is gone (the kernel usually did).

    `lagged` is told how much too late each tick came.
    """
    master, shown = os.getppid(), ""
    while True:
        sheet.tick(clock.monotonic_ns())
        if os.getppid() != master:
            os._exit(EXIT_BOOT_FAILED)
        now = title()
        if now != shown:
            setproctitle(now)
            shown = now
        due = clock.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        if lagged is not None:
            lagged(clock.monotonic() - due)


def _program(post: Post) -> Program:
    if not isinstance(post.program, Program):
        raise TypeError(f"a child was given {type(post.program).__name__} as its program")
    return post.program
