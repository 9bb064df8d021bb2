"""Inserting jobs: what returned is durable, what raised an InsertError was not written.

`Client` is for asyncio, `SyncClient` for everything else; both have the same methods. `insert_tx` writes on the
caller's own connection, so that the job exists exactly if the caller's transaction commits.

When the connection is lost during an insert, nobody knows whether it was committed: DatabaseUnavailable says so, and
repeating may insert the job twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.db import faults, wake
from wqcore.db.connect import AsyncConnection, Connection, connect, connect_sync, conninfo, describe
from wqcore.db.statements import Statements
from wqcore.errors import ConfigError, DatabaseUnavailable, UnknownQueue
from wqcore.line.insert import NO_OPTIONS, Inserter, InsertOptions, NewJob
from wqcore.settings import Database, Insert, Settings

POOL_CONNECTIONS_MAX = 8
IDLE_CHECK_S = 1.0
"""A pooled connection that was idle for longer is tried before use: its server may have restarted."""
PROGRESS_ROWS = 5_000

Item = msgspec.Struct | tuple[msgspec.Struct, InsertOptions]
Progress = Callable[[int], None]


class _Front:
    """What both clients share: everything that does not wait."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        dsn: str | None = None,
        schema: str = "wqcore",
        catalog: Catalog = default_catalog,
    ) -> None:
        """Takes either loaded settings or a DSN and a schema. Raises ConfigError when there is no DSN."""
        database = settings.database if settings else Database(schema=schema)
        found = dsn if dsn is not None else (None if database.dsn is msgspec.UNSET else database.dsn)
        if not isinstance(found, str):
            raise ConfigError(["no DSN: pass dsn=…, or settings with database.dsn"])
        self._dsn: str = found
        self._database = database
        self._limits = settings.insert if settings else Insert()
        self._catalog = catalog
        self._statements = Statements(database.schema)
        self._inserter: Inserter | None = None
        self._notified: dict[str, float] = {}

    def _know(self, queues: list[tuple[Any, ...]]) -> None:
        self._inserter = Inserter(dict(queues), self._limits.args_bytes_max)

    def _row(self, item: Item) -> NewJob:
        args, options = item if isinstance(item, tuple) else (item, NO_OPTIONS)
        if self._inserter is None:
            raise UnknownQueue("the client is not open: use `async with Client(…)`, or call `initialize()` first")
        return self._inserter.row(self._catalog.kind_of(args), args, options)

    def checked(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS
    ) -> tuple[msgspec.Struct, InsertOptions]:
        """The item itself when it could be inserted; raises as `insert` does. Writes nothing."""
        self._row((args, options))
        return args, options

    def _channel_due(self, queue: str) -> str | None:
        """The queue's channel, or None when this client has notified it within `insert.notify_interval_s`.

        A shard that was woken looks again after 10 ms, so a notification left out costs no more than that.
        """
        now = clock.monotonic()
        if now - self._notified.get(queue, -1.0) < self._limits.notify_interval_s:
            return None
        self._notified[queue] = now
        return wake.channel(self._database.schema, queue)

    def _one(self, row: NewJob, channel: str | None) -> dict[str, Any]:
        payload = "due" if row.run_at is not None else f"{row.slot}:{row.priority}"
        return row._asdict() | {"channel": channel, "payload": payload}

    def _problem(self, error: Exception) -> Exception:
        """The error to raise for a failure of the database."""
        missing = faults.schema_problem(error, self._database.schema)
        if missing is not None:
            return missing
        if isinstance(error, PoolTimeout) or faults.is_transient(error):
            found = faults.unavailable(error, describe(self._dsn))
            if faults.lost_connection(error) and not isinstance(error, PoolTimeout):
                return DatabaseUnavailable(f"{found}; the connection was lost, so the insert may have happened or not")
            return found
        return error


class _Bulk:
    """Counts what a bulk insert wrote, and which notifications it owes."""

    def __init__(self, progress: Progress | None) -> None:
        self.rows = 0
        self._progress = progress
        self._wakes: dict[str, set[tuple[int, int]]] = {}
        self._due: set[str] = set()

    def add(self, row: NewJob) -> NewJob:
        self.rows += 1
        if row.run_at is None:
            pairs = self._wakes.get(row.queue)
            if pairs is None:
                pairs = self._wakes[row.queue] = set()
            pairs.add((row.slot, row.priority))
        else:
            self._due.add(row.queue)
        if self._progress is not None and self.rows % PROGRESS_ROWS == 0:
            self._progress(self.rows)
        return row

    def wakes(self, schema: str) -> Iterator[dict[str, str]]:
        for queue in self._wakes.keys() | self._due:
            text = wake.payload(self._wakes.get(queue, set()), due=queue in self._due)
            yield {"channel": wake.channel(schema, queue), "payload": text}


class Client(_Front):
    """Inserts jobs from asyncio; use it as `async with Client(settings) as client`, or initialize() and stop()."""

    _pool: AsyncConnectionPool[AsyncConnection] | None = None

    async def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = await connect(self._dsn, self._database, name="wqcore client")
        try:
            await self._refresh(conn)
        finally:
            await conn.close()
        self._pool = AsyncConnectionPool(
            conninfo(self._dsn, self._database, name="wqcore client"),
            kwargs={"autocommit": True, "prepare_threshold": 0},
            min_size=1,
            max_size=POOL_CONNECTIONS_MAX,
            timeout=self._database.connect_timeout_s,
            check=_check_async,
            open=False,
        )
        await self._pool.open()

    async def stop(self) -> None:
        """Closes the client's connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def insert(self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS) -> int:
        """Inserts one job and returns its id.

        Raises UnknownKind, PlannedKind, UnknownQueue, InvalidArgs, ArgsTooLarge, InsertError (refused, nothing
        written) or DatabaseUnavailable.
        """
        row = await self._row_known((args, options))
        async with self._connection() as conn:
            return await self._insert_one(conn, row, self._channel_due(row.queue))

    async def insert_tx(self, conn: AsyncConnection, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS) -> int:
        """Inserts one job on the caller's connection, inside its transaction; returns the id. Errors as `insert`."""
        row = await self._row_known((args, options))
        return await self._insert_one(conn, row, wake.channel(self._database.schema, row.queue))

    async def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any] | bytes | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        run_at: dt.datetime | None = None,
        serial_key: str | None = None,
        tx: AsyncConnection | None = None,
    ) -> int:
        """Inserts a job by the kind's name; `payload` is a mapping or JSON text. Returns the id. Errors as `insert`."""
        _, args = self._catalog.parse(kind, payload)
        options = InsertOptions(
            queue=queue, priority=priority, max_attempts=max_attempts, run_at=run_at, serial_key=serial_key
        )
        return await (self.insert(args, options) if tx is None else self.insert_tx(tx, args, options))

    async def insert_many(
        self, items: Iterable[Item] | AsyncIterable[Item], *, progress: Progress | None = None
    ) -> int:
        """Inserts any number of jobs through COPY, in one transaction and bounded memory; returns how many.

        An item is the args, or (args, InsertOptions). `progress` is called with the rows written so far. The first
        item that is refused rolls everything back and raises as `insert` does.
        """
        bulk = _Bulk(progress)
        async with self._connection() as conn, conn.transaction():
            await conn.execute("select pg_current_xact_id()")
            async with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                async for item in _each(items):
                    await copy.write_row(bulk.add(await self._row_known(item)))
            for notification in bulk.wakes(self._database.schema):
                await conn.execute(self._statements["notify"], notification)
        return bulk.rows

    async def _row_known(self, item: Item) -> NewJob:
        """The row; a queue that is not known yet is looked for once more, it may be new."""
        try:
            return self._row(item)
        except UnknownQueue:
            if self._pool is None:
                raise
            async with self._connection() as conn:
                await self._refresh(conn)
            return self._row(item)

    async def _insert_one(self, conn: AsyncConnection, row: NewJob, channel: str | None) -> int:
        try:
            async with conn.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(self._statements["insert_one"], self._one(row, channel))
                found = await cursor.fetchone()
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)
        return int(found[0])  # type: ignore[index]

    async def _refresh(self, conn: AsyncConnection) -> None:
        try:
            self._know(await (await conn.execute(self._statements["queues"])).fetchall())
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        if self._pool is None:
            raise DatabaseUnavailable(
                "the client is not open: use `async with Client(…)`, or call `initialize()` first"
            )
        try:
            async with self._pool.connection() as conn:
                yield conn
                conn.wq_used_at = clock.monotonic()  # type: ignore[attr-defined]
        except (TimeoutError, psycopg.Error, OSError) as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)


class SyncClient(_Front):
    """Inserts jobs from ordinary code and threads; `with SyncClient(settings) as client`. Methods as in `Client`."""

    _pool: ConnectionPool[Connection] | None = None

    def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = connect_sync(self._dsn, self._database, name="wqcore client")
        try:
            self._refresh(conn)
        finally:
            conn.close()
        self._pool = ConnectionPool(
            conninfo(self._dsn, self._database, name="wqcore client"),
            kwargs={"autocommit": True, "prepare_threshold": 0},
            min_size=1,
            max_size=POOL_CONNECTIONS_MAX,
            timeout=self._database.connect_timeout_s,
            check=_check_sync,
            open=False,
        )
        self._pool.open()

    def stop(self) -> None:
        """Closes the client's connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def insert(self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS) -> int:
        """Inserts one job and returns its id. Errors as in `Client.insert`."""
        row = self._row_known((args, options))
        with self._connection() as conn:
            return self._insert_one(conn, row, self._channel_due(row.queue))

    def insert_tx(self, conn: Connection, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS) -> int:
        """Inserts one job on the caller's connection, inside its transaction; returns the id."""
        row = self._row_known((args, options))
        return self._insert_one(conn, row, wake.channel(self._database.schema, row.queue))

    def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any] | bytes | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        run_at: dt.datetime | None = None,
        serial_key: str | None = None,
        tx: Connection | None = None,
    ) -> int:
        """Inserts a job by the kind's name; `payload` is a mapping or JSON text. Returns the id."""
        _, args = self._catalog.parse(kind, payload)
        options = InsertOptions(
            queue=queue, priority=priority, max_attempts=max_attempts, run_at=run_at, serial_key=serial_key
        )
        return self.insert(args, options) if tx is None else self.insert_tx(tx, args, options)

    def insert_many(self, items: Iterable[Item], *, progress: Progress | None = None) -> int:
        """Inserts any number of jobs through COPY, in one transaction and bounded memory; returns how many."""
        bulk = _Bulk(progress)
        with self._connection() as conn, conn.transaction():
            conn.execute("select pg_current_xact_id()")
            with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                for item in items:
                    copy.write_row(bulk.add(self._row_known(item)))
            for notification in bulk.wakes(self._database.schema):
                conn.execute(self._statements["notify"], notification)
        return bulk.rows

    def _row_known(self, item: Item) -> NewJob:
        try:
            return self._row(item)
        except UnknownQueue:
            if self._pool is None:
                raise
            with self._connection() as conn:
                self._refresh(conn)
            return self._row(item)

    def _insert_one(self, conn: Connection, row: NewJob, channel: str | None) -> int:
        try:
            with conn.cursor(row_factory=tuple_row) as cursor:
                found = cursor.execute(self._statements["insert_one"], self._one(row, channel)).fetchone()
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)
        return int(found[0])  # type: ignore[index]

    def _refresh(self, conn: Connection) -> None:
        try:
            self._know(conn.execute(self._statements["queues"]).fetchall())
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._pool is None:
            raise DatabaseUnavailable("the client is not open: use `with SyncClient(…)`, or call `initialize()` first")
        try:
            with self._pool.connection() as conn:
                yield conn
                conn.wq_used_at = clock.monotonic()  # type: ignore[attr-defined]
        except (psycopg.Error, OSError) as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)


async def _check_async(conn: AsyncConnection) -> None:
    if clock.monotonic() - getattr(conn, "wq_used_at", 0.0) > IDLE_CHECK_S:
        await conn.execute("", prepare=False)


def _check_sync(conn: Connection) -> None:
    if clock.monotonic() - getattr(conn, "wq_used_at", 0.0) > IDLE_CHECK_S:
        conn.execute("", prepare=False)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
