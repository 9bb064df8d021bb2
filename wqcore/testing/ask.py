"""Sends a request on the caller's own connection, whichever kind it is: at once, or as something to await.

The request sees what the caller's transaction has written and not yet committed. Rows come as tuples whatever the
connection's row factory is. A failure leaves the transaction as any failed statement does.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, overload

import psycopg

from wqcore.db.connect import AsyncConnection, Connection
from wqcore.db.request import Request, answer, answer_sync, rows_of, rows_of_sync
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
        return answer(request, lambda query: rows_of(conn, statements, query))
    return answer_sync(request, lambda query: rows_of_sync(conn, statements, query))
