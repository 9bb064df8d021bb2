"""Connections through a pooler in transaction mode, which keep nothing in the session: no setting, statement, lock or LISTEN.

Behind such a pooler (PgBouncer with `pool_mode = transaction`) each transaction may run on another session of the server, and
what one leaves there another program finds. So settings go with each transaction, and end with it: a statement by itself is
sent in one pipeline with the settings before it, which is one transaction and one round trip; a transaction begins with them.
Nothing is prepared. A crash leaves nothing in the server's session but an open transaction, which the pooler rolls back.

In statement mode a transaction is refused, which the first one at a start shows (`faults.pooler_problem`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.pq import PipelineStatus, TransactionStatus

from wqcore.db.bounded import BoundedAsyncConnection, BoundedConnection

Statement = LiteralString | bytes | sql.SQL | sql.Composed


class AsyncCursor(psycopg.AsyncCursor[Any]):
    """A cursor of `AsyncPooled`."""

    async def execute(  # type: ignore[override]  # templates are not sent here
        self, query: Statement, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """As psycopg's, with the settings before a statement that is a transaction by itself; never prepares."""
        conn = self.connection
        if not (isinstance(conn, AsyncPooled) and _alone(conn.pgconn)):
            return await super().execute(query, params, prepare=False, binary=binary)
        async with conn.pipeline():
            await psycopg.AsyncCursor(conn).execute(conn.local, prepare=False)
            await super().execute(query, params, prepare=False, binary=binary)
        return self


class AsyncPooled(BoundedAsyncConnection):
    """A connection whose `local` settings go with each of its transactions."""

    local: ClassVar[sql.Composed]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = AsyncCursor

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        outermost = _alone(self.pgconn)
        async with super().transaction(savepoint_name, force_rollback) as transaction:
            if outermost:
                await self.execute(self.local)
            yield transaction


class Cursor(psycopg.Cursor[Any]):
    """A cursor of `Pooled`."""

    def execute(  # type: ignore[override]  # as above
        self, query: Statement, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """As `AsyncCursor.execute`."""
        conn = self.connection
        if not (isinstance(conn, Pooled) and _alone(conn.pgconn)):
            return super().execute(query, params, prepare=False, binary=binary)
        with conn.pipeline():
            psycopg.Cursor(conn).execute(conn.local, prepare=False)
            super().execute(query, params, prepare=False, binary=binary)
        return self


class Pooled(BoundedConnection):
    """The same for code without an event loop."""

    local: ClassVar[sql.Composed]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = Cursor

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        outermost = _alone(self.pgconn)
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if outermost:
                self.execute(self.local)
            yield transaction


def async_class(settings: Mapping[str, str]) -> type[AsyncPooled]:
    """A class of connections with these settings."""
    return type("AsyncPooled", (AsyncPooled,), {"local": _local(settings)})


def sync_class(settings: Mapping[str, str]) -> type[Pooled]:
    """The same for code without an event loop."""
    return type("Pooled", (Pooled,), {"local": _local(settings)})


def _local(settings: Mapping[str, str]) -> sql.Composed:
    """One statement that sets all of them until the end of its transaction."""
    calls = [sql.SQL("set_config({}, {}, true)").format(name, value) for name, value in settings.items()]
    return sql.SQL("select ") + sql.SQL(", ").join(calls)


def _alone(pgconn: psycopg.pq.abc.PGconn) -> bool:
    """True when the next statement begins a transaction."""
    return pgconn.transaction_status == TransactionStatus.IDLE and pgconn.pipeline_status == PipelineStatus.OFF
