"""One shard: keeps its lease, its slots and its claim true while jobs run, and stops at once when it is fenced.

The loop does one thing at a time on one connection, chosen in this order:

    1. share      take free slots or release surplus ones, when someone asked or a look showed the need
    2. turn       acknowledge what is finished and claim what is wanted
    3. look       at least every poll interval: lease, slots, late and due jobs; writes nothing
    4. idle       until a job ends, a notification arrives, or the next look is due

Demand: free seats plus as much as runs in `prefetch_s` at the present rate, less what waits already. Nothing is fetched
while outcomes cannot be written (backpressure): a turn carries both.

What a crash of this process leaves: its shard row, its newest claim, and its sheet of the board, from which the keeper
rescues. What a lost connection leaves: everything in memory; the first turn on the new connection writes the claim
anew. A shard that could not prove its lease for `dead_after_s` cancels its handlers, since others may have rescued it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
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
from wqcore.line.bucket import Bucket
from wqcore.line.execute import Executor
from wqcore.line.lanes import Lanes
from wqcore.line.settle import Outcomes
from wqcore.line.turn import Fenced, Look, Turned
from wqcore.line.turn import Protocol as TurnProtocol
from wqcore.settings import Queue, Settings

log = logging.getLogger("wqcore.shard")

FLUSH_S = 0.003
"""An outcome waits at most this long for others to share its commit while jobs are waiting."""
LOOK_AGAIN_S = 0.010
"""After a wake-up that brought jobs: clients leave out notifications closer than 5 ms to the last."""
NEAR_FLOOR_IDS = 2000
"""Going back to the floor at a wake-up costs less than a millisecond when it is at most this many ids behind."""
LOOK_SHARE = 0.05
"""A look may take this share of the time; beside an old snapshot a long one is spaced out accordingly."""
HINT_SHARE = 0.1
"""The same for looks that a hint asked for: with 0.05 jobs that became due one each 20 ms started up to 40 ms late."""
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 3.0
AT_MOST_ONCE_ATTEMPTS = 1
DUE_ROOM = 16
"""Due jobs that may be claimed beyond the demand, when their time comes while enough others wait already."""
GONE_KEPT_S = 10.0
"""How long deleted ids are remembered: longer than a turn that began before the deletion can take."""
PROGRESS_EVERY_S = 1.0
COMPLETED_TX_MAX = 1000
"""Ids completed in transactions of their handlers that are remembered before those that have ended are forgotten."""


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
    ) -> None:
        self.queue = queue
        self.id = shard_id
        self._settings = settings
        self._queue: Queue = settings.queues[queue]
        self._dsn = dsn
        self._process_id = process_id
        self._sheet = sheet
        self._channel = wake.channel(settings.database.schema, queue)
        self._protocol = TurnProtocol(
            Statements(settings.database.schema),
            shard=shard_id,
            queue=queue,
            channel=self._channel,
            reply_timeout_s=settings.database.statement_timeout_s,
        )
        self.executor = Executor(
            queue=queue,
            workers=workers,
            catalog=catalog,
            sheet=sheet,
            run_side=self,
            on_change=self._poke,
            cancel_grace_s=settings.process.cancel_grace_s,
            log_all_tasks=settings.logging.tasks == "all",
        )
        self.executor.flush_at = max(1, self._queue.batch_max // 2)
        self.lanes = Lanes({kind.priority for kind in catalog if kind.queue == queue} | {1})
        self._wake = asyncio.Event()
        self._registered = False
        self._draining = False
        self._leave_now = False
        self._hungry = True
        self._share_wanted = True
        self._dirty = False
        self._paused = False
        self._due_now = False
        self._parked_before = self._claimed_before = 0
        self._look_at = 0.0
        self._looked_at = 0.0
        self._looks_took: deque[float] = deque([0.0], maxlen=4)
        self._fetch_not_before = 0.0
        self._due_at = math.inf
        self._oldest_outcome_at = math.inf
        self._proved_at = clock.monotonic()
        self._lease_doubted = False
        self._elsewhere: dict[int, tuple[int, str | None]] = {}
        self._prefetch = 0
        self._rate = 0.0
        self._rate_from = (0.0, 0)
        self._at_most_once = False
        self._db_clock_offset_us = 0.0
        self._limits = self._queue.limits({})
        self._limits_text = ""
        self._keep_text = ""
        self._permits: list[int] = []
        self._gone: dict[int, float] = {}
        self._completed_tx: set[int] = set()
        self._progress: dict[int, tuple[float, str | None]] = {}
        self._progress_at = 0.0
        self._progress_written: set[int] = set()
        self.executor.ageing_s = self._queue.ageing_s

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

    async def run(self) -> bool:
        """Runs until drained; True, or False when the shard was fenced and must not write another byte."""
        self.executor.seconds_since = self._seconds_since
        self.executor.start()
        watch = asyncio.get_running_loop().create_task(self._watch_lease(), name="wqcore lease")
        delay, connected_at = RECONNECT_MIN_S, math.inf
        try:
            while True:
                try:
                    await self._connect()
                    connected_at = clock.monotonic()
                    await self._loop()
                    return True
                except Fenced:
                    log.error("shard fenced: another process has rescued its jobs", extra={"queue": self.queue})
                    return False
                except (psycopg.Error, WqcoreError, TimeoutError, OSError) as error:
                    await self._disconnect()
                    if self._leave_now:
                        return True
                    if clock.monotonic() - connected_at > RECONNECT_MAX_S:
                        delay = RECONNECT_MIN_S
                    log.warning(
                        "the database failed us, trying again in %.2f s: %s",
                        delay,
                        faults.one_line(error),
                        extra={"queue": self.queue},
                    )
                    await asyncio.sleep(clock.jittered(delay, 0.3))
                    delay = min(delay * 2, RECONNECT_MAX_S)
        finally:
            watch.cancel()
            await self.executor.close()
            await self._disconnect()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        self._dirty = True
        self._share_wanted = True
        self._look_at = 0.0
        while True:
            now = clock.monotonic()
            if self._draining and await self._drained():
                return
            if self._share_wanted and not self._draining:
                await self._share()
            elif now >= self._look_at:
                await self._look()
            elif self._turn_wanted(now):
                await self._turn()
            elif self._progress and now >= self._progress_at:
                await self._write_progress(now)
            else:
                await self._idle(now)

    def _limit(self) -> int:
        """How many jobs the next turn may claim."""
        if self._draining or self._paused or self._lease_doubted or not self.lanes.slots:
            return 0
        executor = self.executor
        target = self._target()
        executor.low_water = target // 2
        room = target - executor.running - executor.waiting
        if self._due_now:
            # a due job must not wait until the low water of jobs that may all be of lower priority
            room = max(room, DUE_ROOM)
        if executor.keys.parked - self._parked_before > self._claimed_before // 2:
            # most of the last batch was parked behind busy keys: look further for jobs that can start
            room = max(room, 2 * self._claimed_before)
        if self._limits.max_workers_total is not None:
            room = min(room, len(self._permits) - executor.running - executor.waiting - executor.keys.parked)
        return max(0, min(self._queue.batch_max, room))

    def _target(self) -> int:
        """How many jobs this shard would like to hold."""
        executor = self.executor
        target = executor.workers + self._prefetch
        if executor.bucket is not None:
            # what a rate holds back is better left where another shard can take its slot over
            startable = executor.bucket.available(clock.monotonic()) + executor.bucket.per_second
            target = min(target, executor.running + math.ceil(startable))
        return target

    def _turn_wanted(self, now: float) -> bool:
        executor = self.executor
        outcomes = len(executor.outcomes)
        if now >= self._due_at:
            self._due_at = math.inf
            self._hungry = self._due_now = True
            self._fetch_not_before = 0.0
        if self._hungry and now >= self._fetch_not_before:
            if self._due_now and self._limit():
                return True
            if executor.waiting <= executor.low_water:
                limit = self._limit()
                if limit and (executor.waiting == 0 or limit >= self._target() // 2):
                    return True
        if outcomes:
            if self._oldest_outcome_at == math.inf:
                self._oldest_outcome_at = now
            at_once = executor.has_suspects() or not (executor.running or executor.waiting)
            return at_once or outcomes >= executor.flush_at or now - self._oldest_outcome_at >= FLUSH_S
        return self._dirty

    async def _turn(self) -> None:
        """One turn; outcomes that could not be written stay in memory and go with the next."""
        executor = self.executor
        limit = self._limit() if self._hungry else 0
        outcomes, executor.outcomes = executor.outcomes, Outcomes()
        mark = self._sheet.mark()
        self._oldest_outcome_at = math.inf
        held = executor.held()
        busy_keys = executor.keys.to_leave_out(self.lanes.position)
        executor.settling = bool(outcomes)
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
        self._dirty = False
        self._sheet.acknowledged(mark)
        for item in outcomes.again:
            self._due_at = min(self._due_at, clock.monotonic() + item.delay_s + 0.001)
        self._took(turned, limit, held, outcomes, passed_over=bool(busy_keys))
        if self._progress_written:
            ended = self._progress_written.difference(held)
            await self._protocol.forget_progress(sorted(ended))
            self._progress_written -= ended
        if turned.done_count != len(outcomes.done_ids):
            await self._find_unacknowledged(outcomes.done_ids)
        if len(self._completed_tx) > COMPLETED_TX_MAX:
            self._completed_tx.intersection_update(executor.held())
        self._measure()

    def _took(self, turned: Turned, limit: int, held: list[int], outcomes: Outcomes, *, passed_over: bool) -> None:
        executor = self.executor
        rows = turned.rows
        if limit:
            self._due_now = False
            self._parked_before, self._claimed_before = executor.keys.parked, len(rows)
            more = self.lanes.took(rows, limit, passed_over=passed_over)
            now = clock.monotonic()
            if rows:
                if not more:
                    self._look_soon(now + LOOK_AGAIN_S)
                self._hungry = more or self.lanes.behind()
            else:
                self._hungry = self.lanes.behind()
                # spaces fetches that found nothing; a backlog is never throttled
                self._fetch_not_before = now + self._queue.fetch_cooldown_s if not self._hungry else 0.0
        if rows:
            self._at_most_once = rows[-1][Row.MAX_ATTEMPTS] == AT_MOST_ONCE_ATTEMPTS
            if self._draining:
                self._dirty = True
                return
            if self._gone:
                rows = self._without_gone(rows)
            if rows and rows[-1][Row.RUN_AT] is not None:
                rows = self._without_known(rows, held, outcomes)
            executor.add(rows)
        for slot, position in executor.keys.to_read_again():
            self.lanes.rewind_to_position(slot, position)
            self._hungry = True

    async def _find_unacknowledged(self, ids: list[int]) -> None:
        """Jobs that changed while they ran are still there, at another revision: they run again."""
        for job_id, slot, priority in await self._protocol.remaining(ids):
            self.lanes.rewind_before(slot, priority, job_id)
            self._hungry = True

    async def _look(self) -> None:
        began = clock.monotonic()
        held = self.executor.held() + self.executor.outcomes.ids()
        busy_keys = self.executor.keys.to_leave_out(self.lanes.position)
        look = await self._protocol.look(self.lanes, held + list(self._elsewhere), busy_keys)
        self._proved()
        self._looked_at = clock.monotonic()
        took = self._looked_at - began
        self._looks_took.append(took)
        interval = min(self._queue.poll_interval_s, self._settings.process.dead_after_s / 3)
        # spaced out when it is long, but never so far that the lease could seem unproven
        spaced = min(max(interval, took / LOOK_SHARE), self._settings.process.dead_after_s / 2)
        self._look_at = clock.monotonic() + clock.jittered(spaced)
        self._db_clock_offset_us = look.now_us - clock.monotonic() * 1e6
        self.lanes.look(look.sequence, look.oldest_xid, look.next_xid, late=look.late, now_us=look.now_us)
        if look.gap_priority is not None:
            self.lanes.learn(look.gap_priority)
            self._look_at = 0.0
        if look.due_late:
            self.lanes.rewind_due(self.lanes.slots)
        if look.ready or look.late or look.due or look.due_late or look.gap_priority is not None:
            self._hungry = True
            self._fetch_not_before = 0.0
        if look.due or look.due_late:
            self._due_now = True
        if look.next_due_us is not None:
            self._due_at = min(self._due_at, clock.monotonic() + look.next_due_us / 1e6 + 0.001)
        await self._obey(look)
        if self._unfair(look):
            self._share_wanted = True
        if self._elsewhere:
            await self._refresh_elsewhere()
        if self._queue.ageing_s:
            self.lanes.age(await self._protocol.ages(self.lanes), self._queue.ageing_s)
            self.executor.rank_again()

    def _look_soon(self, at: float) -> None:
        """Looks at that time, or later when looks take long: hints must not make them most of the work.

        The shortest of the last looks counts, so that a single slow one does not make due jobs late.
        """
        self._look_at = min(self._look_at, max(at, self._looked_at + min(self._looks_took) / HINT_SHARE))

    async def _obey(self, look: Look) -> None:
        """Puts in force what somebody has changed: pause, limits, retention, cancellations."""
        if look.keep_hours is not None and look.keep_hours != self._keep_text:
            self._keep_text = look.keep_hours
            self._protocol.keep_completed_hours = float(orjson.loads(look.keep_hours).get("completed", 24))
        if look.limits is not None and look.limits != self._limits_text:
            self._limits_text = look.limits
            self._set_limits(look.limits)
        total = self._limits.max_workers_total
        if look.permits < (total or 0) or (look.permits > (total or 0) and look.free_permits):
            await self._protocol.sync_permits(total)
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
            self._hungry = True
            self._fetch_not_before = 0.0
        self._paused = look.paused

    def _set_limits(self, text: str) -> None:
        try:
            self._limits = self._queue.limits(orjson.loads(text))
        except msgspec.ValidationError as error:
            # written by hand: the shard goes on with what it had, and whoever wrote it reads why
            log.error("limits of queue %s are not understood: %s; %s", self.queue, text, error)
            return
        self._use_limits()
        self._hungry = True

    def _use_limits(self) -> None:
        """Hands the limits to the executor; the queue's rate is shared out by slots."""
        rate, bucket = self._limits.rate, None
        own = len(self.lanes.slots)
        if rate is not None and own:
            share = own / self._queue.slots
            bucket = Bucket(rate.per_second * share, max(1.0, rate.burst_jobs * share), clock.monotonic())
        self.executor.set_limits(self._limits, bucket)

    def _unfair(self, look: Look) -> bool:
        """True when slots or permits are to be taken or given up."""
        slots, permits = self._fair(look)
        own = len(self.lanes.slots)
        if own > slots or (own < slots and look.free_slots):
            return True
        return bool(self._surplus_permits(permits)) or (len(self._permits) < permits and look.free_permits > 0)

    def _fair(self, look: Look) -> tuple[int, int]:
        """(slots, permits) that this shard should own.

        Where there are fewer permits than shards, some shards get none, and so no slots: the others must read those.
        """
        shards, total = max(1, look.shards), self._limits.max_workers_total
        if total is None:
            return math.ceil(self._queue.slots / shards), 0
        if not self._permits and not look.free_permits:
            return 0, math.ceil(total / shards)
        return math.ceil(self._queue.slots / min(shards, total)), math.ceil(total / shards)

    def _surplus_permits(self, fair: int) -> list[int]:
        """Permits to give up: those over the share, and those that are to vanish, as far as no job needs them."""
        total = self._limits.max_workers_total or 0
        kept = [permit for permit in self._permits if permit < total]
        surplus = [permit for permit in self._permits if permit >= total] + kept[fair:]
        executor = self.executor
        idle = len(self._permits) - executor.running - executor.waiting - executor.keys.parked
        return surplus[: max(0, idle)]

    async def _share(self) -> None:
        """Brings the slots to this shard's share."""
        self._share_wanted = False
        look = await self._protocol.look(self.lanes, [])
        self._proved()
        fair, fair_permits = self._fair(look)
        await self._share_permits(fair_permits, look)
        own = await self._protocol.owned_slots()
        if len(own) > fair:
            surplus = own[fair:]
            self._own(own[:fair])  # before anybody else can take them: its part of the queue's rate goes with a slot
            if self.executor.give_back(set(surplus)) or self.executor.running:  # their lanes are forgotten
                self._dirty = True
                await self._turn_without_fetch()
            await self._protocol.release_slots(surplus)
        elif len(own) < fair and look.free_slots:
            own = await self._protocol.take_slots(fair - len(own))
        if set(own[:fair]) != set(self.lanes.slots):
            self._own(own[:fair])
            await self._refresh_elsewhere()
            self._hungry = True
            self._fetch_not_before = 0.0
            self._look_at = 0.0
            log.debug("owns %d of %d slots", len(own[:fair]), self._queue.slots, extra={"queue": self.queue})

    def _own(self, slots: list[int]) -> None:
        """These are our slots from now on."""
        self.lanes.set_slots(slots)
        self.executor.keys.own(slots)
        self._use_limits()

    async def _share_permits(self, fair: int, look: Look) -> None:
        """Brings the permits to this shard's share."""
        total = self._limits.max_workers_total
        if not look.permits and not self._permits:
            return
        self._permits = await self._protocol.owned_permits()
        surplus = self._surplus_permits(fair)
        if surplus:
            await self._protocol.release_permits(surplus, total or 0)
            self._permits = [permit for permit in self._permits if permit not in surplus]
        elif total is not None and len(self._permits) < fair and look.free_permits:
            self._permits = await self._protocol.take_permits(fair - len(self._permits), total)
            self._hungry = True

    async def _turn_without_fetch(self) -> None:
        hungry, self._hungry = self._hungry, False
        await self._turn()
        self._hungry = hungry

    async def _refresh_elsewhere(self) -> None:
        """Learns which jobs in our slots others still hold; what they have let go is read anew."""
        found = await self._protocol.held_elsewhere(self.lanes.slots)
        before, self._elsewhere = self._elsewhere, {id_: (slot, key) for id_, slot, key in found}
        self.executor.held_elsewhere(Counter(key for _, key in self._elsewhere.values() if key is not None))
        for job_id, (slot, _) in before.items():
            if job_id not in self._elsewhere:
                self.lanes.rewind_slot(slot)
                self._hungry = True

    async def _idle(self, now: float) -> None:
        """Waits for the next reason to act; notifications are read from the connection's socket while it waits."""
        if self._wake.is_set():
            self._wake.clear()
            return
        until = min(self._look_at, self._due_at)
        if len(self.executor.outcomes):
            until = min(until, self._oldest_outcome_at + FLUSH_S)
        if self._progress:
            until = min(until, self._progress_at)
        if self._hungry and self._fetch_not_before > now:
            until = min(until, self._fetch_not_before)
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
            if self._elsewhere:
                self._look_at = 0.0
        ours = set(self.lanes.slots)
        if hint is not None and hint.gone:
            self._are_gone(hint.gone)
        if hint is None or hint.due or hint.look:
            self._look_soon(0.0)
        elif any(slot in ours for slot, _ in hint.ready):
            for slot, priority in hint.ready:
                if slot in ours:
                    self.lanes.learn(priority)
            self._hungry = True
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
            self._own([])
            await self._turn()
            await self._protocol.release_slots(slots)
            spare = self._permits[executor.running :]
            if spare:
                await self._protocol.release_permits(spare, self._limits.max_workers_total or 0)
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
        conn.add_notify_handler(lambda notification: self._notified(notification.payload))
        await conn.execute(b'listen "' + self._channel.encode() + b'"', prepare=False)
        if not self._registered:
            await self._protocol.register(self._process_id)
            self._registered = True
        await self._obey(await self._protocol.look(self.lanes, []))
        self._proved()
        await self._check_held()

    async def _check_held(self) -> None:
        """After a reconnect: what was deleted while nobody could tell us is forgotten."""
        held = self.executor.held()
        self._completed_tx.intersection_update(held)
        if held:
            left = {job_id for job_id, _, _ in await self._protocol.remaining(held)}
            self.executor.drop_jobs(set(held) - left - self._completed_tx)

    def _are_gone(self, ids: list[int]) -> None:
        """Jobs that somebody has deleted or cancelled while they waited, as far as we know them or just claim them."""
        now = clock.monotonic()
        self._gone = {job_id: at for job_id, at in self._gone.items() if now - at < GONE_KEPT_S}
        self._gone.update((job_id, now) for job_id in ids)
        self.executor.drop_jobs(set(ids))

    def _without_gone(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        kept = [row for row in rows if row[Row.ID] not in self._gone]
        self._dirty = self._dirty or len(kept) != len(rows)
        return kept

    def _without_known(self, rows: list[tuple[Any, ...]], held: list[int], outcomes: Outcomes) -> list[tuple[Any, ...]]:
        """Without jobs that we hold already, or whose outcome went with this very turn.

        A job that was changed at the moment when we claimed it (another priority, time or args) has a time now, and so
        comes up a second time, among the due ones that follow the ready ones in a reply. If it still has something to
        do when its run has ended, the acknowledgement finds another revision, or a look finds it unclaimed.
        """
        acknowledged = set(zip(outcomes.done_ids, outcomes.done_revisions, strict=True))
        known = set(held)
        kept = [
            row for row in rows if row[Row.ID] not in known and (row[Row.ID], row[Row.REVISION]) not in acknowledged
        ]
        self._dirty = self._dirty or len(kept) != len(rows)
        return kept

    async def _disconnect(self) -> None:
        conn, self._protocol.conn = self._protocol.conn, None
        if conn is not None:
            conn.pgconn.finish()

    def _proved(self) -> None:
        """The database has just confirmed the lease."""
        self._proved_at = clock.monotonic()
        if self._lease_doubted:
            self._lease_doubted = False
            self.executor.resume()
            self.lanes.rewind_to(0)
            self.lanes.rewind_due(self.lanes.slots)
            self._dirty = True
            self._hungry = True

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
        ):
            raise LeaseLost(f"job {row[Row.ID]}: this run was superseded; roll back, its newest run decides")
        self._completed_tx.add(row[Row.ID])

    def progress(self, job_id: int, fraction: float, note: str | None) -> None:
        """Takes in how far a job is; written with the next look, once a second at most."""
        if not self._progress:
            self._progress_at = max(self._progress_at, clock.monotonic() + 0.01)
            self._poke()
        self._progress[job_id] = (fraction, note)

    async def _write_progress(self, now: float) -> None:
        """Writes what was said since the last time, and forgets jobs that have ended."""
        self._progress_at = now + PROGRESS_EVERY_S
        held = set(self.executor.held())
        said, self._progress = self._progress, {}
        await self._protocol.write_progress(
            [(job_id, *value) for job_id, value in sorted(said.items()) if job_id in held]
        )
        self._progress_written.update(job_id for job_id in said if job_id in held)

    # --- small measures ----------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        self._wake.set()

    def _exclude(self, held: list[int], outcomes: Outcomes) -> list[int]:
        """Ids that a fetch must not return: none in the usual case, when every lane only goes forward."""
        excluded = list(self._elsewhere)
        if self.lanes.behind():
            excluded += held
            excluded += outcomes.ids()
            excluded += self.executor.outcomes.ids()
        return excluded

    def _measure(self) -> None:
        """Completions per second over the last 20 ms or more, and the prefetch that follows from it."""
        now, completed = clock.monotonic(), self.executor.counters.completed
        since, before = self._rate_from
        if now - since >= 0.02:
            rate = (completed - before) / (now - since)
            self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
            self._rate_from = (now, completed)
            wanted = int(self._rate * self._queue.prefetch_s)
            self._prefetch = 0 if self._at_most_once else min(wanted, 4 * self._queue.batch_max)

    def _seconds_since(self, us: int) -> float:
        """Seconds since a time of the table, by the database's clock as last seen."""
        return (clock.monotonic() * 1e6 + self._db_clock_offset_us - us) / 1e6
