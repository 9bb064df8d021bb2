"""The heartbeat of a master: one row, about once a second, only while the master ticks.

Others conclude from a stale beat that this host is dead and rescue its jobs; so it must stop when the master stops, and
must not stop before the last worker has left. The row carries what the workers run, for the operator and for a rescue.
"""

from __future__ import annotations

from typing import Any

import orjson

from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements

RUNNING_SHOWN_MAX = 500
"""Running jobs named in the report of one shard; a host that dies with more charges the others a death only."""


async def beat(
    conn: AsyncConnection,
    statements: Statements,
    *,
    process: str,
    host: str,
    pid: int,
    group: str | None,
    version: str,
    report: dict[str, Any],
) -> bool:
    """Writes the beat; whether somebody has asked the master to drain."""
    cursor = await conn.execute(
        statements["beat"],
        {
            "process": process,
            "host": host,
            "pid": pid,
            "group": group,
            "version": version,
            "report": orjson.dumps(report).decode(),
        },
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def leave(conn: AsyncConnection, statements: Statements, *, process: str | None, dead_after_s: float) -> None:
    """Removes our row (None: no row of ours) and those of dead masters that have no shard left."""
    await conn.execute(statements["forget_processes"], {"leaving": process, "dead_after_s": dead_after_s})
