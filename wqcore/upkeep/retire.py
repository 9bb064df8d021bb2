"""Retention: history has a partition per outcome and day; old ones are dropped, coming ones are made in advance.

Dropping a table costs the same for ten rows and ten million, and leaves nothing for autovacuum. Days are UTC, by the
database's clock. A partition that could not be made in time is no loss: rows of that day go to the outcome's `_other`
partition, which is emptied by age. Several keepers may do this at once; each step is `if exists` or `if not exists`.
"""

from __future__ import annotations

import datetime as dt

import psycopg
from psycopg import sql

from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements
from wqcore.settings import Retention

DAYS_AHEAD = 2
LOCK_TIMEOUT_MS = 1000


async def retire(conn: AsyncConnection, statements: Statements, retention: Retention) -> list[str]:
    """Makes the partitions of today and the next days, drops expired ones; returns what it did, a line each.

    A step that cannot get its lock within a second is left for the next time.
    """
    row = await (await conn.execute("select (now() at time zone 'UTC')::date")).fetchone()
    today: dt.date = row[0] if row else dt.date.min
    cursor = await conn.execute(statements["history_partitions"], {"schema": statements.schema})
    present = {name for (name,) in await cursor.fetchall()}
    hours = {
        "completed": retention.completed_hours,
        "cancelled": retention.cancelled_hours,
        "discarded": retention.discarded_hours,
    }
    said = []
    for outcome, kept_hours in hours.items():
        for ahead in range(DAYS_AHEAD + 1):
            day = today + dt.timedelta(days=ahead)
            name = f"history_{outcome}_{day:%Y%m%d}"
            if name not in present and await _try(conn, _create(statements.schema, outcome, name, day)):
                said.append(f"made {name}")
        oldest = today - dt.timedelta(days=max(1, -(-kept_hours // 24)))
        for name in sorted(present):
            if name.startswith(f"history_{outcome}_") and name[-8:] < f"{oldest:%Y%m%d}":
                drop = sql.SQL("drop table if exists {}").format(sql.Identifier(statements.schema, name))
                if await _try(conn, drop):
                    said.append(f"dropped {name}")
        await conn.execute(
            sql.SQL("delete from {} where finished_at < now() - %s * interval '1 hour'").format(
                sql.Identifier(statements.schema, f"history_{outcome}_other")
            ),
            (max(kept_hours, 1),),
        )
    return said


def _create(schema: str, outcome: str, name: str, day: dt.date) -> sql.Composed:
    return sql.SQL("create table if not exists {} partition of {} for values from ({}) to ({})").format(
        sql.Identifier(schema, name),
        sql.Identifier(schema, f"history_{outcome}"),
        sql.Literal(f"{day}T00:00:00Z"),
        sql.Literal(f"{day + dt.timedelta(days=1)}T00:00:00Z"),
    )


async def _try(conn: AsyncConnection, statement: sql.Composed) -> bool:
    """Runs one step; False when another keeper or a long reader was in the way."""
    try:
        async with conn.transaction():
            await conn.execute(sql.SQL("set local lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
            await conn.execute(statement)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
        return False
    except psycopg.errors.CheckViolation:  # the `_other` partition holds rows of that day; they stay there
        return False
    return True
