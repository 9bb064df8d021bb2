"""Records a history while masters run: a journal is appended to by single writes, so a killed process loses no line.

Linux appends each `write` to a file opened with O_APPEND as a whole, whoever else writes; so all processes share the
files, and a line is there once the call has returned, also when the next instruction is the last of its process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from tests.check.history import AUDIT, Finished, Waiting, Wrote

CLOCK_READINGS = 5

_JOURNAL = """
create table {schema}.audit (
    seq          bigint generated always as identity primary key,
    at           timestamptz not null default clock_timestamp(),
    xid          bigint not null default pg_current_xact_id()::text::bigint,
    by           text not null default current_setting('application_name'),
    "table"      text not null,
    op           text not null,
    job          bigint,
    shard        bigint,
    revision     integer,
    attempt      integer,
    deaths       integer,
    was_revision integer,
    was_attempt  integer,
    was_deaths   integer,
    outcome      text,
    token        bigint,
    ids          bigint[]
);
create function {schema}.audit_job() returns trigger language plpgsql as $fn$
declare
    after_it {schema}.job := coalesce(new, old);
begin
    insert into {schema}.audit ("table", op, job, revision, attempt, deaths, was_revision, was_attempt, was_deaths, token)
    values ('job', lower(tg_op), after_it.id, after_it.revision, after_it.attempt, after_it.deaths, old.revision,
            old.attempt, old.deaths, (after_it.args ->> 'token')::bigint);
    return null;
end
$fn$;
create function {schema}.audit_history() returns trigger language plpgsql as $fn$
begin
    insert into {schema}.audit ("table", op, job, shard, attempt, deaths, outcome, token)
    values ('history', lower(tg_op), new.id, new.shard, new.attempt, new.deaths, new.outcome,
            (new.args ->> 'token')::bigint);
    return null;
end
$fn$;
create function {schema}.audit_shard() returns trigger language plpgsql as $fn$
begin
    insert into {schema}.audit ("table", op, shard) values ('shard', lower(tg_op), coalesce(new.id, old.id));
    return null;
end
$fn$;
create function {schema}.audit_claim() returns trigger language plpgsql as $fn$
begin
    insert into {schema}.audit ("table", op, shard, ids) values ('claim', 'insert', new.shard, new.ids);
    return null;
end
$fn$;
create trigger audit after insert or update or delete on {schema}.job
    for each row execute function {schema}.audit_job();
create trigger audit after insert on {schema}.history for each row execute function {schema}.audit_history();
create trigger audit after insert or delete on {schema}.shard for each row execute function {schema}.audit_shard();
create trigger audit after insert on {schema}.claim for each row execute function {schema}.audit_claim();
"""

_AUDIT = """
select seq, (extract(epoch from at) * 1000000000)::bigint as at, xid, by, "table", op, job, shard, revision, attempt,
       deaths, was_revision, was_attempt, was_deaths, outcome, token, ids
  from {schema}.audit order by seq
"""
_FINISHED = """
select id as job, kind, outcome, attempt, max_attempts, deaths, shard, (args ->> 'token')::bigint as token
  from {schema}.history order by id
"""
_WAITING = "select id as job, kind, attempt, (args ->> 'token')::bigint as token from {schema}.job order by id"
_ROWS_LEFT = {
    "leases": "select count(*) from {schema}.shard",
    "journals": "select count(*) from {schema}.claim",
    "owned slots": "select count(*) from {schema}.slot where shard is not null",
    "owned permits": "select count(*) from {schema}.permit where shard is not null",
    "heartbeats": "select count(*) from {schema}.process",
    # those whose job has ended are swept after a minute
    "cancellations of unfinished jobs": "select count(*) from {schema}.cancel_request c join {schema}.job j on j.id = c.job",
}
_IDLE = """
select format('%s (pid %s) for %s: %s', application_name, pid, now() - state_change, left(query, 80))
  from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and state like 'idle in transaction%'
"""

Connection = psycopg.Connection[Any]


class Journal:
    """A file of JSON lines that many processes append to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._encode = msgspec.json.Encoder().encode

    def write(self, line: msgspec.Struct) -> None:
        os.write(self._file, self._encode(line) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def install_audit(conn: Connection, schema: str) -> None:
    """Puts the audit into a schema that was migrated; for databases of tests only."""
    conn.execute(_composed(_JOURNAL, schema))


def save_audit(conn: Connection, schema: str, folder: Path) -> None:
    """Writes what the audit has seen into the history; times are times of day until it is read."""
    with (folder / AUDIT).open("wb") as file:
        for row in _rows(conn, _AUDIT, schema):
            file.write(msgspec.json.encode(msgspec.convert(row, Wrote)) + b"\n")


def finished(conn: Connection, schema: str) -> list[Finished]:
    """The table history as it is now."""
    return [msgspec.convert(row, Finished) for row in _rows(conn, _FINISHED, schema)]


def waiting(conn: Connection, schema: str) -> list[Waiting]:
    """The unfinished jobs as they are now."""
    return [msgspec.convert(row, Waiting) for row in _rows(conn, _WAITING, schema)]


def rows_left(conn: Connection, schema: str) -> dict[str, int]:
    """Rows that should be gone with the masters."""
    found = {what: conn.execute(_composed(text, schema)).fetchone() for what, text in _ROWS_LEFT.items()}
    return {what: row[0] for what, row in found.items() if row is not None}


def idle_transactions(conn: Connection) -> list[str]:
    """Transactions of this database in which nobody does anything."""
    return [text for (text,) in conn.execute(_IDLE).fetchall()]


def clocks() -> tuple[int, int]:
    """The monotonic clock and the time of day: of some readings the one that took least.

    The first clock is read on both sides. Who loses the core between two of the reads is wrong by up to half of that time: one
    reading of 1,770 in half an hour was, by 1.4 ms, and made 26 jobs end before their handlers had.
    """
    return min((_clocks() for _ in range(CLOCK_READINGS)), key=lambda reading: reading[0])[1]


def _clocks() -> tuple[int, tuple[int, int]]:
    """(how long it took, the reading)"""
    before = time.monotonic_ns()
    day = time.time_ns()
    after = time.monotonic_ns()
    return after - before, ((before + after) // 2, day)


def _composed(text: str, schema: str) -> bytes:
    return text.replace("{schema}", sql.Identifier(schema).as_string(None)).encode()


def _rows(conn: Connection, text: str, schema: str) -> list[dict[str, Any]]:
    cursor = conn.execute(_composed(text, schema))
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]
