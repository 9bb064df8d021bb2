"""The client: inserting jobs, and asking of jobs that exist; what returned is durable.

`Client` is for asyncio, `SyncClient` for everything else; both have the same methods, and both send the same requests
(`db/request.py`). `insert_tx` writes on the caller's own connection, so that the job exists exactly if the caller's
transaction commits. What raised an InsertError was not written.

When the connection is lost during an insert, nobody knows whether it was committed: DatabaseUnavailable says so, and
repeating may insert the job twice, unless it has a job key or is unique.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec
import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from wqcore import clock
from wqcore.catalog import Catalog
from wqcore.catalog import catalog as default_catalog
from wqcore.control import queues, schedules
from wqcore.control.front import AsyncControl, SyncControl
from wqcore.control.schedules import ScheduleInfo
from wqcore.db import faults, wake
from wqcore.db.connect import AsyncConnection, Connection, connect, connect_sync, conninfo, describe
from wqcore.db.request import Pause, Query, Request, Rows
from wqcore.db.statements import Statements
from wqcore.errors import ConfigError, DatabaseUnavailable, InvalidSchedule, UnknownQueue
from wqcore.line.insert import (
    NO_OPTIONS,
    Inserted,
    InsertedMany,
    Inserter,
    InsertOptions,
    KeyedJob,
    NewJob,
    Options,
    columns_of,
    seen_by,
    with_keywords,
)
from wqcore.recurring import ScheduleOptions, schedule_of
from wqcore.settings import Database, Insert, Schedule, Settings

T = TypeVar("T")

POOL_CONNECTIONS_MAX = 8
IDLE_CHECK_S = 1.0
"""A pooled connection that was idle for longer is tried before use: its server may have restarted."""
PROGRESS_ROWS = 5_000
KEYED_ROWS = 500
"""Jobs with a key of a bulk insert that go into one statement, between two COPYs."""

Args = msgspec.Struct | Mapping[str, Any]
Item = msgspec.Struct | tuple[msgspec.Struct, InsertOptions]
Progress = Callable[[int], None]
Skipped = Callable[[int, int], None]


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

    def _row(self, item: Item) -> NewJob | KeyedJob:
        args, options = item if isinstance(item, tuple) else (item, NO_OPTIONS)
        if self._inserter is None:
            raise UnknownQueue("the client is not open: use `async with Client(…)`, or call `initialize()` first")
        kind = self._catalog.kind_of(args)
        if self._catalog.insert_middleware:
            options = seen_by(self._catalog.insert_middleware, kind, args, options)
        return self._inserter.row(kind, args, options)

    def checked(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS
    ) -> tuple[msgspec.Struct, InsertOptions]:
        """The item itself when it could be inserted; raises as `insert` does. Writes nothing."""
        self._row((args, options))
        return args, options

    def _schedule(self, name: str, args: Args, kind: str | None, **given: Any) -> Schedule:
        """The schedule that a call describes; its args are checked where this program knows their type."""
        if isinstance(args, msgspec.Struct):
            known = self._catalog.kind_of(args)
        elif kind is None:
            raise InvalidSchedule(f"schedules.{name}: name its kind, or give args of a declared type")
        elif self._catalog.get(kind) is not None:
            known, args = self._catalog.parse(kind, dict(args))
        else:
            return schedule_of(name, kind, args, **given)
        return schedule_of(name, known.name, msgspec.json.decode(known.encode(args)), **given)

    def _channel_due(self, queue: str) -> str | None:
        """The queue's channel, or None when this client has notified it within `insert.notify_interval_s`.

        A shard that was woken looks again after 10 ms, so a notification left out costs no more than that.
        """
        now = clock.monotonic()
        if now - self._notified.get(queue, -1.0) < self._limits.notify_interval_s:
            return None
        self._notified[queue] = now
        return wake.channel(self._database.schema, queue)

    def _insertion(self, row: NewJob | KeyedJob, *, always_notify: bool = False) -> Request[Inserted]:
        """Inserts one job."""
        queue = row.queue if isinstance(row, NewJob) else row.job.queue
        channel = wake.channel(self._database.schema, queue) if always_notify else self._channel_due(queue)
        if isinstance(row, KeyedJob):
            [(_, job_id, what)] = yield Query("insert_keyed", columns_of([row], [channel]))
            return Inserted(job_id, what)
        payload = "due" if row.run_at is not None else f"{row.slot}:{row.priority}"
        rows = yield Query("insert_one", row._asdict() | {"channel": channel, "payload": payload})
        return Inserted(rows[0][0])

    def _problem(self, error: Exception) -> Exception:
        """The error to raise for a failure of the database."""
        told = faults.schema_problem(error, self._database.schema) or faults.refusal(error)
        if told is not None:
            return told
        if isinstance(error, PoolTimeout) or faults.is_transient(error):
            found = faults.unavailable(error, describe(self._dsn))
            if faults.lost_connection(error) and not isinstance(error, PoolTimeout):
                return DatabaseUnavailable(f"{found}; the connection was lost, so it may have happened or not")
            return found
        return error


class _Bulk:
    """What a bulk insert has written so far, what waits for its statement, and which notifications it owes."""

    def __init__(self, progress: Progress | None, skipped: Skipped | None) -> None:
        self.added = 0
        self.counts = {"inserted": 0, "replaced": 0, "skipped": 0}
        self.keyed: list[tuple[int, KeyedJob]] = []
        self._progress = progress
        self._skipped = skipped
        self._position = 0
        self._wakes: dict[str, set[tuple[int, int]]] = {}
        self._due: set[str] = set()

    def take(self, row: NewJob | KeyedJob) -> NewJob | None:
        """The row to copy, or None: it has a key and was put aside."""
        self._position += 1
        if self._progress is not None and self._position % PROGRESS_ROWS == 0:
            self._progress(self._position)
        if isinstance(row, KeyedJob):
            self.keyed.append((self._position - 1, row))
            return None
        self.added += 1
        self._owe(row)
        return row

    def is_full(self) -> bool:
        """True when the jobs that were put aside should be written."""
        return len(self.keyed) >= KEYED_ROWS

    def insertion(self) -> Request[None]:
        """Writes the jobs that were put aside."""
        batch, self.keyed = sorted(self.keyed, key=lambda item: item[1].order), []
        if not batch:
            return
        jobs = [job for _, job in batch]
        for at, job_id, what in (yield Query("insert_keyed", columns_of(jobs, [None] * len(jobs)))):
            position, item = batch[at - 1]
            self.counts[what] += 1
            if what == "replaced":
                self._due.add(item.job.queue)
            elif what == "inserted":
                self._owe(item.job)
            elif self._skipped is not None:
                self._skipped(position, job_id)

    def result(self) -> InsertedMany:
        counts = self.counts
        return InsertedMany(self.added + counts["inserted"], skipped=counts["skipped"], replaced=counts["replaced"])

    def wakes(self, schema: str) -> Request[None]:
        """Sends the notifications."""
        for queue in self._wakes.keys() | self._due:
            text = wake.payload(self._wakes.get(queue, set()), due=queue in self._due)
            yield Query("notify", {"channel": wake.channel(schema, queue), "payload": text})

    def _owe(self, row: NewJob) -> None:
        if row.run_at is None:
            pairs = self._wakes.get(row.queue)
            if pairs is None:
                pairs = self._wakes[row.queue] = set()
            pairs.add((row.slot, row.priority))
        else:
            self._due.add(row.queue)


class Client(_Front, AsyncControl):
    """Inserts and controls jobs from asyncio; `async with Client(settings) as client`, or initialize() and stop()."""

    _pool: AsyncConnectionPool[AsyncConnection] | None = None

    async def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = await connect(self._dsn, self._database, name="wqcore client")
        try:
            self._know(await self._fetch(Query("queues"), conn))
        finally:
            await conn.close()
        self._pool = AsyncConnectionPool(
            conninfo(self._dsn, self._database, name="wqcore client", by_index=True),
            kwargs={"autocommit": True, "prepare_threshold": 0},
            min_size=1,
            max_size=POOL_CONNECTIONS_MAX,
            timeout=self._database.connect_timeout_s,
            check=_check_async,
            open=False,
        )
        await self._pool.open()

    async def stop(self) -> None:
        """Closes the client's connections; whoever still waits for a job is cancelled."""
        await self._stop_waiting()
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

    # --- inserting --------------------------------------------------------------------------------------------------

    async def insert(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS, **keywords: Unpack[Options]
    ) -> Inserted:
        """Inserts one job and returns its id, which also says whether it was skipped or replaced another.

        Options are an `InsertOptions`, or its fields as keywords, which win.

        Raises UnknownKind, PlannedKind, UnknownQueue, InvalidArgs, ArgsTooLarge, InsertError (refused, nothing
        written) or DatabaseUnavailable.
        """
        row = await self._row_known((args, with_keywords(options, keywords)))
        return await self._do(self._insertion(row))

    async def insert_tx(
        self,
        conn: AsyncConnection,
        args: msgspec.Struct,
        options: InsertOptions = NO_OPTIONS,
        **keywords: Unpack[Options],
    ) -> Inserted:
        """Inserts one job on the caller's connection, inside its transaction. Otherwise as `insert`."""
        row = await self._row_known((args, with_keywords(options, keywords)))
        return await self._do(self._insertion(row, always_notify=True), conn)

    async def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any] | bytes | str,
        *,
        tx: AsyncConnection | None = None,
        **keywords: Unpack[Options],
    ) -> Inserted:
        """Inserts a job by the kind's name; `payload` is a mapping or JSON text, `tx` a connection of the caller's."""
        _, args = self._catalog.parse(kind, payload)
        if tx is None:
            return await self.insert(args, **keywords)
        return await self.insert_tx(tx, args, **keywords)

    async def insert_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        progress: Progress | None = None,
        skipped: Skipped | None = None,
    ) -> InsertedMany:
        """Inserts any number of jobs, in one transaction and bounded memory; returns how many were added.

        An item is the args, or (args, InsertOptions). Jobs go through COPY; those with a job key, or that are unique,
        through a statement for each 500. A job that exists already is counted, not an error. `progress` is called with
        the items read so far, `skipped` with the position of an item and the id of the job that exists already. The
        first item that is refused rolls everything back and raises as `insert` does.
        """
        bulk = _Bulk(progress, skipped)
        async with self._connection() as conn, conn.transaction():
            await conn.execute("select pg_current_xact_id()")
            each = _each(items)
            more = True
            while more:
                more = False
                async with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                    async for item in each:
                        row = bulk.take(await self._row_known(item))
                        if row is not None:
                            await copy.write_row(row)
                        elif bulk.is_full():
                            more = True
                            break
                await self._do(bulk.insertion(), conn)
            await self._do(bulk.wakes(self._database.schema), conn)
        return bulk.result()

    async def dequeue(self, job_key: str, *, tx: AsyncConnection | None = None) -> bool:
        """Takes a job key back: a waiting job of it is cancelled, a running one goes on without key and retries.

        False when no unfinished job has the key.
        """
        return await self._do(dequeue(job_key), tx)

    # --- queues -----------------------------------------------------------------------------------------------------

    async def pause(self, queue: str | None = None) -> int:
        """Pauses a queue (None: all): nothing of it is started; what runs goes on. Returns how many were paused."""
        return await self._do(queues.pause(queue))

    async def resume(self, queue: str | None = None) -> int:
        """Resumes a queue (None: all); returns how many were resumed. Raises UnknownQueue."""
        return await self._do(queues.resume(queue))

    async def set_limits(self, queue: str, **changes: Any) -> dict[str, Any]:
        """Changes `max_per_key`, `rate`, `rate_per_key` or `max_workers_total` of a queue while it runs.

        None takes a change back. Returns what differs from the configuration then. Raises InvalidLimits, UnknownQueue.
        """
        return await self._do(queues.set_limits(queue, changes))

    # --- schedules --------------------------------------------------------------------------------------------------

    async def schedules(self, *, next_ticks: int = schedules.NEXT_TICKS) -> list[ScheduleInfo]:
        """All recurring jobs by name, each with so many coming ticks (default 3)."""
        return await self._do(schedules.schedules(next_ticks))

    async def set_schedule(
        self,
        name: str,
        args: Args,
        *,
        kind: str | None = None,
        cron: str | None = None,
        every_s: float | None = None,
        timezone: str = "UTC",
        backfill_s: float = 0.0,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """Adds or changes a recurring job, with the arguments of `wqcore.recurring`; every master fires it.

        `args` is of a declared type, or a mapping together with the `kind`'s name. A new time counts from now. One that
        code or configuration declare is taken over, until it is deleted here.

        Raises InvalidSchedule, UnknownKind, PlannedKind, InvalidArgs, UnknownQueue or DatabaseUnavailable.
        """
        schedule = self._schedule(
            name, args, kind, cron=cron, every_s=every_s, timezone=timezone, backfill_s=backfill_s, **options
        )
        await self._do(schedules.set_schedule(name, schedule))

    async def pause_schedule(self, name: str) -> bool:
        """Pauses a recurring job; False when it was paused already. Raises UnknownSchedule."""
        return await self._do(schedules.pause_schedule(name))

    async def resume_schedule(self, name: str) -> bool:
        """Lets a recurring job go on with its next tick; ticks of the pause are not made up for.

        False when it was not paused. Raises UnknownSchedule.
        """
        return await self._do(schedules.resume_schedule(name))

    async def trigger_schedule(self, name: str) -> int:
        """Inserts the job of a recurring job now, whatever its ticks, also while it is paused; returns its id.

        Raises UnknownSchedule, or InsertError when its kind or args are refused.
        """
        return await self._do(schedules.trigger_schedule(name))

    async def delete_schedule(self, name: str) -> None:
        """Removes a recurring job; jobs that it has made stay. Raises UnknownSchedule.

        One that code or configuration declare comes back when such a master starts: pause it instead.
        """
        await self._do(schedules.delete_schedule(name))

    # --- sending requests -------------------------------------------------------------------------------------------

    async def _do(self, request: Request[T], conn: AsyncConnection | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""
        try:
            step = next(request)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    rows: Rows = []
                elif conn is not None:
                    rows = await self._fetch(step, conn)
                else:
                    async with self._connection() as pooled:
                        rows = await self._fetch(step, pooled)
                step = request.send(rows)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _fetch(self, query: Query, conn: AsyncConnection) -> Rows:
        try:
            async with conn.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(self._statements[query.name], query.params)
                return await cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    async def _row_known(self, item: Item) -> NewJob | KeyedJob:
        """The row; a queue that is not known yet is looked for once more, it may be new."""
        try:
            return self._row(item)
        except UnknownQueue:
            if self._pool is None:
                raise
            async with self._connection() as conn:
                self._know(await self._fetch(Query("queues"), conn))
            return self._row(item)

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


class SyncClient(_Front, SyncControl):
    """Inserts and controls jobs from ordinary code and threads; `with SyncClient(settings) as client`.

    Its methods are those of `Client`, with the same arguments, results and errors.
    """

    _pool: ConnectionPool[Connection] | None = None

    def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = connect_sync(self._dsn, self._database, name="wqcore client")
        try:
            self._know(self._fetch(Query("queues"), conn))
        finally:
            conn.close()
        self._pool = ConnectionPool(
            conninfo(self._dsn, self._database, name="wqcore client", by_index=True),
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

    # --- inserting --------------------------------------------------------------------------------------------------

    def insert(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS, **keywords: Unpack[Options]
    ) -> Inserted:
        """As `Client.insert`."""
        row = self._row_known((args, with_keywords(options, keywords)))
        return self._do(self._insertion(row))

    def insert_tx(
        self, conn: Connection, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS, **keywords: Unpack[Options]
    ) -> Inserted:
        """As `Client.insert_tx`."""
        row = self._row_known((args, with_keywords(options, keywords)))
        return self._do(self._insertion(row, always_notify=True), conn)

    def enqueue(
        self,
        kind: str,
        payload: Mapping[str, Any] | bytes | str,
        *,
        tx: Connection | None = None,
        **keywords: Unpack[Options],
    ) -> Inserted:
        """As `Client.enqueue`."""
        _, args = self._catalog.parse(kind, payload)
        return self.insert(args, **keywords) if tx is None else self.insert_tx(tx, args, **keywords)

    def insert_many(
        self, items: Iterable[Item], *, progress: Progress | None = None, skipped: Skipped | None = None
    ) -> InsertedMany:
        """As `Client.insert_many`."""
        bulk = _Bulk(progress, skipped)
        with self._connection() as conn, conn.transaction():
            conn.execute("select pg_current_xact_id()")
            each = iter(items)
            more = True
            while more:
                more = False
                with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                    for item in each:
                        row = bulk.take(self._row_known(item))
                        if row is not None:
                            copy.write_row(row)
                        elif bulk.is_full():
                            more = True
                            break
                self._do(bulk.insertion(), conn)
            self._do(bulk.wakes(self._database.schema), conn)
        return bulk.result()

    def dequeue(self, job_key: str, *, tx: Connection | None = None) -> bool:
        """As `Client.dequeue`."""
        return self._do(dequeue(job_key), tx)

    # --- queues -----------------------------------------------------------------------------------------------------

    def pause(self, queue: str | None = None) -> int:
        """As `Client.pause`."""
        return self._do(queues.pause(queue))

    def resume(self, queue: str | None = None) -> int:
        """As `Client.resume`."""
        return self._do(queues.resume(queue))

    def set_limits(self, queue: str, **changes: Any) -> dict[str, Any]:
        """As `Client.set_limits`."""
        return self._do(queues.set_limits(queue, changes))

    # --- schedules --------------------------------------------------------------------------------------------------

    def schedules(self, *, next_ticks: int = schedules.NEXT_TICKS) -> list[ScheduleInfo]:
        """As `Client.schedules`."""
        return self._do(schedules.schedules(next_ticks))

    def set_schedule(
        self,
        name: str,
        args: Args,
        *,
        kind: str | None = None,
        cron: str | None = None,
        every_s: float | None = None,
        timezone: str = "UTC",
        backfill_s: float = 0.0,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """As `Client.set_schedule`."""
        schedule = self._schedule(
            name, args, kind, cron=cron, every_s=every_s, timezone=timezone, backfill_s=backfill_s, **options
        )
        self._do(schedules.set_schedule(name, schedule))

    def pause_schedule(self, name: str) -> bool:
        """As `Client.pause_schedule`."""
        return self._do(schedules.pause_schedule(name))

    def resume_schedule(self, name: str) -> bool:
        """As `Client.resume_schedule`."""
        return self._do(schedules.resume_schedule(name))

    def trigger_schedule(self, name: str) -> int:
        """As `Client.trigger_schedule`."""
        return self._do(schedules.trigger_schedule(name))

    def delete_schedule(self, name: str) -> None:
        """As `Client.delete_schedule`."""
        self._do(schedules.delete_schedule(name))

    # --- sending requests -------------------------------------------------------------------------------------------

    def _do(self, request: Request[T], conn: Connection | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""
        try:
            step = next(request)
            while True:
                if isinstance(step, Pause):
                    clock.sleep(step.seconds)
                    rows: Rows = []
                elif conn is not None:
                    rows = self._fetch(step, conn)
                else:
                    with self._connection() as pooled:
                        rows = self._fetch(step, pooled)
                step = request.send(rows)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _fetch(self, query: Query, conn: Connection) -> Rows:
        try:
            with conn.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(self._statements[query.name], query.params)
                return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    def _row_known(self, item: Item) -> NewJob | KeyedJob:
        try:
            return self._row(item)
        except UnknownQueue:
            if self._pool is None:
                raise
            with self._connection() as conn:
                self._know(self._fetch(Query("queues"), conn))
            return self._row(item)

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


def dequeue(job_key: str) -> Request[bool]:
    """Takes a job key back; True when an unfinished job had it."""
    return bool((yield Query("dequeue", {"job_key": job_key})))
