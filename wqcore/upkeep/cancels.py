"""Carries out the cancellations that were meant for a worker which does not hold the job any more.

Somebody asks for a cancellation while a worker holds the job; the worker gives it back (a drain, a pause, a lost slot) or
dies before it looks. Then the request stays, and the job would start again first. Several keepers may do this at once:
rows that one has locked, the others leave. A crash leaves whole statements; the next round does the rest.
"""

from __future__ import annotations

from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements


async def cancel_unheld(conn: AsyncConnection, statements: Statements) -> int:
    """Cancels jobs that wait although their cancellation was asked for; returns how many."""
    row = await (await conn.execute(statements["cancel_unheld"])).fetchone()
    return int(row[0]) if row is not None else 0
