"""What somebody asks of the database, apart from how it is waited for: one generator serves asyncio and plain threads.

A request yields `Query` (a statement of `db/sql/` and its parameters), is sent the rows, or thrown what sending them raised,
and returns its result; it yields `Pause` when it wants to look again later. It holds no connection: each query may run on
another one, in a transaction of its own, unless the caller passes its own connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from psycopg.rows import tuple_row

from wqcore import clock
from wqcore.db.connect import AsyncConnection, Connection
from wqcore.db.statements import Statements

T = TypeVar("T")

Rows = list[tuple[Any, ...]]


class Query(NamedTuple):
    """A statement by its name, and its parameters."""

    name: str
    params: Mapping[str, Any] = MappingProxyType({})


class Pause(NamedTuple):
    """Wait for so many seconds without a connection; the request is then sent no rows."""

    seconds: float


Request = Generator[Query | Pause, Rows, T]


async def answer(request: Request[T], fetch: Callable[[Query], Awaitable[Rows]]) -> T:
    """The result of `request`, whose queries `fetch` sends, for asyncio."""
    try:
        step = next(request)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                step = request.send([])
                continue
            try:
                rows = await fetch(step)
            except BaseException as error:  # also a cancellation: the request may want to know how it ended
                step = request.throw(error)
            else:
                step = request.send(rows)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # StopIteration does not know what its generator returns


def answer_sync(request: Request[T], fetch: Callable[[Query], Rows]) -> T:
    """The same for code without an event loop."""
    try:
        step = next(request)
        while True:
            if isinstance(step, Pause):
                clock.sleep(step.seconds)
                step = request.send([])
                continue
            try:
                rows = fetch(step)
            except BaseException as error:  # as above
                step = request.throw(error)
            else:
                step = request.send(rows)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # as above


async def rows_of(conn: AsyncConnection, statements: Statements, query: Query) -> Rows:
    """Sends one query; its rows as tuples, whatever the connection makes of rows otherwise.

    Whether there are rows is asked of `rownumber`: `description` makes an object for each column.
    """
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statements[query.name], query.params)
        return await cursor.fetchall() if cursor.rownumber is not None else []


def rows_of_sync(conn: Connection, statements: Statements, query: Query) -> Rows:
    """The same for code without an event loop."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(statements[query.name], query.params)
        return cursor.fetchall() if cursor.rownumber is not None else []
