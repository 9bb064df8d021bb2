"""Sends every statement to PostgreSQL and to the tables in memory, and fails where they do not answer the same.

Times are the one thing that cannot be the same: after each statement that sets some, those of PostgreSQL are copied.
Replies can be lost on purpose, before or after both sides have done what was asked.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import psycopg

from tests.fix_pg import Fresh
from tests.model import people
from tests.model.tables import Params, Rows, Tables
from wqcore.db import wake
from wqcore.db.connect import AsyncConnection, BigIntArray
from wqcore.job import table_us
from wqcore.line.turn import Look, Protocol
from wqcore.upkeep.rescue import rescue

QUEUE = "default"
BEFORE, AFTER = "before", "after"
EPOCH_S = 946_684_800
NOT_COMPARED = {"limits", "keep_hours", "now_us", "oldest_xid", "next_xid", "next_due_us", "due_bytes"}
"""Of a look: what these tables have otherwise."""
UNORDERED = {"held_elsewhere", "remaining", "slots_take", "slots_owned", "cancels"}
WITH_NOTIFICATION = {"shard_register", "shard_leave", "slots_release"}
TIMES = "extract(epoch from {} - timestamptz '2000-01-01 00:00:00+00') * 1000000"
JOBS = (
    "select id, slot, priority, kind, revision, attempt, max_attempts, deaths, serial_key, "
    f"({TIMES.format('run_at')})::bigint, ({TIMES.format('created_at')})::bigint, job_key, "
    "jsonb_array_length(coalesce(errors, '[]')) from {s}.job"
)
HISTORY = "select id, outcome, attempt, deaths, shard, jsonb_array_length(coalesce(errors, '[]')) from {s}.history"
CLAIMS = "select distinct on (shard) shard, ids from {s}.claim order by shard, turn desc"


class Twin:
    """Both sides, and what people do to them."""

    def __init__(self, database: Fresh, conn: AsyncConnection) -> None:
        self.database = database
        self.conn = conn
        self.lose: tuple[str, str] | None = None
        """(statement, BEFORE or AFTER): the next one of that name is not done, or its reply is lost."""
        self.told: list[str] = []
        self.tables = Tables(4, _now_us, self.told.append)
        self._names = {database.statements[name]: name for name in NAMES}
        self._clean()

    def _clean(self) -> None:
        for table in ("job", "shard", "claim", "cancel_request", "history", "progress"):
            self.database.sql(f"delete from {{s}}.{table}")
        self.database.sql("update {s}.slot set shard = null where queue = %s", QUEUE)
        self.database.sql("alter sequence {s}.job_id_seq restart")

    def protocol(self, shard: int) -> Protocol:
        """A shard's side of the protocol, on both."""
        channel = wake.channel(self.database.schema, QUEUE)
        protocol = Protocol(self.database.statements, shard=shard, queue=QUEUE, channel=channel, reply_timeout_s=30)
        protocol.keep_completed_hours = 24.0
        protocol.conn = self  # type: ignore[assignment]
        return protocol

    async def execute(self, query: bytes, params: Params, *, prepare: bool, binary: bool) -> _Cursor:
        """A statement of a shard."""
        name = self._names[query]
        lost = self.lose[1] if self.lose is not None and self.lose[0] == name else None
        if lost is not None:
            self.lose = None
        if lost == BEFORE:
            raise psycopg.OperationalError("lost before the server had it")
        cursor = await self.conn.execute(query, params, prepare=prepare, binary=binary)
        rows = await cursor.fetchall() if cursor.rownumber is not None else []
        assert comparable(name, getattr(self.tables, name)(params)) == comparable(name, rows), name
        if name == "settle_retry":
            self.same()
        if name == "shard_session" and rows:
            self.tables.sessions[params["shard"]] = rows[0][0]
        if lost == AFTER:
            raise psycopg.OperationalError("the reply was lost")
        return _Cursor(rows)

    # --- what people do ---------------------------------------------------------------------------------------------

    def insert(self, **job: Any) -> int:
        """Inserts a job: slot, priority, serial key and time."""
        run_at = job.pop("run_at")
        id_ = people.insert(self.tables, "k", **job, run_at=None if run_at is None else table_us(run_at))
        values = {
            "queue": QUEUE, "kind": "k", "args": "{}", "max_attempts": 3, "metadata": None, "run_at": run_at, "payload": "all",
            "channel": wake.channel(self.database.schema, QUEUE), **job,
        }  # fmt: skip
        row = self.database.conn.execute(self.database.statements["insert_one"], values).fetchone()
        assert row is not None
        assert row[0] == id_
        return id_

    def insert_keyed(self, job_key: str, mode: str, slot: int) -> tuple[int, str]:
        """Inserts a job with a job key."""
        mine = people.insert_keyed(self.tables, "k", job_key=job_key, mode=mode, slot=slot)
        text = "select * from {s}.insert_keyed(%s, %s, 1, null, 'k', 3, null, null, '{{}}', %s, %s, null, 'c')"
        theirs = self.database.sql(text, QUEUE, slot, job_key, mode)[0]
        assert mine == theirs
        return mine

    def control(self, name: str, job: int, **params: Any) -> dict[str, int]:
        """A statement of control about one job; what it says of it."""
        given = {"ids": BigIntArray([job]), "revisions": BigIntArray([-1]), **params}
        columns = ("changed", "cancelling", "running", "finished", "taken", "told")
        row = self.database.conn.execute(self.database.statements[name], given).fetchone()
        return dict(zip(columns, row or (), strict=True))

    def cancel(self, job: int) -> None:
        """Cancels a job, also one that runs."""
        mine = people.cancel(self.tables, job, "enough")
        theirs = self.control("control_cancel", job, reason="enough", running_too=True)
        assert mine == {"changed": "cancelled", "cancelling": "cancelling", "finished": "finished"}.get(said(theirs), "unknown")

    def cancel_unheld(self) -> None:
        """The sweep of a keeper, a minute later."""
        self.database.sql("update {s}.cancel_request set asked_at = asked_at - interval '1 minute'")
        row = self.database.conn.execute(self.database.statements["cancel_unheld"]).fetchone()
        assert row == (people.cancel_unheld(self.tables),)

    def reprioritise(self, job: int, priority: int) -> None:
        """Gives a waiting job another priority."""
        theirs = self.control("control_reprioritise", job, priority=priority)
        assert people.reprioritise(self.tables, job, priority) == (said(theirs) == "changed")

    def reschedule(self, job: int, after_s: float) -> None:
        """Gives a waiting job another time."""
        theirs = self.control("control_reschedule", job, run_at=None, after_s=after_s)
        assert people.reschedule(self.tables, job, _now_us() + int(after_s * 1e6)) == (said(theirs) == "changed")

    def delete(self, job: int) -> bool:
        """Deletes a waiting job."""
        deleted = people.delete(self.tables, job)
        theirs = self.control("control_delete", job) if deleted or job in self.tables.jobs else {}
        assert deleted == (said(theirs) == "changed")
        return deleted

    def put_back(self, job: int) -> None:
        """Makes a finished job run again."""
        if job in self.tables.jobs:
            return
        theirs = self.control("control_retry", job)
        found = self.database.sql("select slot, revision from {s}.job where id = %s", job) or [(0, 0)]
        slot, revision = found[0]
        assert people.put_back(self.tables, job, slot=slot, revision=revision) == (said(theirs) == "changed")

    async def rescue(self, shard: int, started: list[tuple[int, int]], *, suspect_rest: bool) -> None:
        """Rescues a shard."""
        theirs = await rescue(
            self.conn, self.database.statements, shard=shard, started=started, reason="died", deaths_max=3,
            suspect_rest=suspect_rest,
        )  # fmt: skip
        mine = people.rescue(self.tables, shard, started, "died", deaths_max=3, suspect_rest=suspect_rest)
        assert mine == (theirs[1:] if theirs is not None else None)

    # --- both are the same ------------------------------------------------------------------------------------------

    def same(self) -> None:
        """Compares all tables, and takes over the times of PostgreSQL."""
        sql_, tables = self.database.sql, self.tables
        rows = {row[0]: row for row in sql_(JOBS)}
        assert rows.keys() == tables.jobs.keys()
        for id_, row in tables.jobs.items():
            *plain, run_at, created_at, job_key, errors = rows[id_]
            assert (*row[:9], row.job_key, len(row.errors)) == (*plain, job_key, errors)
            assert (row.run_at is None) == (run_at is None)
            assert row.run_at is None or abs(row.run_at - run_at) < 60e6
            tables.jobs[id_] = row._replace(run_at=run_at, created_at=created_at)
        mine = [(r.row.id, r.outcome, r.attempt, r.deaths, r.shard, len(r.errors)) for r in tables.history]
        assert sorted(mine) == sorted(sql_(HISTORY))
        newest = [(shard, tables.newest(shard)) for shard in sorted(tables.claims)]
        assert newest == sql_(CLAIMS)
        assert sorted(tables.shards) == [shard for (shard,) in sql_("select id from {s}.shard order by id")]
        assert list(tables.slots.items()) == sql_("select slot, shard from {s}.slot where queue = %s order by 1", QUEUE)
        assert tables.requests == dict(sql_("select job, reason from {s}.cancel_request"))


class _Cursor:
    rownumber = 0

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def fetchall(self) -> Rows:
        return self._rows


def comparable(name: str, rows: Rows) -> Any:
    """What the two sides must agree on."""
    if name == "peek":
        return [{field: value for field, value in Look(*row)._asdict().items() if field not in NOT_COMPARED} for row in rows]
    if name in WITH_NOTIFICATION:
        return [row[:-1] for row in rows]
    if name == "shard_session":  # the number is another on each side
        return len(rows)
    return sorted(rows, key=repr) if name in UNORDERED else rows


def said(counts: dict[str, int]) -> str | None:
    """The one thing that was said of a job."""
    return next((what for what, count in counts.items() if count), None)


def _now_us() -> int:
    return int((time.time() - EPOCH_S) * 1e6)


NAMES = (
    "shard_register", "shard_session", "shard_leave", "turn", "peek", "settle_retry", "settle_end", "slots_take",
    "slots_owned", "slots_release", "held_elsewhere", "remaining", "cancels",
)  # fmt: skip
FAR = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
