"""What `wqcore status` and `wqcore top` show, as plain data; looking costs the same however large the tables are.

Running jobs, rates and memory are those of the last heartbeats. Counts stop at a cap and are then lower bounds; sizes in rows
are PostgreSQL's estimates. Both are marked as such.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

from wqcore import clock
from wqcore.control.masters import MasterInfo, masters
from wqcore.db import faults
from wqcore.db.connect import BY_INDEX, connect_sync, describe
from wqcore.db.request import Query, answer_sync, rows_of_sync
from wqcore.db.statements import Statements
from wqcore.settings import Settings

COUNT_CAP = 100_000
"""Counts stop here, so that looking at a backlog of millions stays cheap."""
LIVE_CAP = 10_000
"""The same for a display that looks every other second."""
LOOK_LIMIT_S = 10.0
"""A look that takes longer, beside millions of dead rows, is given up."""

_QUEUE = (
    "queue", "slots", "paused", "shards", "ready", "due", "scheduled", "retryable", "held", "oldest_waiting_s", "paused_at",
)  # fmt: skip
_DATABASE = (
    "version", "connections_max", "connections", "hidden", "oldest_transaction_s", "notify_queue", "jobs_estimate",
    "dead_estimate", "vacuumed_s", "job_bytes", "history_bytes",
)  # fmt: skip


class Reader:
    """Looks over one connection. Every method raises DatabaseUnavailable, NotPermitted or SchemaError."""

    def __init__(self, settings: Settings, dsn: str, *, name: str = "wqcore status", cap: int = COUNT_CAP) -> None:
        self._dsn, self._schema, self._cap = dsn, settings.database.schema, cap
        self._statements = Statements(settings.database.schema)
        # the head of a lane is one row of an index, whatever the planner thinks of a table without statistics
        bounded = msgspec.structs.replace(settings.database, statement_timeout_s=LOOK_LIMIT_S)
        self._conn = connect_sync(dsn, bounded, name=name, settings=BY_INDEX)

    def close(self) -> None:
        """Closes the connection."""
        self._conn.close()

    def read(self) -> dict[str, Any]:
        """`{"queues": […], "processes": […], "last_hour": {…}, "last_hour_capped": […], "database": {…}}`."""
        return self.live() | self.ended()

    def live(self) -> dict[str, Any]:
        """The queues, the masters and the database: what changes from second to second."""
        rows = self._rows(Query("status", {"cap": self._cap}))
        known = answer_sync(masters(), self._rows)
        queues = [self._queue(row, known) for row in rows]
        began = clock.monotonic()
        self._rows_of("select")
        round_trip_s = clock.monotonic() - began
        [row] = self._rows(Query("status_database")) or [(None,) * len(_DATABASE)]
        database = dict(zip(_DATABASE, row, strict=True)) | {"round_trip_s": round(round_trip_s, 5)}
        return {"queues": queues, "processes": [_process(one) for one in known], "database": database}

    def ended(self) -> dict[str, Any]:
        """What ended within the last hour: a walk over the newest `cap` of each outcome."""
        rows = self._rows(Query("status_finished", {"cap": self._cap}))
        return {
            "last_hour": {outcome: count for outcome, count, _ in rows},
            "last_hour_capped": [outcome for outcome, _, capped in rows if capped],
        }

    def _queue(self, row: tuple[Any, ...], known: list[MasterInfo]) -> dict[str, Any]:
        found = dict(zip(_QUEUE, row, strict=True))
        workers = [worker for master in known for worker in master.workers if worker.queue == found["queue"]]
        return found | {
            # what is held and waits for a seat is about to run: it is not counted as waiting
            "waiting": max(0, found["ready"] + found["due"] - found["held"]),
            "capped": found["ready"] >= self._cap or found["due"] >= self._cap,
            "later_capped": found["scheduled"] + found["due"] >= self._cap,
            "seats": sum(worker.seats for worker in workers),
            "running": sum(worker.running for worker in workers),
            "completed_per_s": round(sum(worker.completed_per_s for worker in workers), 2),
            "failed_per_s": round(sum(worker.failed_per_s for worker in workers), 2),
        }

    def _rows(self, query: Query) -> list[tuple[Any, ...]]:
        try:
            return rows_of_sync(self._conn, self._statements, query)
        except psycopg.Error as error:
            raise self._told(error) from None

    def _rows_of(self, text: str) -> None:
        try:
            self._conn.execute(text.encode())
        except psycopg.Error as error:
            raise self._told(error) from None

    def _told(self, error: psycopg.Error) -> Exception:
        told = faults.schema_problem(error, self._schema) or faults.not_permitted(error, self._schema)
        return told or faults.unavailable(error, describe(self._dsn))


def read(settings: Settings, dsn: str) -> dict[str, Any]:
    """One look with all that `Reader.read` has. Raises DatabaseUnavailable, NotPermitted or SchemaError."""
    reader = Reader(settings, dsn)
    try:
        return reader.read()
    finally:
        reader.close()


def _process(master: MasterInfo) -> dict[str, Any]:
    return {
        "id": master.id,
        "host": master.host,
        "pid": master.pid,
        "group": master.group,
        "version": master.version,
        "started_at": master.started_at,
        "beat_age_s": master.beat_age_s,
        "drain_asked_at": master.drain_asked_at,
        "shards": len(master.workers),
        "seats": sum(worker.seats for worker in master.workers),
        "running": master.running,
        "completed": sum(worker.completed for worker in master.workers),
        "failed": sum(worker.failed for worker in master.workers),
        "completed_per_s": round(sum(worker.completed_per_s for worker in master.workers), 2),
        "failed_per_s": round(sum(worker.failed_per_s for worker in master.workers), 2),
        "memory_bytes": sum(worker.memory_bytes or 0 for worker in master.workers) or None,
        "jobs": [
            msgspec.to_builtins(job) | {"queue": worker.queue} for worker in master.workers for job in worker.jobs
        ],
    }
