"""The client for asyncio: an insert that returned is committed, or is in the transaction of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from wqcore import clock
from wqcore.client.bulk import Bulk, Progress, Skipped
from wqcore.client.front import (
    ANSWER_S,
    IDLE_CHECK_S,
    OWN_POOL_WAIT_S,
    POOL_CONNECTIONS_MAX,
    Front,
    Item,
    Link,
    dequeue,
    own_pool_arguments,
    pool_arguments,
)
from wqcore.control.asyncio_control import AsyncControl
from wqcore.control.routes import Target
from wqcore.db import faults
from wqcore.db.bounded import BoundedAsyncConnection, Road
from wqcore.db.connect import NO_SETTINGS, AsyncConnection, async_class, connect
from wqcore.db.request import Query, Request, Rows, answer, rows_of
from wqcore.errors import DatabaseUnavailable, UnknownQueue, WrongDatabase
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

    async def initialize(self) -> None:
        """Connects and reads which queues exist. Of several databases one must be there; the others are opened when used.

        Raises DatabaseUnavailable, SchemaError or ConfigError.
        """
        problems = []
        for link in self._routes.targets:
            link.wanted, link.opening = True, asyncio.Lock()
            try:
                await self._open(link)
            except DatabaseUnavailable as error:
                problems.append(error)
        if len(problems) == len(self._routes.targets):
            raise problems[0]

    async def _open(self, link: Link) -> None:
        """Connects to one database."""
        async with link.opening:
            if link.pool is not None:
                return
            conn = await connect(link.dsn, link.database, name="wqcore client")
            try:
                async with conn.transaction():  # a pooler in statement mode refuses it
                    session = await self._fetch(Query("session"), conn, link)
                    identity = await self._fetch(Query("identity"), conn, link) if self._routes.checks else []
                    self._met(link, session, identity)
                    self._know(link, await self._fetch(Query("queues"), conn, link))
            except psycopg.Error as error:
                raise self._problem(error, link) from error
            finally:
                await conn.close()
            pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
                check=lambda conn: _check(conn, pool, link.road), **pool_arguments(link, async_class)
            )
            await pool.open()
            link.pool = pool

    async def stop(self) -> None:
        """Closes the client's connections; whoever still waits for a job is cancelled."""
        await self._stop_waiting()
        for link in self._routes.targets:
            link.wanted = False
            pool, link.pool = link.pool, None
            if pool is not None:
                await pool.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def pool(
        self, *, connections_max: int = POOL_CONNECTIONS_MAX, wait_s: float = OWN_POOL_WAIT_S, name: str = "wqcore pool",
        statement_timeout_s: float | None = None, settings: Mapping[str, str] = NO_SETTINGS,
        configure: Callable[[Any], Awaitable[None]] | None = None, **connection: Any,
    ) -> AsyncConnectionPool[Any]:  # fmt: skip
        """A pool of connections for the program's own tables, in this client's database: `async with client.pool() as pool`.

        Its connections share what the client's have: no call waits for ever (a reply is awaited for `statement_timeout_s`,
        by default that of wqcore's own connections, and 2 s more), dead ones are noticed before use, only a server that can be
        written is taken, and in pooler mode nothing is left in a session. It is not open yet, and not closed with the client;
        of several databases it leads to that of `[database]`, or to the one that `at` was asked for.

        Args:
            connections_max: at most so many connections; one is kept open.
            wait_s: seconds that `pool.connection()` waits for one that is free before it raises psycopg_pool.PoolTimeout.
            name: the `application_name`, which the server's lists of sessions show.
            statement_timeout_s: seconds after which the server ends a statement.
            settings: further settings of the session, as `{"search_path": "shop"}`.
            configure: called with each new connection.
            connection: what `psycopg.AsyncConnection.connect` takes, as `autocommit`, `row_factory`, `prepare_threshold`.

        Raises InvalidRequest.
        """
        arguments = own_pool_arguments(
            self._routes.home, async_class, connections_max=connections_max, wait_s=wait_s, name=name,
            statement_timeout_s=statement_timeout_s, settings=settings, connection=connection,
        )  # fmt: skip
        road = arguments["kwargs"]["road"]
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            check=lambda conn: _check(conn, pool, road), configure=configure, **arguments
        )
        return pool

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
        link = self._link(row)
        return await self._do(self._insertion(link, row), at=link)

    async def insert_tx(
        self,
        conn: AsyncConnection,
        args: msgspec.Struct,
        options: InsertOptions = NO_OPTIONS,
        **keywords: Unpack[Options],
    ) -> Inserted:
        """Inserts one job on the caller's connection, inside its transaction. Otherwise as `insert`."""
        row = await self._row_known((args, with_keywords(options, keywords)))
        link = self._link(row)
        if self._routes.checks:
            await self._must_lead_to(link, conn, row)
        return await self._do(self._insertion(link, row, always_notify=True), conn, at=link)

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
        with Bulk(progress, skipped, self._tracing) as bulk:
            each, link, several = _each(items), self._routes.home, self._routes.several
            if several:
                async for item in each:
                    row = await self._row_known(item)
                    link = self._link(row)
                    bulk.take(row)
                    break
                else:
                    return bulk.result()
            async with self._connection(link) as conn, conn.transaction():
                await conn.execute(link.statements["bulk_begin"])
                more = True
                while more:
                    more = False
                    async with conn.cursor() as cursor, cursor.copy(link.statements["copy"]) as copy:
                        async for item in each:
                            row = await self._row_known(item)
                            if several:
                                self._together(link, row)
                            if not bulk.take(row):
                                continue
                            if bulk.is_full():
                                more = True
                                break
                            await copy.write(bulk.lines())
                        await copy.write(bulk.lines())
                    await self._do(bulk.insertion(), conn, at=link)
                await self._do(bulk.wakes(link.database.schema), conn, at=link)
        return bulk.result()

    async def dequeue(self, job_key: str, *, tx: AsyncConnection | None = None) -> bool:
        """Takes a job key back: a waiting job of it is cancelled, a running one goes on without key and retries.

        False when no unfinished job has the key.
        """
        if tx is None:
            found = [await self._do(dequeue(job_key), at=link) for link in self._routes.targets]
            return any(found)
        link = self._routes.home
        if self._routes.several:
            link = await self._led_to(tx)
        return await self._do(dequeue(job_key), tx, at=link)

    # --- sending requests -------------------------------------------------------------------------------------------

    async def _do(self, request: Request[T], conn: AsyncConnection | None = None, *, at: Target | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""
        link = at if isinstance(at, Link) else self._routes.home

        async def fetch(query: Query) -> Rows:
            if conn is not None:
                return await self._fetch(query, conn, link)
            async with self._connection(link) as pooled:
                return await self._fetch(query, pooled, link)

        return await answer(request, fetch)

    async def _fetch(self, query: Query, conn: AsyncConnection, link: Link) -> Rows:
        try:
            return await rows_of(conn, link.statements, query)
        except psycopg.Error as error:
            problem = self._problem(error, link)
            raise problem from (error if problem is not error else None)

    async def _row_known(self, item: Item) -> NewJob | KeyedJob:
        """The row; a queue that is not known yet is looked for once more, it may be new."""
        try:
            return self._row(item)
        except UnknownQueue:
            if not any(link.wanted for link in self._routes.targets):
                raise
            problems = []
            for link in self._routes.targets:
                try:
                    async with self._connection(link) as conn:
                        self._know(link, await self._fetch(Query("queues"), conn, link))
                except DatabaseUnavailable as error:
                    problems.append(error)
            try:
                return self._row(item)
            except UnknownQueue:
                if problems:  # it may be the one that has the queue
                    raise problems[0] from None
                raise

    async def _identity(self, conn: AsyncConnection, link: Link) -> str | None:
        """Which database the caller's connection leads to, if it has the link's schema; asked once a connection."""
        known: dict[str, str | None] = conn.__dict__.setdefault("wq_identities", {})
        schema = link.database.schema
        if schema not in known:
            there = await self._fetch(Query("identity_there"), conn, link)
            rows = await self._fetch(Query("identity"), conn, link) if there[0][0] else []
            known[schema] = rows[0][0] if rows else None
        return known[schema]

    async def _must_lead_to(self, link: Link, conn: AsyncConnection, row: NewJob | KeyedJob) -> None:
        """Raises WrongDatabase when the caller's connection does not lead to the database of the row's queue."""
        identity = await self._identity(conn, link)
        if link.identity is None:
            await self._open(link)
        if identity is None or identity != link.identity:
            queue = row.queue if isinstance(row, NewJob) else row.job.queue
            raise self._wrong(link, queue, identity, conn.info)

    async def _led_to(self, conn: AsyncConnection) -> Link:
        """The database that the caller's connection leads to. Raises WrongDatabase when it is none of the client's."""
        for link in self._routes.targets:
            identity = await self._identity(conn, link)
            if identity is not None and identity == link.identity:
                return link
        raise WrongDatabase(f"the connection (dbname={conn.info.dbname}) leads to no database of this client")

    @asynccontextmanager
    async def _connection(self, link: Link) -> AsyncIterator[AsyncConnection]:
        if link.pool is None:
            if not link.wanted:
                raise DatabaseUnavailable(
                    "the client is not open: use `async with Client(…)`, or call `initialize()` first"
                )
            await self._open(link)
        try:
            async with link.pool.connection() as conn:
                try:
                    yield conn
                except (psycopg.Error, DatabaseUnavailable) as error:
                    if faults.read_only(error):
                        await link.pool.drain()  # each of them is: new ones look for the server that may be written
                    raise
        except (TimeoutError, psycopg.Error, OSError) as error:
            problem = self._problem(error, link)
            raise problem from (error if problem is not error else None)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _check(conn: BoundedAsyncConnection, pool: AsyncConnectionPool[Any], road: Road) -> None:
    """Raises when a pooled connection is dead; the others that are idle are as old then, and are not tried one by one."""
    if clock.monotonic() - conn.heard_at <= IDLE_CHECK_S:
        return
    try:
        with conn.within(ANSWER_S):
            transactional = not conn.autocommit
            if transactional:
                await conn.set_autocommit(True)  # else a transaction would be open when the caller gets it
            await conn.execute("", prepare=False)
            if transactional:
                await conn.set_autocommit(False)
    except psycopg.Error as error:
        road.refused = error
        await pool.drain()
        raise
