"""Runs jobs in this process: real shards, one a queue, on the caller's event loop, and gone without a trace afterwards.

Protocol: beat as a master does, so that keepers of other processes leave our shards alone; register a shard for each
queue; let them work; drain them, which gives back what has not started and deletes lease, claim and shares; remove the
beat. When the block fails or is cancelled, running handlers are cancelled and their attempts given back.

A crash of the process leaves what a crashed worker leaves: a keeper of a master rescues it after `dead_after_s`. A
test database without a master keeps those shards; `drain` names their process when it waits for them in vain.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.client.own import use_database
from wqcore.db.connect import connect
from wqcore.db.statements import Statements
from wqcore.errors import LeaseLost, NotDrained
from wqcore.hooks import run_start_hooks, run_stop_hooks
from wqcore.keeper import Keeper
from wqcore.proc.board import Board, Sheet
from wqcore.recurring import declared
from wqcore.resource import close_resources
from wqcore.settings import Settings
from wqcore.shard import Shard
from wqcore.testing.ready import Queues, settings_for
from wqcore.upkeep.beat import RUNNING_SHOWN_MAX, beat, leave
from wqcore.version import VERSION

CHECK_EVERY_S = 0.02
STOP_GRACE_S = 5.0
"""How long handlers that are cancelled at the end of a block may take, before they are left behind."""
SHOWN_MAX = 10


class Drained(msgspec.Struct, frozen=True):
    """What became of the runs of a drain.

    Attributes:
        completed (int): jobs that completed.
        failed (int): attempts that failed and whose job runs again, now or later.
        snoozed (int): runs that asked to come back later.
        cancelled (int), discarded (int): jobs that ended so.
    """

    completed: int = 0
    failed: int = 0
    snoozed: int = 0
    cancelled: int = 0
    discarded: int = 0


async def drain(
    dsn: str,
    *,
    queues: Queues | None = None,
    timeout_s: float = 30.0,
    schema: str = "wqcore",
    catalog: Catalog = default_catalog,
) -> Drained:
    """Works off all that is ready or due in these queues, in this process, with the program's own handlers.

    It ends when no job of the queues is ready, due or running, also those that its jobs have inserted meanwhile. A job
    whose time lies ahead, such as one that waits for its retry, is left; `travel` moves the time.

    Args:
        dsn: where the database is.
        queues: names, or name → `wqcore.settings.Queue`; None: all that the database knows.
        timeout_s: seconds after which running handlers are cancelled and NotDrained says which jobs are left.

    Raises NotDrained, UnknownQueue, or DatabaseUnavailable.
    """
    async with _crew(dsn, queues, schema, catalog) as crew:
        try:
            async with asyncio.timeout(timeout_s):
                while not await crew.idle():
                    await crew.beat()
                    await asyncio.sleep(CHECK_EVERY_S)
        except TimeoutError:
            raise NotDrained(f"after {timeout_s:g} s there are still jobs to do: {await crew.left()}") from None
    return crew.counts()


@asynccontextmanager
async def working(
    dsn: str, *, queues: Queues | None = None, schema: str = "wqcore", catalog: Catalog = default_catalog
) -> AsyncIterator[None]:
    """Workers and a keeper run in the background of this process while the block runs.

    At its end handlers that still run are waited for; when the block raises they are cancelled, and their jobs are
    ready again. The arguments are those of `drain`.
    """
    async with _crew(dsn, queues, schema, catalog) as crew:
        keeper = crew.keeper(dsn)
        task = asyncio.create_task(keeper.run(), name="wqcore keeper")
        try:
            yield
        finally:
            keeper.leave()
            await asyncio.wait([task], timeout=STOP_GRACE_S)
            task.cancel()


@asynccontextmanager
async def _crew(dsn: str, queues: Queues | None, schema: str, catalog: Catalog) -> AsyncIterator[Crew]:
    settings = await asyncio.to_thread(settings_for, dsn, queues, schema)
    crew = Crew(settings, dsn, catalog)
    await crew.start()
    try:
        yield crew
    except BaseException:
        await crew.stop(at_once=True)
        raise
    await crew.stop(at_once=False)


class Crew:
    """One shard for each queue of the settings."""

    def __init__(self, settings: Settings, dsn: str, catalog: Catalog) -> None:
        self._settings = settings
        self._process_id = str(uuid.uuid4())
        self._statements = Statements(settings.database.schema)
        board = Board([queue.workers for queue in settings.queues.values()])
        self._sheets: dict[int, Sheet] = {}
        self.shards: list[Shard] = []
        for sheet, (name, queue) in zip(board.sheets, settings.queues.items(), strict=True):
            sheet.assign(clock.new_shard_id(), clock.monotonic_ns())
            sheet.set_kinds([kind.name for kind in catalog])
            self._sheets[sheet.shard] = sheet
            self.shards.append(
                Shard(
                    settings,
                    dsn=dsn,
                    queue=name,
                    workers=queue.workers,
                    shard_id=sheet.shard,
                    process_id=self._process_id,
                    catalog=catalog,
                    sheet=sheet,
                )
            )
        self._dsn = dsn
        self._tasks: list[asyncio.Task[bool]] = []
        self._beat_at = 0.0

    async def start(self) -> None:
        """Connects, runs the start hooks and begins to work. Raises DatabaseUnavailable or HookFailed."""
        self._conn = await connect(self._dsn, self._settings.database, name="wqcore testing")
        use_database(self._settings, self._dsn)
        try:
            await run_start_hooks(self._settings.process.boot_timeout_s)
        except BaseException:  # whatever ends the start, what it has opened is closed
            await close_resources()
            await self._conn.close()
            raise
        self._tasks = [asyncio.create_task(shard.run(), name=f"wqcore {shard.queue}") for shard in self.shards]

    async def stop(self, *, at_once: bool) -> None:
        """Drains the shards; at once: cancels their handlers first. Runs the stop hooks and closes the resources."""
        for shard in self.shards:
            shard.cancel_running() if at_once else shard.drain()
        running = set(self._tasks)
        if at_once and running:
            _, running = await asyncio.wait(running, timeout=STOP_GRACE_S)
            for shard in self.shards:
                shard.leave_now()
        if running:
            await asyncio.wait(running)
        await run_stop_hooks()
        await close_resources()
        use_database(None)
        async with self._conn:
            await leave(
                self._conn, self._statements, process=self._process_id, dead_after_s=self._settings.process.dead_after_s
            )
        if not at_once:
            self._check()

    async def idle(self) -> bool:
        """True when the database has nothing for these queues any more."""
        self._check()
        for shard in self.shards:
            if shard.executor.running or shard.executor.waiting or len(shard.executor.outcomes):
                return False
        return not await self._undone(1)

    async def left(self) -> str:
        """What there still is to do, for people."""
        found = await self._undone(SHOWN_MAX + 1)
        lines = [self._sentence(*row) for row in found[:SHOWN_MAX]]
        return "; ".join([*lines, "and more"] if len(found) > SHOWN_MAX else lines) or "none, they have just ended"

    def counts(self) -> Drained:
        """The totals of all shards."""
        counters = [shard.executor.counters for shard in self.shards]
        return Drained(
            completed=sum(each.completed for each in counters),
            failed=sum(each.retried for each in counters),
            snoozed=sum(each.snoozed for each in counters),
            cancelled=sum(each.cancelled for each in counters),
            discarded=sum(each.discarded for each in counters),
        )

    def keeper(self, dsn: str) -> Keeper:
        """A keeper for these shards: it beats, rescues, keeps the history and what else a master's keeper does."""
        return Keeper(
            self._settings,
            dsn=dsn,
            process_id=self._process_id,
            master_pid=os.getpid(),
            version=VERSION,
            report=self._report,
            started=lambda number: (number, self._sheets[number].started_jobs()),
            live_shards=lambda: set(self._sheets),
            master_lives=lambda: True,
            answered=lambda number: None,
            drain_master=lambda: None,
            declared=declared(self._settings),
        )

    async def beat(self) -> None:
        """Beats, when it is time, where no keeper does."""
        now = clock.monotonic()
        if now < self._beat_at:
            return
        self._beat_at = now + self._settings.process.beat_interval_s
        await beat(
            self._conn,
            self._statements,
            process=self._process_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            group="tests",
            version=VERSION,
            report=self._report(),
        )

    def _check(self) -> None:
        """Raises what ended a shard before its time."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and not task.result():
                raise LeaseLost(
                    "another process has taken the jobs of this test over, because it saw no beat for "
                    f"{self._settings.process.dead_after_s:g} s: the event loop was blocked; run blocking code in a thread"
                )

    async def _undone(self, count: int) -> list[tuple[Any, ...]]:
        cursor = await self._conn.execute(
            self._statements["undone"], {"queues": list(self._settings.queues), "n": count}
        )
        return await cursor.fetchall()

    def _sentence(
        self,
        job_id: int,
        kind: str,
        queue: str,
        held: bool,
        paused: bool,
        attempt: int,
        max_attempts: int,
        error: str | None,
        owner: str | None,
    ) -> str:
        if owner is not None and owner != self._process_id:
            state = f"belongs to process {owner}; has it died? then use a fresh database, or wait for a keeper"
        elif held:
            state = "runs, or waits for its serial key or rate"
        else:
            state = "waits; its queue is paused" if paused else "waits"
        failed = f", {attempt} of {max_attempts} attempts have failed, the last with: {error}" if error else ""
        return f"job {job_id} ({kind}, queue {queue}) {state}{failed}"

    def _report(self) -> dict[str, Any]:
        shards = {}
        for shard in self.shards:
            sheet = self._sheets[shard.id]
            running = [[job.id, job.attempt, job.kind, 0.0] for job in sheet.running()[:RUNNING_SHOWN_MAX]]
            shards[str(shard.id)] = {"workers": sheet.seats, "running": running, "running_count": len(running)}
        return {"shards": shards}
