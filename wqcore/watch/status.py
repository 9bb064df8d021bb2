"""What `wqcore status` shows, as plain data."""

from __future__ import annotations

from typing import Any

import psycopg

from wqcore.db import faults
from wqcore.db.connect import connect_sync, describe
from wqcore.db.statements import Statements
from wqcore.settings import Settings

COUNT_CAP = 100_000
"""Counts stop here, so that looking at a backlog of millions stays cheap."""


def read(settings: Settings, dsn: str) -> dict[str, Any]:
    """`{"queues": […], "processes": […], "last_hour": {outcome: count}}`.

    Raises DatabaseUnavailable, NotPermitted or SchemaError.
    """
    statements = Statements(settings.database.schema)
    conn = connect_sync(dsn, settings.database, name="wqcore status")
    try:
        queues = conn.execute(statements["status"], {"cap": COUNT_CAP}).fetchall()
        processes = conn.execute(statements["status_processes"]).fetchall()
        finished = conn.execute(statements["status_finished"]).fetchall()
    except psycopg.Error as error:
        schema = settings.database.schema
        told = faults.schema_problem(error, schema) or faults.not_permitted(error, schema)
        raise told or faults.unavailable(error, describe(dsn)) from None
    finally:
        conn.close()
    names = ("queue", "slots", "paused", "shards", "ready", "due", "scheduled", "held")
    return {
        "queues": [dict(zip(names, row, strict=True)) for row in queues],
        "processes": [_process(*row) for row in processes],
        "last_hour": dict(finished),
    }


def _process(
    id_: Any, host: str, pid: int, group: str | None, version: str, started_at: Any, beat_age_s: float, report: Any
) -> dict[str, Any]:
    shards = report.get("shards", {})
    return {
        "id": str(id_),
        "host": host,
        "pid": pid,
        "group": group,
        "version": version,
        "started_at": started_at,
        "beat_age_s": round(beat_age_s, 2),
        "shards": len(shards),
        "running": sum(shard["running_count"] for shard in shards.values()),
        "completed": sum(shard["completed"] for shard in shards.values()),
        "failed": sum(shard["failed"] for shard in shards.values()),
        "jobs": [job for shard in shards.values() for job in shard["running"]],
    }
