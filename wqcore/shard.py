"""One shard: keeps its lease, its slots and its claim true while jobs run, and stops at once when it is fenced.

The loop does one thing at a time on one connection, chosen in this order:

    1. share      take free slots or release surplus ones, when someone asked or a look showed the need
    2. look       at least every poll interval: lease, slots, late and due jobs; writes nothing
    3. turn       acknowledge what is finished and claim what is wanted
    4. progress   write what running jobs said of how far they are
    5. idle       until a job ends, a notification arrives, or the next look is due

What each needs to know is in rooms of the line: `shares.py`, `demand.py` (how much to fetch, and when), `looks.py`,
`progress.py` and `gone.py`. Nothing is fetched while outcomes cannot be written (backpressure): a turn carries both.

What a crash of this process leaves: its shard row, its newest claim, and its sheet of the board, from which the keeper
rescues. What a lost connection leaves: everything in memory; the first turn on the new connection writes the claim
anew. A shard that could not prove its lease for `dead_after_s` cancels its handlers, since others may have rescued it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import orjson
import psycopg

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.db import faults, wake
from wqcore.db.connect import connect_for_turns
from wqcore.db.statements import Statements
from wqcore.errors import LeaseLost, WqcoreError
from wqcore.job import Job, Row
from wqcore.line import execute
from wqcore.line.demand import Demand
from wqcore.line.execute import Executor
from wqcore.line.gone import COMPLETED_TX_MAX, Gone
from wqcore.line.lanes import Lanes
from wqcore.line.looks import Looks
from wqcore.line.progress import Progress
from wqcore.line.settle import Outcomes
from wqcore.line.shares import Shares
from wqcore.line.traces import tracing
from wqcore.line.turn import Fenced, Look, Turned
from wqcore.line.turn import Protocol as TurnProtocol
from wqcore.settings import Queue, Settings
from wqcore.watch import page
from wqcore.watch.meters import Meter

log = logging.getLogger("wqcore.shard")

FLUSH_S = 0.003
"""An outcome waits at most this long for others to share its commit while jobs are waiting."""
LOOK_AGAIN_S = 0.010
"""After a wake-up that brought jobs: clients leave out notifications closer than 5 ms to the last."""
NEAR_FLOOR_IDS = 2000
"""Going back to the floor at a wake-up costs less than a millisecond when it is at most this many ids behind."""
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 2.0
"""With 30 % of jitter, a server that was away for long is used again at most 2.6 s after it takes connections. And never longer
than a quarter of `dead_after_s`: another worker that is back sooner judges us by it."""
AT_MOST_ONCE_ATTEMPTS = 1


class BoardSheet(execute.Sheet, Protocol):
    """A worker's part of the board, as far as the shard writes it."""

    def mark(self) -> int: ...
    def acknowledged(self, mark: int) -> None: ...


class Shard:
    """The loop described above."""

    def __init__(
        self,
        settings: Settings,
        *,
        dsn: str,
        queue: str,
        workers: int,
        shard_id: int,
        process_id: str,
        catalog: Catalog,
        sheet: BoardSheet,
        meter: Meter | None = None,
    ) -> None:
        self.queue = queue
        self.id = shard_id
        self._settings = settings
        self._queue: Queue = settings.queues[queue]
        self._dsn = dsn
        self._process_id = process_id
        self._sheet = sheet
        self._meter = meter
        self._channel = wake.channel(settings.database.schema, queue)
        self._protocol = TurnProtocol(
            Statements(settings.database.schema),
            shard=shard_id,
            queue=queue,
            channel=self._channel,
            reply_timeout_s=settings.database.statement_timeout_s,
            prepare=settings.database.listens,
        )
        self._wake = asyncio.Event()
        self.executor = Executor(
            queue=queue,
            workers=workers,
            catalog=catalog,
            sheet=sheet,
            run_side=self,
            on_change=self._wake.set,
            cancel_grace_s=settings.process.cancel_grace_s,
            log_settings=settings.logging,
        )
        self.executor.flush_at = max(1, self._queue.batch_max // 2)
        self.lanes = Lanes({kind.priority for kind in catalog if kind.queue == queue} | {1})
        self._limits_text = ""
        self._keep_text = ""
        self._shares = Shares(
            self._protocol, self.lanes, self.executor, slots=self._queue.slots, limits=self._queue.limits({})
        )
        self._demand = Demand(
            batch_max=self._queue.batch_max,
            prefetch_s=self._queue.prefetch_s,
            cooldown_s=self._queue.fetch_cooldown_s,
        )
        self._looks = Looks(poll_interval_s=self._queue.poll_interval_s, dead_after_s=settings.process.dead_after_s)
        self._progress = Progress(self._protocol)
        self._gone = Gone(self._protocol)
        self._registered = False
        self._server = ""
        """The one whose jobs were compared with those in memory."""
        self._draining = False
        self._leave_now = False
        self._share_wanted = True
        self._dirty = False
        self._paused = False
        self._oldest_outcome_at = math.inf
        self._proved_at = clock.monotonic()
        self._lease_doubted = False
        self._db_clock_offset_us = 0.0
        self.executor.ageing_s = self._queue.ageing_s
        self.executor.unknown_kind_grace_s = settings.process.unknown_kind_grace_s
        if meter is not None:
            self.executor.slow_from_s = page.DURATION_S[0]
            self.executor.on_start_known = lambda row, began: meter.waited_one(row, began, self._db_clock_offset_us)

    # --- what others may call -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Stops fetching and gives back what has not started; `run` returns when the running jobs have ended."""
        self._draining = True
        self._poke()

    def cancel_running(self) -> None:
        """Cancels what still runs; its attempts are given back."""
        self._draining = True
        self.executor.cancel_running(execute.SHUTDOWN)
        self._poke()

    def leave_now(self) -> None:
        """Makes `run` return without waiting for running jobs."""
        self._leave_now = True
        self._poke()

    def in_copy(self, end: Callable[[], None]) -> None:
        """In a process that a handler has forked: what this copy of the shard writes reaches nobody."""
        conn = self._protocol.conn
        if conn is not None and not conn.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, conn.fileno())
            os.close(nowhere)
        self.executor.threads.in_copy(end)

    async def run(self) -> bool:
        """Runs until drained; True, or False when the shard was fenced and must not write another byte."""
        self.executor.seconds_since = self._seconds_since
        self.executor.tracing = tracing(self._settings)
        self.executor.start()
        watch = asyncio.get_running_loop().create_task(self._watch_lease(), name="wqcore lease")
        delay, longest = RECONNECT_MIN_S, min(RECONNECT_MAX_S, self._settings.process.dead_after_s / 4)
        try:
            while True:
                connected_at = math.inf
                try:
                    await self._connect()
                    connected_at = clock.monotonic()
                    await self._loop()
                    return True
                except Fenced:
                    log.error("shard fenced: another process has rescued its jobs", extra={"queue": self.queue})
                    self._count(page.FENCED)
                    return False
                except (psycopg.Error, WqcoreError, TimeoutError, OSError) as error:
                    await self._disconnect()
                    if self._leave_now:
                        return True
                    self._count(page.RECONNECTS)
                    if clock.monotonic() - connected_at > longest:
                        delay = RECONNECT_MIN_S
                    log.warning(
                        "the database failed us, trying again in %.2f s: %s",
                        delay,
                        faults.one_line(error),
                        extra={"queue": self.queue},
                    )
                    await asyncio.sleep(clock.jittered(delay, 0.3))
                    delay = min(delay * 2, longest)
        finally:
            watch.cancel()
            await self.executor.close()
            await self._disconnect()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        self._dirty = True
        self._share_wanted = True
        self._looks.at_once()
        while True:
            now = clock.monotonic()
            if self._draining and await self._drained():
                return
            if self._share_wanted and not self._draining:
                await self._share()
            elif now >= self._looks.at:
                await self._look()
            elif self._turn_wanted(now):
                await self._turn()
            elif now >= self._progress.due_at:
                await self._progress.write(now, self.executor.held())
            else:
                await self._idle(now)

    def _limit(self) -> int:
        """How many jobs the next turn may claim."""
        if self._draining or self._paused or self._lease_doubted or not self.lanes.slots:
            return 0
        executor, shares = self.executor, self._shares
        target = self._target()
        executor.low_water = target // 2
        return self._demand.limit(
            target,
            executor.running,
            executor.waiting,
            executor.keys.parked,
            None if shares.limits.max_workers_total is None else shares.idle_permits(),
        )

    def _target(self) -> int:
        """How many jobs this shard would like to hold."""
        executor, bucket = self.executor, self.executor.bucket
        startable = None if bucket is None else bucket.available(clock.monotonic()) + bucket.per_second
        return self._demand.target(executor.workers, executor.running, startable)

    def _turn_wanted(self, now: float) -> bool:
        executor, demand = self.executor, self._demand
        outcomes = len(executor.outcomes)
        if now >= demand.due_at:
            demand.due_at = math.inf
            demand.due()
        if demand.hungry and now >= demand.not_before:
            if demand.due_now and self._limit():
                return True
            if executor.waiting <= executor.low_water:
                limit = self._limit()
                if limit and (executor.waiting == 0 or limit >= self._target() // 2):
                    return True
        if outcomes:
            if self._oldest_outcome_at == math.inf:
                self._oldest_outcome_at = now
            at_once = executor.has_suspects() or not (executor.running or executor.waiting or demand.busy)
            return at_once or outcomes >= executor.flush_at or now - self._oldest_outcome_at >= FLUSH_S
        return self._dirty

    async def _turn(self) -> None:
        """One turn; outcomes that could not be written stay in memory and go with the next."""
        executor = self.executor
        limit = self._limit() if self._demand.hungry else 0
        outcomes, executor.outcomes = executor.outcomes, Outcomes()
        mark = self._sheet.mark()
        self._oldest_outcome_at = math.inf
        held = executor.held()
        busy_keys = executor.keys.to_leave_out(self.lanes.position)
        executor.settling = bool(outcomes)
        began = clock.monotonic()
        try:
            await self._protocol.retry(outcomes.again)
            await self._protocol.end(outcomes.ended)
            # what ended without completing must leave the claim too, so any outcome changes it
            turned = await self._protocol.turn(
                outcomes,
                self.lanes,
                limit=limit,
                held=held,
                exclude=self._exclude(held, outcomes),
                busy_keys=busy_keys,
                changed=self._dirty or len(outcomes) > 0,
            )
        except BaseException:
            executor.outcomes.absorb(outcomes)
            raise
        finally:
            executor.settled()
        self._proved()
        if self._meter is not None:
            self._meter.turned(clock.monotonic() - began, len(turned.rows), len(outcomes))
            self._meter.waited(outcomes, self._db_clock_offset_us)
            self._meter.flush_soon(executor)
        self._dirty = False
        self._sheet.acknowledged(mark)
        for item in outcomes.again:
            self._demand.due_by(clock.monotonic() + item.delay_s + 0.001)
        self._took(turned, limit, held, outcomes, passed_over=bool(busy_keys))
        if self._progress.written:
            await self._progress.forget_ended(held)
        if turned.done_count != len(outcomes.done):
            await self._find_unacknowledged(outcomes.done_ids)
        if len(self._gone.completed_tx) > COMPLETED_TX_MAX:
            self._gone.completed_tx.intersection_update(executor.held())
        self._demand.measure(clock.monotonic(), executor.counters.completed)

    def _took(self, turned: Turned, limit: int, held: list[int], outcomes: Outcomes, *, passed_over: bool) -> None:
        executor = self.executor
        rows = turned.rows
        if limit:
            more = self.lanes.took(rows, limit, passed_over=passed_over)
            now = clock.monotonic()
            if rows and not more:
                self._looks.soon(now + LOOK_AGAIN_S)
            self._demand.took(len(rows), more=more, behind=self.lanes.behind(), parked=executor.keys.parked, now=now)
        if rows:
            self._demand.at_most_once = rows[-1][Row.MAX_ATTEMPTS] == AT_MOST_ONCE_ATTEMPTS
            if self._draining:
                self._dirty = True
                return
            fresh = self._gone.sift(rows, held, outcomes)
            if len(fresh) != len(rows):
                self._dirty = True
            executor.add(fresh)
        for slot, position in executor.keys.to_read_again():
            self.lanes.rewind_to_position(slot, position)
            self._demand.hungry = True

    async def _find_unacknowledged(self, ids: list[int]) -> None:
        """Jobs that changed while they ran are still there, at another revision: they run again."""
        for job_id, slot, priority in await self._protocol.remaining(ids):
            self.lanes.rewind_before(slot, priority, job_id)
            self._demand.hungry = True

    async def _look(self) -> None:
        began = clock.monotonic()
        held = self.executor.held() + self.executor.outcomes.ids()
        busy_keys = self.executor.keys.to_leave_out(self.lanes.position)
        whole = self._looks.whole(began)
        look = await self._protocol.look(self.lanes, held + list(self._shares.elsewhere), busy_keys, whole=whole)
        self._proved()
        self._looks.looked(began, clock.monotonic())
        self._looks.saw(look.due_bytes, began, whole=whole)
        self._db_clock_offset_us = look.now_us - clock.monotonic() * 1e6
        self.lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=look.late, now_us=look.now_us)
        if look.gap_priority is not None:
            self.lanes.learn(look.gap_priority)
            self._looks.at_once()
        if look.due_late is not None:
            self.lanes.rewind_due_to(look.due_late)
        if look.ready or look.late or look.due or look.due_late is not None or look.gap_priority is not None:
            self._demand.at_once()
        if look.due or look.due_late is not None:
            self._demand.due_now = True
        if look.next_due_us is not None:
            self._demand.due_by(clock.monotonic() + look.next_due_us / 1e6 + 0.001)
        await self._obey(look)
        if self._shares.unfair(look):
            self._share_wanted = True
        if self._shares.elsewhere and await self._shares.refresh_elsewhere():
            self._demand.hungry = True
        if self._queue.ageing_s:
            self.lanes.age(await self._protocol.ages(self.lanes), self._queue.ageing_s)
            self.executor.rank_again()

    async def _obey(self, look: Look) -> None:
        """Puts in force what somebody has changed: pause, limits, retention, cancellations."""
        if look.keep_hours is not None and look.keep_hours != self._keep_text:
            self._keep_text = look.keep_hours
            self._protocol.keep_completed_hours = float(orjson.loads(look.keep_hours).get("completed", 24))
        if look.limits is not None and look.limits != self._limits_text:
            self._limits_text = look.limits
            self._set_limits(look.limits)
        if await self._shares.sync_permits(look):
            self._share_wanted = True
        if look.cancels:
            reasons = dict(await self._protocol.cancels(self.executor.held()))
            if reasons:
                self.executor.cancel_jobs(reasons)
        if look.paused and not self._paused:
            dropped = self.executor.give_back()
            for row in dropped:
                self.lanes.rewind_before(row[Row.SLOT], row[Row.PRIORITY], row[Row.ID])
            self._dirty = self._dirty or bool(dropped)
        if self._paused and not look.paused:
            self._demand.at_once()
        self._paused = look.paused

    def _set_limits(self, text: str) -> None:
        try:
            limits = self._queue.limits(orjson.loads(text))
        except msgspec.ValidationError as error:
            # written by hand: the shard goes on with what it had, and whoever wrote it reads why
            log.error("limits of queue %s are not understood: %s; %s", self.queue, text, error)
            return
        self._shares.limit(limits)
        self._demand.hungry = True

    async def _share(self) -> None:
        """Brings the slots to this shard's share."""
        self._share_wanted = False
        look = await self._protocol.look(self.lanes, [])
        self._proved()
        fair = self._shares.fair(look)
        if await self._shares.share_permits(fair.permits, look):
            self._demand.hungry = True
        if await self._shares.share_slots(fair.slots, look, before_release=self._turn_without_fetch):
            self.lanes.read_past(self.executor.begun())
            self._demand.at_once()
            self._looks.at_once()
            log.debug("owns %d of %d slots", len(self.lanes.slots), self._queue.slots, extra={"queue": self.queue})

    async def _turn_without_fetch(self) -> None:
        """Writes the claim anew."""
        self._dirty = True
        hungry, self._demand.hungry = self._demand.hungry, False
        await self._turn()
        self._demand.hungry = self._demand.hungry or hungry

    async def _idle(self, now: float) -> None:
        """Waits for the next reason to act; notifications are read from the connection's socket while it waits."""
        if self._wake.is_set():
            self._wake.clear()
            return
        demand = self._demand
        until = min(self._looks.at, demand.due_at, self._progress.due_at)
        if len(self.executor.outcomes):
            until = min(until, self._oldest_outcome_at + FLUSH_S)
        if demand.hungry and demand.not_before > now:
            until = min(until, demand.not_before)
        conn = self._protocol.conn
        if conn is None or conn.closed:
            raise psycopg.OperationalError("the connection is closed")
        loop = asyncio.get_running_loop()
        socket = conn.fileno()
        loop.add_reader(socket, self._wake.set)
        try:
            async with asyncio.timeout(max(0.0, min(until - now, 60.0))):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            loop.remove_reader(socket)
        self._wake.clear()
        conn.pgconn.consume_input()
        while notification := conn.pgconn.notifies():
            self._notified(notification.extra.decode(errors="replace"))

    def _notified(self, payload: str) -> None:
        """A hint that something has changed for this queue."""
        hint = wake.parse(payload)
        if hint is not None and hint.slots:
            self._share_wanted = True
            if self._shares.elsewhere:
                self._looks.at_once()
        ours = set(self.lanes.slots)
        if hint is not None and hint.gone:
            self._gone.deleted(hint.gone, clock.monotonic())
            self.executor.drop_jobs(set(hint.gone))
        if hint is None or hint.past:
            self._looks.whole_next()
        if hint is not None and hint.back:
            self._gone.back(hint.back)
        if hint is None or hint.due or hint.look:
            self._looks.soon(0.0)
        elif any(slot in ours for slot, _ in hint.ready):
            for slot, priority in hint.ready:
                if slot in ours:
                    self.lanes.learn(priority)
            self._demand.hungry = True
            if not self.executor.waiting and 0 < self.lanes.newest_beyond_floor() <= NEAR_FLOOR_IDS:
                self.lanes.rewind_to(self.lanes.floor)

    async def _drained(self) -> bool:
        """One step of a drain; True when nothing is left but to go."""
        executor = self.executor
        executor.halt()
        if self.lanes.slots:
            executor.give_back()
            self._dirty = True
            slots = self.lanes.slots
            self._shares.own([])
            await self._turn()
            await self._shares.release(slots)
        if self._leave_now or not executor.running:
            if len(executor.outcomes):
                await self._turn()
            await self._protocol.leave()
            return True
        return False

    # --- connection and lease ---------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        conn = await connect_for_turns(
            self._dsn, self._settings.database, name=f"wqcore {self.queue} shard {self.id}"[:60]
        )
        self._protocol.conn = conn
        if self._settings.database.listens:
            conn.add_notify_handler(lambda notification: self._notified(notification.payload))
            await conn.execute(b'listen "' + self._channel.encode() + b'"', prepare=False)
        if not self._registered:
            await self._protocol.register(self._process_id)
            self._registered = True
        else:
            await self._protocol.begin_session()
        another = self._protocol.server != self._server
        self.lanes.connected(another=another)
        await self._obey(await self._protocol.look(self.lanes, []))
        self._proved()
        missing = await self._gone.missing(self.executor.held())
        if another and (created := self.executor.created()):
            strangers = await self._gone.strangers(created)
            self.executor.outcomes.drop(strangers)
            missing |= strangers
        if missing:
            self.executor.drop_jobs(missing)
        self._server = self._protocol.server  # only now: a connection that is lost before has not compared all

    async def _disconnect(self) -> None:
        conn, self._protocol.conn = self._protocol.conn, None
        if conn is not None:
            conn.pgconn.finish()

    def _proved(self) -> None:
        """The database has just confirmed the lease."""
        self._proved_at = clock.monotonic()
        if self._meter is not None:
            self._meter.proved(self._proved_at)
        if self._lease_doubted:
            self._lease_doubted = False
            self.executor.resume()
            self.lanes.rewind_to(0)
            self.lanes.rewind_due(self.lanes.slots)
            self._dirty = True
            self._demand.hungry = True

    async def _watch_lease(self) -> None:
        dead_after = self._settings.process.dead_after_s
        while True:
            await asyncio.sleep(min(0.5, dead_after / 4))
            if clock.monotonic() - self._proved_at > dead_after and not self._lease_doubted and self._registered:
                log.error(
                    "lease unproven for %.1f s: cancelling %d running jobs",
                    dead_after,
                    self.executor.running,
                    extra={"queue": self.queue},
                )
                self._lease_doubted = True
                self._count(page.DOUBTED)
                self.executor.halt()
                self.executor.give_back()
                self.executor.cancel_running(execute.LEASE)

    # --- what a running job asks -------------------------------------------------------------------------------------

    async def complete_tx(self, job: Job, conn: psycopg.AsyncConnection[Any]) -> None:
        """Completes a job in its handler's transaction. Raises LeaseLost."""
        row = job._row
        if not await self._protocol.complete_tx(
            conn,
            job_id=row[Row.ID],
            revision=row[Row.REVISION],
            ago_us=self.executor.running_us(row[Row.ID]),
            output=job._output,
            log=self.executor.kept_of(row[Row.ID]),
        ):
            raise LeaseLost(
                f"job {row[Row.ID]}: this run was superseded; roll back, its newest run decides. (Or the connection leads to "
                "another database than that of the queue)"
            )
        self._gone.completed_tx.add(row[Row.ID])

    def progress(self, job_id: int, fraction: float, note: str | None) -> None:
        """Takes in how far a job is; written with the next look, once a second at most."""
        if self._progress.say(job_id, fraction, note):
            self._poke()

    # --- small measures ----------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        self._wake.set()

    def _count(self, what: int) -> None:
        if self._meter is not None:
            self._meter.count(what)

    def _exclude(self, held: list[int], outcomes: Outcomes) -> list[int]:
        """Ids that a fetch must not return: none in the usual case, when every lane only goes forward."""
        excluded = list(self._shares.elsewhere)
        if self.lanes.behind():
            excluded += held
            excluded += outcomes.ids()
            excluded += self.executor.outcomes.ids()
        return excluded

    def _seconds_since(self, us: int) -> float:
        """Seconds since a time of the table, by the database's clock as last seen."""
        return (clock.monotonic() * 1e6 + self._db_clock_offset_us - us) / 1e6
