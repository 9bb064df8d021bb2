"""Retention: history has a partition for each day on which rows expire; past ones are dropped, coming ones made ahead.

Each row carries its own expiry, from the retention of its queue and outcome, and dropping a table costs the same for
ten rows and ten million, and leaves nothing for autovacuum. Days are UTC, by the database's clock. A partition that
could not be made in time is no loss: rows of that day go to `history_other`, which is emptied by age. Several keepers
may do this at once; each step is `if exists` or `if not exists`. A crash between two steps leaves whole steps.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements

LOCK_TIMEOUT_MS = 1000
SUMMARIZE_LOCK_MS = 50


async def retire(conn: AsyncConnection, statements: Statements) -> list[str]:
    """Makes the partitions of the days to come, drops those whose rows have expired; returns what it did, a line each.

    A step that cannot get its lock within a second is left for the next time.
    """
    said = []
    async with conn.transaction():
        await conn.execute(_lock_timeout())
        made = await conn.execute(statements["make_partitions"])
        said += [f"made {name}" for (name,) in await made.fetchall()]
    cursor = await conn.execute(statements["history_partitions"], {"schema": statements.schema})
    for name, today in sorted(await cursor.fetchall()):
        if name < f"history_{today}" and await _drop(conn, statements, name):
            said.append(f"dropped {name}")
    await conn.execute(statements["history_other_expire"])
    await conn.execute(statements["forget_orphans"])
    return said


async def _drop(conn: AsyncConnection, statements: Statements, name: str) -> bool:
    """Drops a partition, after it has written down up to which transaction readers of outcomes may miss rows."""
    table = sql.Identifier(statements.schema, name)
    note = sql.SQL("update {expired} set xid = greatest(xid, (select coalesce(max(xid), 0) from {table}))").format(
        expired=sql.Identifier(statements.schema, "expired"), table=table
    )
    return await _try(conn, note, sql.SQL("drop table if exists {}").format(table))


async def summarize(conn: AsyncConnection, statements: Statements) -> None:
    """Keeps the index that readers of outcomes ride close to the newest rows; left out while vacuum is in the way."""
    try:
        async with conn.transaction():
            await conn.execute(_lock_timeout(SUMMARIZE_LOCK_MS))
            await conn.execute(statements["history_summarize"])
    except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege):
        pass  # by another role than the owner it cannot be done: then autovacuum does it, later


def _lock_timeout(ms: int = LOCK_TIMEOUT_MS) -> sql.Composed:
    return sql.SQL("set local lock_timeout = {}").format(sql.Literal(ms))


async def _try(conn: AsyncConnection, *steps: sql.Composed) -> bool:
    """Runs the statements of one step; False when another keeper or a long reader was in the way."""
    try:
        async with conn.transaction():
            await conn.execute(_lock_timeout())
            for step in steps:
                await conn.execute(step)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
        return False
    return True
