"""Gives the jobs of a dead shard back: the fence first, then, with a fresh snapshot, the jobs.

One transaction of two statements. The first deletes the shard's row and thereby waits for whatever the shard had in
flight; nothing it sends later can write. The second reads the newest claim and returns the jobs. A crash in between
rolls both back, and the rescue is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from wqcore.db import wake
from wqcore.db.connect import AsyncConnection
from wqcore.db.statements import Statements


class Rescued(NamedTuple):
    """What a rescue did."""

    queue: str
    again: int
    """Jobs that had started and run again, charged with an attempt and a death."""
    ended: int
    """Jobs that had started and were discarded: no attempt left, or too many deaths."""
    held: int
    """Jobs in the newest claim, started or not."""


class DeadShard(NamedTuple):
    """A shard whose master is not heard of any more."""

    id: int
    queue: str
    host: str | None
    pid: int | None
    started: list[tuple[int, int]]


async def rescue(
    conn: AsyncConnection,
    statements: Statements,
    *,
    shard: int,
    started: Sequence[tuple[int, int]] | Callable[[], Sequence[tuple[int, int]]],
    reason: str,
    deaths_max: int,
    suspect_rest: bool,
) -> Rescued | None:
    """Rescues one shard; None when it is gone already.

    Args:
        started: (job id, attempt) of the jobs that had started; where somebody can tell, he is asked behind the fence: a worker
            that was only suspended can start more while the fence is waited for, and what it starts later is nobody's.
        reason: becomes the error of their attempt.
        deaths_max: a job whose deaths reach this is discarded as poison.
        suspect_rest: nobody could see what had started last, so the rest of the claim gets a death (no attempt).
    """
    async with conn.transaction():
        found = await (await conn.execute(statements["rescue_fence"], {"shard": shard})).fetchone()
        if found is None:
            return None
        queue: str = found[0]
        begun = started() if callable(started) else started
        row = await (
            await conn.execute(
                statements["rescue"],
                {
                    "shard": shard,
                    "started_ids": [job_id for job_id, _ in begun],
                    "started_attempts": [attempt for _, attempt in begun],
                    "reason": reason,
                    "deaths_max": deaths_max,
                    "suspect_rest": suspect_rest,
                    "channel": wake.channel(statements.schema, queue),
                },
            )
        ).fetchone()
    return Rescued(queue, *row[:3]) if row is not None else None


async def dead_shards(
    conn: AsyncConnection, statements: Statements, *, process: str, dead_after_s: float
) -> list[DeadShard]:
    """Shards of other masters whose beat is older than `dead_after_s`."""
    cursor = await conn.execute(statements["dead_shards"], {"process": process, "dead_after_s": dead_after_s})
    return [
        DeadShard(id_, queue, host, pid, _started(report)) for id_, queue, host, pid, report in await cursor.fetchall()
    ]


async def own_shards(conn: AsyncConnection, statements: Statements, *, process: str) -> list[int]:
    """The shards that are registered under this process."""
    cursor = await conn.execute(statements["own_shards"], {"process": process})
    return [id_ for id_, _ in await cursor.fetchall()]


def _started(report: dict[str, Any]) -> list[tuple[int, int]]:
    return [(job[0], job[1]) for job in report.get("running", [])]
