"""The keeper: the database side of a master's decisions, in a process without user code.

Its clocks: the beat (`beat_interval_s`), rescues asked for by the master (at once), rescues of dead hosts and of shards
that no worker of ours has (every second beat), recurring jobs (at their ticks, and a look each second), cancellations
that no worker can carry out any more (every two seconds), retention (every five minutes), the index of the newest
outcomes (every ten seconds). One connection; when it is lost the keeper reconnects for ever and nothing that was asked
is forgotten. When the keeper itself dies, the master forks another and repeats what it had asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import psycopg

from wqcore import clock
from wqcore.db import faults, wake
from wqcore.db.bounded import REPLY_GRACE_S
from wqcore.db.connect import BY_INDEX, AsyncConnection, connect
from wqcore.db.statements import Statements
from wqcore.errors import WqcoreError
from wqcore.settings import Settings
from wqcore.upkeep.beat import beat, leave
from wqcore.upkeep.cancels import cancel_unheld
from wqcore.upkeep.cron import Cron
from wqcore.upkeep.rescue import Rescued, dead_shards, own_shards, rescue
from wqcore.upkeep.retire import discard_strays, retire, summarize
from wqcore.watch.page import Page

log = logging.getLogger("wqcore.keeper")

RETIRE_EVERY_S = 300.0
DECLARE_EVERY_S = 60.0
"""How often the declarations are noted again: the row under which they stand may have been removed meanwhile."""
CANCEL_EVERY_S = 2.0
SUMMARIZE_EVERY_S = 10.0
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.1, 2.0
"""And never longer than a quarter of `dead_after_s`: after an outage another keeper that is back sooner judges us by it."""


class Keeper:
    """The loop described above.

    Args:
        report: what the workers run, as the beat carries it.
        started: shard → the jobs that had started on it, read from the board.
        live_shards: the shards that the master's children have.
        master_lives: whether the master has ticked lately.
        answered: called when the rescue of a sheet is done.
        drain_master: called with each beat once somebody has asked this master, in the database, to drain.
        declared: names of the schedules that the master's code and configuration declare.
        page: where rescues are counted; None: nobody asks.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dsn: str,
        process_id: str,
        master_pid: int,
        version: str,
        report: Callable[[], dict[str, Any]],
        started: Callable[[int], tuple[int, list[tuple[int, int]]]],
        live_shards: Callable[[], set[int]],
        master_lives: Callable[[], bool],
        answered: Callable[[int], None],
        drain_master: Callable[[], None],
        declared: Iterable[str] = (),
        page: Page | None = None,
    ) -> None:
        self._settings = settings
        self._dsn = dsn
        self._process_id = process_id
        self._master_pid = master_pid
        self._version = version
        self._report = report
        self._started = started
        self._live_shards = live_shards
        self._master_lives = master_lives
        self._answered = answered
        self._drain_master = drain_master
        self._page = page
        self._statements = Statements(settings.database.schema)
        self._cron = Cron(self._statements, declared=declared, process=process_id)
        self._wake = asyncio.Event()
        self._leaving = False
        self._asked: dict[int, str] = {}
        self._beating_since = 0.0
        self._last_beat = 0.0
        self._beat_at = 0.0
        self._retire_at = 0.0
        self._cron_at = 0.0
        self._declare_at = 0.0
        self._cancel_at = 0.0
        self._summarize_at = 0.0
        self._beats = 0
        self._unknown_before: set[int] = set()

    def ask(self, line: bytes) -> None:
        """Takes an order of the master: `{"rescue": sheet number, "reason": text}`."""
        order = orjson.loads(line)
        self._asked[order["rescue"]] = order["reason"]
        self._wake.set()

    def leave(self) -> None:
        """Makes `run` finish what was asked, remove the beat, and return."""
        self._leaving = True
        self._wake.set()

    @property
    def beat_at(self) -> float:
        """When the last heartbeat went through (monotonic s); 0: none has. May be asked from any thread."""
        return self._last_beat

    async def run(self) -> None:
        """Runs until told to leave."""
        delay, longest = RECONNECT_MIN_S, min(RECONNECT_MAX_S, self._settings.process.dead_after_s / 4)
        while True:
            conn, connected_at = None, math.inf
            try:
                conn = await connect(self._dsn, self._settings.database, name="wqcore keeper", settings=BY_INDEX)
                connected_at = clock.monotonic()
                await self._listen(conn)
                await self._loop(conn)
                return
            except (psycopg.Error, WqcoreError, TimeoutError, OSError) as error:
                self._beating_since = 0.0
                if self._leaving:
                    log.warning("leaving without the database: %s", faults.one_line(error))
                    return
                if self._page is not None:
                    self._page.keeper_reconnects()
                # Not at once when it connects: on a full disk a connection is good until the first write.
                if clock.monotonic() - connected_at > longest:
                    delay = RECONNECT_MIN_S
                log.warning("database unavailable, trying again in %.2f s: %s", delay, faults.one_line(error))
                await asyncio.sleep(clock.jittered(delay, 0.3))
                delay = min(delay * 2, longest)
            finally:
                if conn is not None:
                    conn.pgconn.finish()

    async def _loop(self, conn: AsyncConnection) -> None:
        process = self._settings.process
        while True:
            # a statement that hangs ends one second earlier, by the clock of its connection (db/bounded.py)
            async with asyncio.timeout(self._settings.database.statement_timeout_s + REPLY_GRACE_S + 1):
                for sheet, reason in list(self._asked.items()):
                    await self._rescue_sheet(conn, sheet, reason)
                if self._leaving:
                    await leave(conn, self._statements, process=self._process_id, dead_after_s=process.dead_after_s)
                    return
                now = clock.monotonic()
                if now >= self._beat_at and self._master_lives():
                    self._beat_at = now + clock.jittered(process.beat_interval_s)
                    await self._beat(conn)
                if now >= self._cron_at:
                    self._cron_at = math.inf  # a notification that arrives during the pass makes it 0
                    after_s = await self._cron.run(conn)
                    self._cron_at = min(self._cron_at, clock.monotonic() + after_s)
                if now >= self._declare_at and self._beats:
                    self._declare_at = now + DECLARE_EVERY_S
                    await self._cron.note_declared(conn)
                if now >= self._cancel_at:
                    self._cancel_at = now + clock.jittered(CANCEL_EVERY_S)
                    cancelled = await cancel_unheld(conn, self._statements)
                    if cancelled:
                        log.info("cancelled %d jobs that no worker held any more", cancelled)
                if now >= self._summarize_at:
                    self._summarize_at = now + clock.jittered(SUMMARIZE_EVERY_S)
                    await summarize(conn, self._statements)
                if now >= self._retire_at:
                    self._retire_at = now + clock.jittered(RETIRE_EVERY_S)
                    for line in await retire(conn, self._statements):
                        log.info("history: %s", line)
                    strays = await discard_strays(conn, self._statements, grace_s=process.unknown_kind_grace_s)
                    if strays:
                        log.warning("discarded %d jobs in queues or slots that do not exist", strays)
            await self._sleep(conn)

    async def _listen(self, conn: AsyncConnection) -> None:
        """Hears of changed schedules; a change while nobody listened is found by the look that follows."""
        if self._settings.database.listens:
            conn.add_notify_handler(lambda _: self._schedules_changed())
            await conn.execute(f'listen "{wake.schedules_channel(self._statements.schema)}"'.encode(), prepare=False)
        self._schedules_changed()

    def _schedules_changed(self) -> None:
        self._cron.changed()
        self._cron_at = 0.0

    async def _sleep(self, conn: AsyncConnection) -> None:
        """Waits for the next clock, an order of the master, or a notification on the connection's socket."""
        self._wake.clear()
        if self._asked or self._leaving:
            return
        until = min(max(self._beat_at, clock.monotonic() + 0.02), self._cron_at) - clock.monotonic()
        loop = asyncio.get_running_loop()
        socket = conn.fileno()
        loop.add_reader(socket, self._wake.set)
        try:
            async with asyncio.timeout(max(0.002, min(until, 1.0))):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            loop.remove_reader(socket)
        conn.pgconn.consume_input()
        while conn.pgconn.notifies():
            self._schedules_changed()

    async def _beat(self, conn: AsyncConnection) -> None:
        process = self._settings.process
        group = process.group if isinstance(process.group, str) else None
        drain = await beat(
            conn,
            self._statements,
            process=self._process_id,
            host=socket.gethostname(),
            pid=self._master_pid,
            group=group,
            version=self._version,
            report=self._report(),
        )
        if drain:
            self._drain_master()
        now = clock.monotonic()
        if now - self._last_beat > process.dead_after_s / 2:
            # We were silent ourselves, so others' silence proves nothing yet. The time of the statement counts: a server that
            # was frozen answers everybody's beat when it thaws, and the first keeper to be answered would find all others old.
            self._beating_since = now
        self._last_beat = now
        self._beats += 1
        if self._beats % 2 == 0:
            await self._rescue_unknown(conn)
            if self._last_beat - self._beating_since > process.dead_after_s:
                await self._rescue_dead_hosts(conn)

    async def _rescue_sheet(self, conn: AsyncConnection, sheet: int, reason: str) -> None:
        shard, _ = self._started(sheet)
        cause = "suspended" if reason.startswith("worker suspended") else "died"
        rescued = await self._rescue(conn, shard, lambda: self._started(sheet)[1], reason, cause, suspect_rest=False)
        self._asked.pop(sheet, None)
        self._answered(sheet)
        if rescued is not None:
            log.warning(
                "rescued shard of %s: %s; %d jobs had started (%d run again, %d discarded), %d were held",
                rescued.queue,
                reason,
                rescued.again + rescued.ended,
                rescued.again,
                rescued.ended,
                rescued.held,
            )

    async def _rescue_dead_hosts(self, conn: AsyncConnection) -> None:
        dead_after_s = self._settings.process.dead_after_s
        began = clock.monotonic()
        dead = await dead_shards(conn, self._statements, process=self._process_id, dead_after_s=dead_after_s)
        if clock.monotonic() - began > dead_after_s / 2:
            return  # the server was away meanwhile, and nobody could beat
        for shard in dead:
            reason = (
                f"host died ({shard.host or 'unknown'}, master {shard.pid or 'unknown'} silent for {dead_after_s:g} s)"
            )
            rescued = await self._rescue(conn, shard.id, shard.started, reason, "host", suspect_rest=True)
            if rescued is not None:
                log.warning(
                    "rescued shard of %s: %s; %d run again, %d discarded, %d were held",
                    rescued.queue,
                    reason,
                    rescued.again,
                    rescued.ended,
                    rescued.held,
                )
        if dead:
            await leave(conn, self._statements, process=None, dead_after_s=dead_after_s)

    async def _rescue_unknown(self, conn: AsyncConnection) -> None:
        """Shards under our process that none of our children has: seen twice, they are left-overs of a lost order."""
        known = self._live_shards()
        unknown = {
            id_ for id_ in await own_shards(conn, self._statements, process=self._process_id) if id_ not in known
        }
        for shard in unknown & self._unknown_before:
            await self._rescue(conn, shard, [], "worker gone without a trace", "lost", suspect_rest=True)
            log.warning("rescued a shard that no worker has")
        self._unknown_before = unknown

    async def _rescue(
        self,
        conn: AsyncConnection,
        shard: int,
        started: list[tuple[int, int]] | Callable[[], list[tuple[int, int]]],
        reason: str,
        cause: str,
        *,
        suspect_rest: bool,
    ) -> Rescued | None:
        rescued = await rescue(
            conn,
            self._statements,
            shard=shard,
            started=started,
            reason=reason,
            deaths_max=self._settings.process.deaths_max,
            suspect_rest=suspect_rest,
        )
        if rescued is not None and self._page is not None:
            self._page.rescued(rescued.queue, cause, again=rescued.again, ended=rescued.ended, held=rescued.held)
        return rescued


def read_lines(descriptor: int, take: Callable[[bytes], None]) -> Callable[[], None]:
    """A reader callback for a pipe that hands whole lines to `take`."""
    rest = b""

    def readable() -> None:
        nonlocal rest
        data = os.read(descriptor, 65536)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            take(line)

    return readable
