"""The client for ordinary code and threads: what `asyncio_client.py` guarantees, by calls that block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec
import psycopg
from psycopg_pool import ConnectionPool

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
from wqcore.control.routes import Target
from wqcore.control.sync_control import SyncControl
from wqcore.db import faults
from wqcore.db.bounded import BoundedConnection, Road
from wqcore.db.connect import NO_SETTINGS, Connection, connect_sync, sync_class
from wqcore.db.request import Query, Request, Rows, answer_sync, rows_of_sync
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


class SyncClient(Front, SyncControl):
    """Inserts and controls jobs from ordinary code and threads; `with SyncClient(settings) as client`.

    Its methods are those of `Client`, with the same arguments, results and errors.
    """

    def initialize(self) -> None:
        """As `Client.initialize`."""
        problems = []
        for link in self._routes.targets:
            link.wanted, link.opening = True, threading.Lock()
            try:
                self._open(link)
            except DatabaseUnavailable as error:
                problems.append(error)
        if len(problems) == len(self._routes.targets):
            raise problems[0]

    def _open(self, link: Link) -> None:
        """Connects to one database."""
        with link.opening:
            if link.pool is not None:
                return
            conn = connect_sync(link.dsn, link.database, name="wqcore client")
            try:
                with conn.transaction():  # a pooler in statement mode refuses it
                    session = self._fetch(Query("session"), conn, link)
                    identity = self._fetch(Query("identity"), conn, link) if self._routes.checks else []
                    self._met(link, session, identity)
                    self._know(link, self._fetch(Query("queues"), conn, link))
            except psycopg.Error as error:
                raise self._problem(error, link) from error
            finally:
                conn.close()
            pool: ConnectionPool[Any] = ConnectionPool(
                check=lambda conn: _check(conn, pool, link.road), **pool_arguments(link, sync_class)
            )
            pool.open()
            link.pool = pool

    def stop(self) -> None:
        """Closes the client's connections."""
        for link in self._routes.targets:
            link.wanted = False
            pool, link.pool = link.pool, None
            if pool is not None:
                pool.close()

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def pool(
        self, *, connections_max: int = POOL_CONNECTIONS_MAX, wait_s: float = OWN_POOL_WAIT_S, name: str = "wqcore pool",
        statement_timeout_s: float | None = None, settings: Mapping[str, str] = NO_SETTINGS,
        configure: Callable[[Any], None] | None = None, **connection: Any,
    ) -> ConnectionPool[Any]:  # fmt: skip
        """As `Client.pool`: `with client.pool() as pool`."""
        arguments = own_pool_arguments(
            self._routes.home, sync_class, connections_max=connections_max, wait_s=wait_s, name=name,
            statement_timeout_s=statement_timeout_s, settings=settings, connection=connection,
        )  # fmt: skip
        road = arguments["kwargs"]["road"]
        pool: ConnectionPool[Any] = ConnectionPool(
            check=lambda conn: _check(conn, pool, road), configure=configure, **arguments
        )
        return pool

    # --- inserting --------------------------------------------------------------------------------------------------

    def insert(
        self, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS, **keywords: Unpack[Options]
    ) -> Inserted:
        """As `Client.insert`."""
        row = self._row_known((args, with_keywords(options, keywords)))
        link = self._link(row)
        return self._do(self._insertion(link, row), at=link)

    def insert_tx(
        self, conn: Connection, args: msgspec.Struct, options: InsertOptions = NO_OPTIONS, **keywords: Unpack[Options]
    ) -> Inserted:
        """As `Client.insert_tx`."""
        row = self._row_known((args, with_keywords(options, keywords)))
        link = self._link(row)
        if self._routes.checks:
            self._must_lead_to(link, conn, row)
        return self._do(self._insertion(link, row, always_notify=True), conn, at=link)

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
        with Bulk(progress, skipped, self._tracing) as bulk:
            each, link, several = iter(items), self._routes.home, self._routes.several
            if several:
                for item in each:
                    row = self._row_known(item)
                    link = self._link(row)
                    bulk.take(row)
                    break
                else:
                    return bulk.result()
            with self._connection(link) as conn, conn.transaction():
                conn.execute(link.statements["bulk_begin"])
                more = True
                while more:
                    more = False
                    with conn.cursor() as cursor, cursor.copy(link.statements["copy"]) as copy:
                        for item in each:
                            row = self._row_known(item)
                            if several:
                                self._together(link, row)
                            if not bulk.take(row):
                                continue
                            if bulk.is_full():
                                more = True
                                break
                            copy.write(bulk.lines())
                        copy.write(bulk.lines())
                    self._do(bulk.insertion(), conn, at=link)
                self._do(bulk.wakes(link.database.schema), conn, at=link)
        return bulk.result()

    def dequeue(self, job_key: str, *, tx: Connection | None = None) -> bool:
        """As `Client.dequeue`."""
        if tx is None:
            found = [self._do(dequeue(job_key), at=link) for link in self._routes.targets]
            return any(found)
        link = self._routes.home
        if self._routes.several:
            link = self._led_to(tx)
        return self._do(dequeue(job_key), tx, at=link)

    # --- sending requests -------------------------------------------------------------------------------------------

    def _do(self, request: Request[T], conn: Connection | None = None, *, at: Target | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""
        link = at if isinstance(at, Link) else self._routes.home

        def fetch(query: Query) -> Rows:
            if conn is not None:
                return self._fetch(query, conn, link)
            with self._connection(link) as pooled:
                return self._fetch(query, pooled, link)

        return answer_sync(request, fetch)

    def _fetch(self, query: Query, conn: Connection, link: Link) -> Rows:
        try:
            return rows_of_sync(conn, link.statements, query)
        except psycopg.Error as error:
            problem = self._problem(error, link)
            raise problem from (error if problem is not error else None)

    def _row_known(self, item: Item) -> NewJob | KeyedJob:
        """The row; a queue that is not known yet is looked for once more, it may be new."""
        try:
            return self._row(item)
        except UnknownQueue:
            if not any(link.wanted for link in self._routes.targets):
                raise
            problems = []
            for link in self._routes.targets:
                try:
                    with self._connection(link) as conn:
                        self._know(link, self._fetch(Query("queues"), conn, link))
                except DatabaseUnavailable as error:
                    problems.append(error)
            try:
                return self._row(item)
            except UnknownQueue:
                if problems:  # it may be the one that has the queue
                    raise problems[0] from None
                raise

    def _identity(self, conn: Connection, link: Link) -> str | None:
        """Which database the caller's connection leads to, if it has the link's schema; asked once a connection."""
        known: dict[str, str | None] = conn.__dict__.setdefault("wq_identities", {})
        schema = link.database.schema
        if schema not in known:
            there = self._fetch(Query("identity_there"), conn, link)
            rows = self._fetch(Query("identity"), conn, link) if there[0][0] else []
            known[schema] = rows[0][0] if rows else None
        return known[schema]

    def _must_lead_to(self, link: Link, conn: Connection, row: NewJob | KeyedJob) -> None:
        """Raises WrongDatabase when the caller's connection does not lead to the database of the row's queue."""
        identity = self._identity(conn, link)
        if link.identity is None:
            self._open(link)
        if identity is None or identity != link.identity:
            queue = row.queue if isinstance(row, NewJob) else row.job.queue
            raise self._wrong(link, queue, identity, conn.info)

    def _led_to(self, conn: Connection) -> Link:
        """The database that the caller's connection leads to. Raises WrongDatabase when it is none of the client's."""
        for link in self._routes.targets:
            identity = self._identity(conn, link)
            if identity is not None and identity == link.identity:
                return link
        raise WrongDatabase(f"the connection (dbname={conn.info.dbname}) leads to no database of this client")

    @contextmanager
    def _connection(self, link: Link) -> Iterator[Connection]:
        if link.pool is None:
            if not link.wanted:
                raise DatabaseUnavailable(
                    "the client is not open: use `with SyncClient(…)`, or call `initialize()` first"
                )
            self._open(link)
        try:
            with link.pool.connection() as conn:
                try:
                    yield conn
                except (psycopg.Error, DatabaseUnavailable) as error:
                    if faults.read_only(error):
                        link.pool.drain()  # each of them is: new ones look for the server that may be written
                    raise
        except (psycopg.Error, OSError) as error:
            problem = self._problem(error, link)
            raise problem from (error if problem is not error else None)


def _check(conn: BoundedConnection, pool: ConnectionPool[Any], road: Road) -> None:
    """Raises when a pooled connection is dead; the others that are idle are as old then, and are not tried one by one."""
    if clock.monotonic() - conn.heard_at <= IDLE_CHECK_S:
        return
    try:
        with conn.within(ANSWER_S):
            transactional = not conn.autocommit
            if transactional:
                conn.set_autocommit(True)  # else a transaction would be open when the caller gets it
            conn.execute("", prepare=False)
            if transactional:
                conn.set_autocommit(False)
    except psycopg.Error as error:
        road.refused = error
        pool.drain()
        raise
