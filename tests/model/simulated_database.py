"""A database that fails by seed: connections of psycopg's shape on the tables in memory, which lose, delay and break.

A statement reaches the server after a while, is committed at one moment (a turn has its snapshot before), and its reply
comes back after a while. At each of these stages the connection may break; a statement that the client has given up may
still be committed later. While a host is cut off, nothing comes through in either direction, and nobody is told.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg

from tests.model.simulated_time import SimulatedLoop
from tests.model.tables import Rows, Tables
from wqcore.db.statements import Statements
from wqcore.errors import DatabaseUnavailable

SCHEMA = "wqcore"
STATEMENTS = Statements(SCHEMA)
NAMES = {
    STATEMENTS[name]: name
    for name in (
        "shard_register", "shard_session", "shard_leave", "turn", "peek", "settle_retry", "settle_end", "slots_take",
        "slots_owned", "slots_release", "held_elsewhere", "remaining", "cancels",
    )
}  # fmt: skip
SHORT_S, LONG_S = 0.0008, 1.5
TURNS_S = (0.0008, 0.0008, 0.3)
"""Between the snapshot of a turn and its commit: a few wait that long for a lock."""


class Line:
    """What lies between one host and the database."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.late: list[Callable[[], None]] = []
        """Notifications that come when it is up again."""
        self.dead = False
        """The host is gone: nothing of it will ever be heard again."""
        self.trap: float | None = None
        """The next turn with completed jobs is caught on its way to the server: the line is cut for so many seconds."""

    def cut(self) -> None:
        """Nothing passes any more."""
        self.up.clear()

    def heal(self) -> None:
        """Everything passes again."""
        self.up.set()
        late, self.late = self.late, []
        for arrive in late:
            arrive()


class SimulatedDatabase:
    """The server: tables, and who listens."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random, slots: int) -> None:
        self.loop = loop
        self.rng = rng
        self.tables = Tables(slots, lambda: int((loop.time() - 500.0) * 1e6), self._notify)
        self.trouble = 0.0
        """How probable it is that something goes wrong with a statement."""
        self._listening: list[SimulatedConnection] = []
        self._numbers = itertools.count(10)

    async def connect(self, line: Line) -> SimulatedConnection:
        """A connection, or DatabaseUnavailable."""
        await self.travel(line)
        if line.dead or self.rng.random() < self.trouble:
            raise DatabaseUnavailable("the simulated database refuses connections")
        return SimulatedConnection(self, line, next(self._numbers))

    async def travel(self, line: Line) -> None:
        """One way between client and server."""
        rng = self.rng
        long = self.trouble and rng.random() < self.trouble
        await asyncio.sleep(rng.uniform(0, LONG_S if long else SHORT_S))
        if not line.up.is_set():
            await line.up.wait()

    def _notify(self, payload: str) -> None:
        self._listening = [conn for conn in self._listening if not conn.closed]
        for conn in self._listening:  # PostgreSQL keeps their order
            conn.heard_until = max(conn.heard_until + 1e-6, self.loop.time() + self.rng.uniform(0, SHORT_S))
            self.loop.call_at(conn.heard_until, conn.hear, payload)

    def listen(self, conn: SimulatedConnection) -> None:
        """From now on the connection hears of notifications."""
        self._listening.append(conn)

    async def perform(self, query: bytes, params: dict[str, Any], commits: Callable[[], bool]) -> Rows:
        """What the server does; `commits` says at the last moment whether it still does it."""
        name = NAMES[query]
        tables = self.tables
        if name != "turn":
            return getattr(tables, name)(params) if commits() else []  # type: ignore[no-any-return]
        seen, now, xid = tables.turn_snapshot(), tables.now_us(), tables.begin()
        try:
            await asyncio.sleep(self.rng.uniform(0, self.rng.choice(TURNS_S)))
            return tables.turn(params, seen, now) if commits() else []
        finally:
            tables.end(xid)


class SimulatedConnection:
    """As much of a psycopg connection as a shard uses."""

    def __init__(self, database: SimulatedDatabase, line: Line, number: int) -> None:
        self.closed = False
        self.heard_until = 0.0
        self.pgconn = self
        self._database = database
        self._line = line
        self._number = number
        self._unread: deque[Notification] = deque()
        self._handlers: list[Callable[[Notification], None]] = []

    # --- a connection -----------------------------------------------------------------------------------------------

    async def execute(self, query: bytes, params: Any = None, *, prepare: bool = False, binary: bool = False) -> _Cursor:
        """Sends a statement, which may be lost on each of its ways."""
        database, rng = self._database, self._database.rng
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        if query.startswith(b"listen"):
            database.listen(self)
            return _Cursor([])
        line = self._line
        if line.trap is not None and NAMES[query] == "turn" and params["done_ids"].items:
            line.cut()
            database.loop.call_later(line.trap, line.heal)
            line.trap = None
        fate = rng.random() if rng.random() < database.trouble else 1.0
        try:
            await database.travel(self._line)
            if fate < 0.3:
                if fate < 0.15:
                    database.loop.create_task(self._late(query, params, rng.uniform(0, LONG_S)))
                raise psycopg.OperationalError("simulated: the connection was lost")
            rows = await database.perform(query, params, lambda: not self._line.dead)
            await database.travel(self._line)
            if fate < 0.6:
                raise psycopg.OperationalError("simulated: the connection was lost with the reply")
        except BaseException:
            self.finish()
            raise
        while self._unread:
            heard = self._unread.popleft()
            for handler in self._handlers:
                handler(heard)
        return _Cursor(rows)

    async def _late(self, query: bytes, params: Any, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._database.perform(query, params, lambda: True)

    def add_notify_handler(self, handler: Callable[[Notification], None]) -> None:
        """For notifications that come with a reply."""
        self._handlers.append(handler)

    def fileno(self) -> int:
        """The number by which a loop waits for it."""
        return self._number

    def hear(self, payload: str) -> None:
        """A notification has come over the line, or will when that is up again: TCP sends it until it is lost."""
        if self._line.up.is_set():
            self._arrived(payload)
        else:
            self._line.late.append(lambda: self._arrived(payload))

    def _arrived(self, payload: str) -> None:
        if self.closed:
            return
        self._unread.append(Notification(payload))
        reader = self._database.loop.readers.get(self._number)
        if reader is not None:
            reader()

    # --- its pgconn -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Closes it."""
        self.closed = True

    def consume_input(self) -> None:
        """What has arrived is there already."""

    def notifies(self) -> Notification | None:
        """The next notification."""
        return self._unread.popleft() if self._unread else None


class Notification:
    """In both shapes in which psycopg hands it out."""

    def __init__(self, payload: str) -> None:
        self.payload = payload
        self.extra = payload.encode()


class _Cursor:
    rownumber = 0

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def fetchall(self) -> Rows:
        return self._rows
