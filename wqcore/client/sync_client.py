"""The client for ordinary code and threads: what `asyncio_client.py` guarantees, by calls that block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec
import psycopg
from psycopg_pool import ConnectionPool

from wqcore import clock
from wqcore.client.bulk import Bulk, Progress, Skipped
from wqcore.client.front import ANSWER_S, IDLE_CHECK_S, Front, Item, dequeue
from wqcore.control.sync_control import SyncControl
from wqcore.db.bounded import BoundedConnection
from wqcore.db.connect import Connection, connect_sync
from wqcore.db.request import Query, Request, Rows, answer_sync, rows_of_sync
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


class SyncClient(Front, SyncControl):
    """Inserts and controls jobs from ordinary code and threads; `with SyncClient(settings) as client`.

    Its methods are those of `Client`, with the same arguments, results and errors.
    """

    _pool: ConnectionPool[BoundedConnection] | None = None

    def initialize(self) -> None:
        """Connects and reads which queues exist. Raises DatabaseUnavailable or SchemaError."""
        conn = connect_sync(self._dsn, self._database, name="wqcore client")
        try:
            self._know(self._fetch(Query("queues"), conn))
        finally:
            conn.close()
        self._pool = ConnectionPool(connection_class=BoundedConnection, check=self._check, **self._pool_arguments())
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
        bulk = Bulk(progress, skipped)
        with self._connection() as conn, conn.transaction():
            conn.execute(self._statements["bulk_begin"])
            each = iter(items)
            more = True
            while more:
                more = False
                with conn.cursor() as cursor, cursor.copy(self._statements["copy"]) as copy:
                    for item in each:
                        if not bulk.take(self._row_known(item)):
                            continue
                        if bulk.is_full():
                            more = True
                            break
                        copy.write(bulk.lines())
                    copy.write(bulk.lines())
                self._do(bulk.insertion(), conn)
            self._do(bulk.wakes(self._database.schema), conn)
        return bulk.result()

    def dequeue(self, job_key: str, *, tx: Connection | None = None) -> bool:
        """As `Client.dequeue`."""
        return self._do(dequeue(job_key), tx)

    # --- sending requests -------------------------------------------------------------------------------------------

    def _do(self, request: Request[T], conn: Connection | None = None) -> T:
        """Sends what `request` asks, on the caller's connection or on pooled ones, and returns its result."""

        def fetch(query: Query) -> Rows:
            if conn is not None:
                return self._fetch(query, conn)
            with self._connection() as pooled:
                return self._fetch(query, pooled)

        return answer_sync(request, fetch)

    def _fetch(self, query: Query, conn: Connection) -> Rows:
        try:
            return rows_of_sync(conn, self._statements, query)
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
    def _connection(self) -> Iterator[BoundedConnection]:
        if self._pool is None:
            raise DatabaseUnavailable("the client is not open: use `with SyncClient(…)`, or call `initialize()` first")
        try:
            with self._pool.connection() as conn:
                yield conn
                conn.used_at = clock.monotonic()
        except (psycopg.Error, OSError) as error:
            problem = self._problem(error)
            raise problem from (error if problem is not error else None)

    def _check(self, conn: BoundedConnection) -> None:
        """Raises when a pooled connection is dead; the others that are idle are as old then, and are not tried one by one."""
        if clock.monotonic() - conn.used_at <= IDLE_CHECK_S:
            return
        try:
            with conn.within(ANSWER_S):
                conn.execute("", prepare=False)
        except psycopg.Error as error:
            self._road.refused = error
            if self._pool is not None:
                self._pool.drain()
            raise
