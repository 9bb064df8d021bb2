"""Retention: history has a partition for each day on which rows expire; past ones are dropped, coming ones made ahead.

Each row carries its own expiry, from the retention of its queue and outcome, and dropping a table costs the same for
ten rows and ten million, and leaves nothing for autovacuum. Days are UTC, by the database's clock. A partition that
could not be made in time is no loss: rows of that day go to `history_other`, which is emptied by age. Several keepers
may do this at once; each step is `if exists` or `if not exists`. A crash between two steps leaves whole steps.

Jobs that no shard can ever read, because they were written by hand into a queue or slot that does not exist, end here too.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements

LOCK_TIMEOUT_MS = 1000
SUMMARIZE_LOCK_MS = 50
STRAYS_MAX = 1000


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
    """Drops a partition; False when another keeper or a long reader was in the way."""
    try:
        async with conn.transaction():
            await conn.execute(_lock_timeout())
            row = await (await conn.execute(statements["drop_partition"], {"name": name})).fetchone()
            return row is not None and bool(row[0])
    except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
        return False


async def discard_strays(conn: AsyncConnection, statements: Statements, *, grace_s: float) -> int:
    """Ends jobs in queues or slots that do not exist, once they are `grace_s` old; returns how many."""
    row = await (await conn.execute(statements["discard_strays"], {"grace_s": grace_s, "n": STRAYS_MAX})).fetchone()
    return int(row[0]) if row is not None else 0


async def summarize(conn: AsyncConnection, statements: Statements) -> None:
    """Keeps the index that readers of outcomes ride close to the newest rows; left out while vacuum is in the way."""
    try:
        async with conn.transaction():
            await conn.execute(_lock_timeout(SUMMARIZE_LOCK_MS))
            await conn.execute(statements["history_summarize"])
    except psycopg.errors.LockNotAvailable:
        pass


def _lock_timeout(ms: int = LOCK_TIMEOUT_MS) -> sql.Composed:
    return sql.SQL("set local lock_timeout = {}").format(sql.Literal(ms))
