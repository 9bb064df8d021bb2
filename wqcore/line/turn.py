"""The protocol between a shard and the database: every statement a shard sends, as a method.

Nothing here decides; it encodes, sends, decodes. A statement that finds the shard's row gone raises Fenced, and the
caller must stop at once and write nothing. Every other failure leaves the connection unusable and may be repeated on a
new one: each statement says in its file why that is safe.

What a crash leaves behind: before the commit, nothing; after it, what the statement's file promises. A lost reply to a
turn loses only the knowledge of what was claimed; the next turn writes the claim anew from memory and reads the same
rows again, because no cursor has moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from wqcore import clock
from wqcore.db import faults
from wqcore.db.connect import AsyncConnection, BigIntArray
from wqcore.db.statements import Statements
from wqcore.job import ERRORS_KEPT_MAX
from wqcore.line.lanes import DUE_FIRST_US, Lanes
from wqcore.line.settle import Again, Ended, Outcomes

REPLY_GRACE_S = 3.0
"""How much longer than the server's own statement_timeout we wait for a reply on a connection that does not give up before,
as ours do (`db/bounded.py`)."""


class Fenced(Exception):  # noqa: N818 - a state of the protocol
    """The shard's row is gone: another process owns its jobs now."""


class Turned(NamedTuple):
    """What a turn brought back."""

    rows: list[tuple[Any, ...]]
    done_count: int
    claimed: bool


class Look(NamedTuple):
    """What a look showed; the fields are those of peek.sql."""

    alive: bool
    shards: int
    free_slots: int
    own_slots: int
    permits: int
    free_permits: int
    paused: bool
    limits: str | None
    keep_hours: str | None
    cancels: bool
    sequence: int
    now_us: int
    oldest_xid: int
    next_xid: int
    ready: bool
    late: bool
    due: bool
    due_late: int | None
    next_due_us: int | None
    gap_priority: int | None
    due_bytes: int


class Protocol:
    """The statements of one shard on one connection."""

    def __init__(
        self,
        statements: Statements,
        *,
        shard: int,
        queue: str,
        channel: str,
        reply_timeout_s: float,
        prepare: bool = True,
    ) -> None:
        self._sql = statements
        self._shard = shard
        self._queue = queue
        self._channel = channel
        self._reply_timeout_s = reply_timeout_s + REPLY_GRACE_S
        self._prepare = prepare
        self._turn = clock.monotonic_ns()
        self._since = 0
        self._session = 0
        self.keep_completed_hours = 0.0
        """How long the turn keeps completed jobs, in hours; 0 writes no history. A look says it."""
        self.conn: AsyncConnection | None = None
        self.server = ""
        """Which run of which server the session is of."""

    async def register(self, process: str) -> None:
        """Takes the lease, and begins a session."""
        await self._send("shard_register", process=process, channel=self._channel)
        await self.begin_session()

    async def begin_session(self) -> None:
        """Puts an end to what older connections of this shard may still release. Raises Fenced."""
        rows = await self._send("shard_session")
        if not rows:
            raise Fenced
        self._session, self.server = rows[0]

    async def leave(self) -> None:
        """Gives the lease, the slots and the journal up."""
        await self._send("shard_leave", channel=self._channel)

    async def turn(
        self,
        done: Outcomes,
        lanes: Lanes,
        *,
        limit: int,
        held: list[int],
        exclude: list[int],
        busy_keys: list[str],
        changed: bool,
    ) -> Turned:
        """Acknowledges `done` and claims up to `limit` ready and `limit` due rows; `held` is what the shard keeps."""
        keep = self.keep_completed_hours
        done_ids, revisions, ago_us = done.completed(clock.monotonic(), keep=keep > 0)
        self._turn += 1
        rows = await self._send(
            "turn",
            durable=bool(done_ids),
            done_ids=BigIntArray(done_ids),
            done_revisions=BigIntArray(revisions),
            done_ago_us=BigIntArray(ago_us),
            keep_hours=keep,
            **(_lanes(lanes) if limit else _NO_LANES),
            exclude=BigIntArray(exclude),
            busy_keys=busy_keys,
            n=limit,
            turn=self._turn,
            since=self._since,
            held=BigIntArray(held),
            changed=changed,
        )
        if not rows:
            raise Fenced
        done_count, claimed = rows[0][-2:]
        if claimed:
            self._since = self._turn
        return Turned(rows if rows[0][0] is not None else [], done_count, bool(claimed))

    async def look(
        self, lanes: Lanes, exclude: list[int], busy_keys: Sequence[str] = (), *, whole: bool = False
    ) -> Look:
        """Looks for work and at the lease without writing; `whole`: for late due jobs below their floor too. Raises Fenced."""
        above, below = lanes.gaps()
        rows = await self._send(
            "peek",
            **_lanes(lanes),
            slots=BigIntArray(lanes.slots),
            gap_above=BigIntArray(above),
            gap_below=BigIntArray(below),
            floor=lanes.floor,
            due_floor_us=DUE_FIRST_US if whole else lanes.due_floor_us,
            exclude=BigIntArray(exclude),
            busy_keys=list(busy_keys),
        )
        look = Look(*rows[0])
        if not look.alive:
            raise Fenced
        return look

    async def retry(self, items: list[Again]) -> None:
        """Writes jobs that run again."""
        await self._settle("settle_retry", items, self._retry_columns)

    async def end(self, items: list[Ended]) -> None:
        """Writes jobs that ended without completing."""
        await self._settle("settle_end", items, self._end_columns)

    async def take_slots(self, count: int) -> list[int]:
        """Takes up to `count` free slots; returns all that it owns then."""
        await self._send("slots_take", n=count)
        return await self.owned_slots()

    async def owned_slots(self) -> list[int]:
        """The slots that the table says are ours."""
        return [slot for (slot,) in await self._send("slots_owned")]

    async def release_slots(self, slots: Sequence[int]) -> None:
        """Gives slots up and wakes the queue's other shards."""
        await self._release("slots_release", slots=BigIntArray(list(slots)))

    async def held_elsewhere(self, slots: Sequence[int]) -> list[tuple[int, int, str | None]]:
        """(id, slot, serial key) of jobs in `slots` that other shards still hold."""
        return await self._send("held_elsewhere", slots=BigIntArray(list(slots)))

    async def remaining(self, ids: list[int]) -> list[tuple[int, int, int]]:
        """(id, slot, priority) of those jobs that are still unfinished."""
        return await self._send("remaining", ids=BigIntArray(ids))

    async def created(self, ids: list[int]) -> list[tuple[int, int]]:
        """(id, time of insert in µs since 2000) of those jobs that are still unfinished."""
        return await self._send("created", ids=BigIntArray(ids))

    async def take_permits(self, count: int, total: int) -> list[int]:
        """Takes up to `count` free permits of `total`; returns all that it owns then."""
        await self._send("permits_take", n=count, total=total)
        return await self.owned_permits()

    async def owned_permits(self) -> list[int]:
        """The permits that the table says are ours."""
        return [permit for (permit,) in await self._send("permits_owned")]

    async def release_permits(self, permits: Sequence[int], total: int) -> None:
        """Gives permits up and wakes the queue's other shards."""
        await self._release("permits_release", permits=BigIntArray(list(permits)), total=total)

    async def _release(self, name: str, **params: Any) -> None:
        """Releases in the newest session. Ours can have become an older one, when the beginning of a session that was sent on a
        connection before this one has arrived late: then another begins, or what we give up would be ours for ever."""
        while not (await self._send(name, session=self._session, channel=self._channel, **params))[0][0]:
            await self.begin_session()

    async def sync_permits(self, total: int | None) -> None:
        """Makes the queue's permits as many as its limit over all hosts."""
        await self._send("sync_permits", total=total)

    async def cancels(self, held: list[int]) -> list[tuple[int, str]]:
        """(id, reason) of the cancellations that are asked of these jobs."""
        return await self._send("cancels", held=BigIntArray(held))

    async def ages(self, lanes: Lanes) -> list[tuple[int, int, float]]:
        """(slot, priority, seconds that the oldest waiting job of that lane has waited), for lanes that have one."""
        return await self._send("ages", **_lanes(lanes))

    async def write_progress(self, items: Sequence[tuple[int, float, str | None]]) -> None:
        """Writes how far running jobs are: (id, fraction, note)."""
        await self._send(
            "progress_write",
            ids=BigIntArray([job_id for job_id, _, _ in items]),
            fractions=[fraction for _, fraction, _ in items],
            notes=[note for _, _, note in items],
        )

    async def forget_progress(self, ids: Sequence[int]) -> None:
        """Removes the progress of jobs that do not run any more."""
        await self._send("progress_forget", ids=BigIntArray(list(ids)))

    async def complete_tx(
        self,
        conn: AsyncConnection,
        *,
        job_id: int,
        revision: int,
        ago_us: int,
        output: str | None = None,
        log: str | None = None,
    ) -> bool:
        """Completes a job in the caller's transaction; False when the lease is lost."""
        cursor = await conn.execute(
            self._sql["complete_tx"],
            {
                "shard": self._shard,
                "id": job_id,
                "revision": revision,
                "ago_us": ago_us,
                "output": output,
                "log": log,
            },
            prepare=None if self._prepare else False,  # the connection is the caller's, and may go through the pooler too
        )
        return await cursor.fetchone() is not None

    def _retry_columns(self, items: Sequence[Again]) -> dict[str, Any]:
        return {
            "ids": BigIntArray([item.id for item in items]),
            "revisions": BigIntArray([item.revision for item in items]),
            "attempts": BigIntArray([item.attempt for item in items]),
            "delays_s": [item.delay_s for item in items],
            "errors": [item.error for item in items],
            "ready_us": BigIntArray([item.ready_us for item in items]),
        }

    def _end_columns(self, items: Sequence[Ended]) -> dict[str, Any]:
        now = clock.monotonic()
        return {
            "ids": BigIntArray([item.id for item in items]),
            "revisions": BigIntArray([item.revision for item in items]),
            "ago_us": BigIntArray([int((now - item.began) * 1e6) for item in items]),
            "outcomes": [item.outcome for item in items],
            "errors": [item.error for item in items],
            "outputs": [item.output for item in items],
            "started": [item.started for item in items],
            "logs": [item.log for item in items],
        }

    async def _settle(self, name: str, items: list[Any], columns: Any) -> None:
        """Sends a batch; one that PostgreSQL refuses for its data is halved until the offender is alone."""
        if not items:
            return
        try:
            rows = await self._send(name, errors_kept=ERRORS_KEPT_MAX, **columns(items))
        except psycopg.Error as error:
            if faults.is_transient(error):
                raise
            if len(items) > 1:
                middle = len(items) // 2
                await self._settle(name, items[:middle], columns)
                await self._settle(name, items[middle:], columns)
                return
            if items[0].error == _UNSTORABLE:
                raise
            cleaned = items[0]._replace(error=_UNSTORABLE)
            await self._settle(
                name, [cleaned._replace(output=None, log=None) if isinstance(cleaned, Ended) else cleaned], columns
            )
            return
        if not rows:
            raise Fenced

    async def _send(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        if self.conn is None:
            raise psycopg.OperationalError("not connected")
        params["shard"] = self._shard
        params["queue"] = self._queue
        async with asyncio.timeout(self._reply_timeout_s):
            cursor = await self.conn.execute(self._sql[name], params, prepare=self._prepare, binary=True)
            return await cursor.fetchall() if cursor.rownumber is not None else []


def _lanes(lanes: Lanes) -> dict[str, BigIntArray]:
    """The lanes to read, in their order, and their cursors, as the turn, the look and the ages take them."""
    slots, priorities, after = lanes.plan()
    due_at, due_id = lanes.due_cursors()
    return {
        "lane_slots": BigIntArray(slots),
        "lane_priorities": BigIntArray(priorities),
        "lane_after": BigIntArray(after),
        "due_after_us": BigIntArray(due_at),
        "due_after_id": BigIntArray(due_id),
    }


_NO_LANES = {
    name: BigIntArray([]) for name in ("lane_slots", "lane_priorities", "lane_after", "due_after_us", "due_after_id")
}
_UNSTORABLE = '{"error": "an error whose text PostgreSQL refused to store"}'
