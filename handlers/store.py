"""The platform's tables: every change is one transaction, and the jobs that follow from it are part of that.

A change that is one statement (`handlers/sql/<name>.sql`) runs by itself: `await store.row("end_run", run=…)`; it
enqueues what follows by `{wqcore}.enqueue(…)`. Several statements share a transaction::

    async with store.transaction() as tx:
        endpoint = await tx.row("endpoint_for_update", id=args.id)
        await tx.enqueue(RegisterJob(endpoint.id, job), serial_key=f"endpoint-{endpoint.id}")

A crash before the commit leaves nothing; after it, the repetition of the job finds what was done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb, set_json_loads
from psycopg_pool import AsyncConnectionPool

import wqcore
from handlers import platform

Row = Any
"""A row: a named tuple of the statement's columns."""
Connection = psycopg.AsyncConnection[Row]
STATEMENT_TIMEOUT_S = 30.0
SETTINGS = {
    "idle_in_transaction_session_timeout": "30000",
    # each statement rides an index; without this the first plans, made while the tables were empty, read them whole
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}

_encode = msgspec.json.Encoder().encode


def json(value: Any) -> Jsonb:
    """`value` (a struct or anything that JSON can hold) as a parameter of type jsonb."""
    return Jsonb(value, dumps=_encode)


class Transaction:
    """Statements, and the jobs that follow from them, in one transaction."""

    def __init__(self, conn: Connection, statements: wqcore.Statements, client: wqcore.Client) -> None:
        self.conn = conn
        self._statements = statements
        self._client = client

    async def rows(self, statement: str, /, **values: Any) -> list[Row]:
        """Runs `handlers/sql/<statement>.sql`; its rows, or none when it returns none."""
        cursor = await self.conn.execute(self._statements[statement], values)
        return await cursor.fetchall() if cursor.description else []

    async def row(self, statement: str, /, **values: Any) -> Row | None:
        """The first row, or None."""
        cursor = await self.conn.execute(self._statements[statement], values)
        return await cursor.fetchone() if cursor.description else None

    async def enqueue(self, args: msgspec.Struct, **options: Any) -> int:
        """Inserts a job that exists if this transaction commits; the id. Options are those of `Client.insert_tx`."""
        return await self._client.insert_tx(self.conn, args, **options)


class Store:
    """The tables, through a pool of connections of this process."""

    def __init__(self, client: wqcore.Client, pool: AsyncConnectionPool[Connection]) -> None:
        self._client = client
        self._pool = pool
        self._statements = wqcore.Statements(platform.settings().schema, platform.SQL, names={"wqcore": client.schema})

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Transaction]:
        """Statements that commit one by one, on one connection."""
        async with self._pool.connection() as conn:
            yield Transaction(conn, self._statements, self._client)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that commits at the end of the block, or is rolled back when it raises."""
        async with self.connection() as tx, tx.conn.transaction():
            yield tx

    async def rows(self, statement: str, /, **values: Any) -> list[Row]:
        """Runs one statement in a transaction of its own; its rows."""
        async with self.connection() as one:
            return await one.rows(statement, **values)

    async def row(self, statement: str, /, **values: Any) -> Row | None:
        """Runs one statement in a transaction of its own; its first row, or None."""
        async with self.connection() as one:
            return await one.row(statement, **values)


@wqcore.resource
async def open_store() -> AsyncIterator[Store]:
    """The store of this process; `await store.open_store()`."""
    client = await wqcore.current_client()
    pool = client.pool(
        name="wqcore handlers",
        connections_max=platform.settings().connections_max,
        statement_timeout_s=STATEMENT_TIMEOUT_S,
        settings=SETTINGS,
        configure=_configure,
        autocommit=True,
        prepare_threshold=0,
        row_factory=namedtuple_row,
    )
    async with pool:
        yield Store(client, pool)


async def _configure(conn: Connection) -> None:
    set_json_loads(msgspec.json.decode, conn)
