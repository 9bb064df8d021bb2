"""What people and keepers do to the tables in memory: insert, cancel, change, put back, delete, rescue.

Each function does what the SQL file or function of its name does, as far as one queue shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tests.model.tables import Record, Row, Tables

REQUESTED_AFTER_US = 1_000_000
"""A keeper leaves a cancellation to the owner of the job for so long (`cancel_unheld.sql`)."""


def insert(
    tables: Tables, kind: str, *, slot: int, priority: int = 1, run_at: int | None = None, max_attempts: int = 3,
    serial_key: str | None = None, job_key: str | None = None, args: bytes = b"{}",
) -> int:
    """insert_one.sql"""  # fmt: skip
    xid, row = draw(tables, kind, slot, priority, run_at, max_attempts, serial_key, job_key, args)
    commit(tables, xid, row)
    return row.id


def draw(
    tables: Tables, kind: str, slot: int, priority: int, run_at: int | None, max_attempts: int, serial_key: str | None,
    job_key: str | None = None, args: bytes = b"{}",
) -> tuple[int, Row]:
    """The first half of an insert: a transaction that has drawn its id and has not committed."""  # fmt: skip
    xid = tables.begin()
    tables.sequence += 1
    created = tables.now_us()
    return xid, Row(
        tables.sequence, slot, priority, kind, 0, 0, max_attempts, 0, serial_key, run_at, created, args, None, job_key, ()
    )


def commit(tables: Tables, xid: int, row: Row) -> None:
    """The other half."""
    tables.jobs[row.id] = row
    tables.end(xid)
    tables.notify(f"{row.slot}:{row.priority}" if row.run_at is None else "due")


def insert_keyed(
    tables: Tables, kind: str, *, job_key: str, mode: str, slot: int, priority: int = 1, run_at: int | None = None,
    max_attempts: int = 3, serial_key: str | None = None,
) -> tuple[int, str]:
    """insert_keyed()"""  # fmt: skip
    old = next((row for row in tables.jobs.values() if row.job_key == job_key), None)
    if old is not None:
        if mode == "unsafe_dedupe":
            return old.id, "skipped"
        if old.id not in tables.held():
            kept = old.run_at if mode == "preserve_run_at" and old.attempt == 0 else run_at
            stays = old.serial_key == serial_key
            tables.jobs[old.id] = old._replace(
                slot=old.slot if stays else slot, priority=priority, kind=kind, max_attempts=max_attempts,
                serial_key=serial_key, attempt=0,
                deaths=0, errors=(), revision=old.revision + 1, run_at=tables.now_us() if kept is None else kept,
            )  # fmt: skip
            tables.notify("due")
            return old.id, "replaced"
        tables.jobs[old.id] = old._replace(job_key=None, max_attempts=0)
    new = insert(
        tables, kind, slot=slot, priority=priority, run_at=run_at, max_attempts=max_attempts, serial_key=serial_key,
        job_key=job_key,
    )  # fmt: skip
    return new, "inserted"


def cancel(tables: Tables, job: int, reason: str) -> str:
    """cancel()"""
    row = tables.jobs.get(job)
    if row is None:
        return "finished" if any(record.row.id == job for record in tables.history) else "unknown"
    if job in tables.held():
        tables.requests.setdefault(job, reason)
        tables.notify("cancel")
        return "cancelling"
    tables.end_job(row, "cancelled", row.attempt, None, error(reason))
    tables.notify(f"gone:{job}")
    return "cancelled"


def cancel_unheld(tables: Tables) -> int:
    """cancel_unheld.sql, for requests that are old enough."""
    held = tables.held()
    left = [(job, reason) for job, reason in tables.requests.items() if job in tables.jobs and job not in held]
    return sum(cancel(tables, job, reason) == "cancelled" for job, reason in left)


def reprioritise(tables: Tables, job: int, priority: int) -> bool:
    """control_reprioritise.sql"""
    row = _waiting(tables, job)
    if row is not None:
        tables.jobs[job] = row._replace(priority=priority, run_at=row.created_at if row.run_at is None else row.run_at)
        tables.notify("due")
    return row is not None


def reschedule(tables: Tables, job: int, run_at: int) -> bool:
    """control_reschedule.sql"""
    row = _waiting(tables, job)
    if row is not None:
        tables.jobs[job] = row._replace(run_at=run_at, revision=row.revision + 1)
        tables.notify("due")
    return row is not None


def delete(tables: Tables, job: int) -> bool:
    """control_delete.sql, of a job that waits."""
    row = _waiting(tables, job)
    if row is not None:
        del tables.jobs[job]
        tables.requests.pop(job, None)
        tables.notify(f"gone:{job}")
    return row is not None


def put_back(tables: Tables, job: int, *, slot: int, revision: int) -> bool:
    """control_retry.sql, of a job that is finished; `slot` and `revision` are what the statement chose."""
    record = next((record for record in tables.history if record.row.id == job), None)
    keys = {row.job_key for row in tables.jobs.values() if row.job_key is not None}
    if record is None or job in tables.jobs or record.row.job_key in keys:
        return False
    tables.history.remove(record)
    row = record.row
    tables.jobs[job] = row._replace(
        slot=slot, run_at=tables.now_us(), attempt=record.attempt, deaths=0, revision=revision, errors=record.errors,
        max_attempts=max(row.max_attempts, record.attempt + 1),
    )  # fmt: skip
    tables.requests.pop(job, None)
    tables.notify(f"due back:{job}")
    return True


def rescue(
    tables: Tables, shard: int, started: Iterable[tuple[int, int]], reason: str, *, deaths_max: int, suspect_rest: bool
) -> tuple[int, int, int] | None:
    """rescue_fence.sql and rescue.sql: how many run again, ended, were held; None when the shard is gone already."""
    if tables.shards.pop(shard, None) is None:
        return None
    newest = tables.newest(shard)
    tables.free(shard)
    again = ended = 0
    charged = set()
    for job, attempt in sorted(started):
        row = tables.jobs.get(job)
        if row is None or row.attempt != attempt or job not in newest:
            continue
        charged.add(job)
        asked = tables.requests.get(job)
        if row.attempt + 1 >= row.max_attempts or row.deaths + 1 >= deaths_max or asked is not None:
            outcome = "discarded" if asked is None else "cancelled"
            tables.end_job(row, outcome, row.attempt + 1, shard, error(reason), deaths=1)
            ended += 1
        else:
            tables.jobs[job] = row._replace(
                attempt=row.attempt + 1, deaths=row.deaths + 1, run_at=tables.now_us(), errors=(*row.errors, error(reason))
            )
            again += 1
    for job in set(newest) if suspect_rest else ():
        if job in tables.jobs and job not in charged:
            tables.jobs[job] = tables.jobs[job]._replace(deaths=tables.jobs[job].deaths + 1)
    tables.notify("slots due")
    return again, ended, len(newest)


def records_of(tables: Tables, job: int) -> list[Record]:
    """What the history says of a job."""
    return [record for record in tables.history if record.row.id == job]


def error(text: str) -> str:
    """An error as the tables keep it."""
    return json.dumps({"error": text})


def _waiting(tables: Tables, job: int) -> Row | None:
    """The job, if it is there and nobody holds it."""
    return None if job in tables.held() else tables.jobs.get(job)
