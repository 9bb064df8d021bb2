"""Sends a request on the caller's own connection, whichever kind it is: at once, or as something to await.

The request sees what the caller's transaction has written and not yet committed. Rows come as tuples whatever the
connection's row factory is. A failure leaves the transaction as any failed statement does.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, overload

import psycopg
from psycopg.rows import tuple_row

from wqcore.db.connect import AsyncConnection, Connection
from wqcore.db.request import Query, Request, Rows
from wqcore.db.statements import Statements

T = TypeVar("T")


@overload
def ask(conn: AsyncConnection, request: Request[T], schema: str) -> Awaitable[T]: ...
@overload
def ask(conn: Connection, request: Request[T], schema: str) -> T: ...
def ask(conn: AsyncConnection | Connection, request: Request[T], schema: str) -> Any:
    """The result of `request`; an awaitable of it for an asyncio connection."""
    statements = Statements(schema)
    if isinstance(conn, psycopg.AsyncConnection):
        return _async(conn, request, statements)
    return _sync(conn, request, statements)


async def _async(conn: AsyncConnection, request: Request[T], statements: Statements) -> T:
    rows: Rows | None = None
    try:
        while True:
            step = next(request) if rows is None else request.send(rows)
            rows = []
            if isinstance(step, Query):
                async with conn.cursor(row_factory=tuple_row) as cursor:
                    await cursor.execute(statements[step.name], step.params)
                    rows = await cursor.fetchall() if cursor.description is not None else []
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _sync(conn: Connection, request: Request[T], statements: Statements) -> T:
    rows: Rows | None = None
    try:
        while True:
            step = next(request) if rows is None else request.send(rows)
            rows = []
            if isinstance(step, Query):
                with conn.cursor(row_factory=tuple_row) as cursor:
                    cursor.execute(statements[step.name], step.params)
                    rows = cursor.fetchall() if cursor.description is not None else []
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
