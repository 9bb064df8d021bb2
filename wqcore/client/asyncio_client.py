"""The client for asyncio: an insert that returned is committed, or is in the transaction of the caller."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from wqcore import clock
from wqcore.client.bulk import Bulk, Progress, Skipped
from wqcore.client.front import ANSWER_S, IDLE_CHECK_S, Front, Item, dequeue
from wqcore.control.asyncio_control import AsyncControl
from wqcore.db.bounded import BoundedAsyncConnection
from wqcore.db.connect import AsyncConnection, connect
from wqcore.db.request import Query, Request, Rows, answer, rows_of
from wqcore.errors import DatabaseUnavailable, UnknownQueue
from wqcore.line.insert import (
    NO_OPTIONS,
    Inserted,
    InsertedMany,
    InsertOptions,
    KeyedJob,
    NewJob,
    Options,
    with_keywords,
)

T = TypeVar("T")


class Client(Front, AsyncControl):
    """Inserts and controls jobs from asyncio; `async with Client(settings) as client`, or initialize() and stop()."""

    _pool: AsyncConnectionPool[BoundedAsyncConnection] | None = None

    async def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = await connect(self._dsn, self._database, name="wqcore client")
        try:
            self._know(await self._fetch(Query("queues"), conn))
        finally:
            await conn.close()
        self._pool = AsyncConnectionPool(connection_class=BoundedAsyncConnection, check=self._check, **self._pool_arguments())
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
        bulk = Bulk(progress, skipped)
        async with self._connection() as conn, conn.transaction():
            await conn.execute(self._statements["bulk_begin"])
            each = _each(items)
            more = True
            while more:
                more = False
                async with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                    async for item in each:
                        if not bulk.take(await self._row_known(item)):
                            continue
                        if bulk.is_full():
                            more = True
                            break
                        await copy.write(bulk.lines())
                    await copy.write(bulk.lines())
                await self._do(bulk.insertion(), conn)
            await self._do(bulk.wakes(self._database.schema), conn)
        return bulk.result()

    async def dequeue(self, job_key: str, *, tx: AsyncConnection | None = None) -> bool:
        """Takes a job key back: a waiting job of it is cancelled, a running one goes on without key and retries.

        False when no unfinished job has the key.
        """
        return await self._do(dequeue(job_key), tx)

    # --- sending requests -------------------------------------------------------------------------------------------

    async def _do(self, request: Request[T], conn: AsyncConnection | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""

        async def fetch(query: Query) -> Rows:
            if conn is not None:
                return await self._fetch(query, conn)
            async with self._connection() as pooled:
                return await self._fetch(query, pooled)

        return await answer(request, fetch)

    async def _fetch(self, query: Query, conn: AsyncConnection) -> Rows:
        try:
            return await rows_of(conn, self._statements, query)
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
    async def _connection(self) -> AsyncIterator[BoundedAsyncConnection]:
        if self._pool is None:
            raise DatabaseUnavailable(
                "the client is not open: use `async with Client(…)`, or call `initialize()` first"
            )
        try:
            async with self._pool.connection() as conn:
                yield conn
                conn.used_at = clock.monotonic()
        except (TimeoutError, psycopg.Error, OSError) as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    async def _check(self, conn: BoundedAsyncConnection) -> None:
        """Raises when a pooled connection is dead; the others that are idle are as old then, and are not tried one by one."""
        if clock.monotonic() - conn.used_at <= IDLE_CHECK_S:
            return
        try:
            with conn.within(ANSWER_S):
                await conn.execute("", prepare=False)
        except psycopg.Error as error:
            self._road.refused = error
            if self._pool is not None:
                await self._pool.drain()
            raise


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
