"""Each check of the doctor by itself: the facts of a healthy place are all right, and one thing wrong is one finding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from wqcore.settings import Database, Queue, Settings
from wqcore.watch.doctor import Facts, findings

SERVER = {
    "version_num": 180_004, "version": "18.4", "is_standby": False, "backend_pid": 7, "who": "worker", "fsync": "on",
    "full_page_writes": "on", "synchronous_commit": "on", "autovacuum": "on", "track_counts": "on",
    "default_transaction_read_only": "off", "default_transaction_isolation": "read committed",
    "shared_buffers_bytes": 1 << 30, "connections_max": 97, "over_tcp": True, "tls": True,
}  # fmt: skip
ROLE = {
    "who": "worker", "is_superuser": False, "owns": False, "may_run": True, "may_insert": True, "may_watch": True,
    "sees_sessions": True,
}  # fmt: skip
INDEXES = [
    "job_pkey", "job_ready", "job_due", "job_job_key", "job_unique_key", "claim_pkey", "slot_pkey", "shard_pkey", "history_id"
]  # fmt: skip


def table(name: str, **other: Any) -> dict[str, Any]:
    threshold = {"job": 20_000, "claim": 5_000}.get(name)
    options = [f"autovacuum_vacuum_threshold={threshold}"] if threshold else []
    row = {"table": name, "options": options, "live": 10, "dead": 5, "table_bytes": 100_000, "vacuumed_s": 60.0}
    return row | other


def session(age_s: float, **other: Any) -> dict[str, Any]:
    row = {"what": "session", "id": "99", "who": "bi", "program": "report", "state": "idle in transaction"}
    return row | {"age_s": age_s, "age_xids": 12} | other


HEALTHY = Facts(
    settings=Settings(database=Database(dsn="host=db"), queues={"default": Queue(workers=4, processes=2)}),
    kinds=frozenset({"known"}),
    rows={
        "server": [SERVER],
        "sessions": [{"all": 10, "ours": 4}],
        "role": [ROLE],
        "role_settings": [],
        "tables": [table("job"), table("claim"), table("history_20260102")],
        "indexes": [{"index": name, "usable": True} for name in INDEXES],
        "snapshots": [session(3.0)],
        "notify": [{"usage": 0.0}],
        "partitions": [{
            "days": ["history_20260102", "history_20260103", "history_20260104"],
            "today": "20260102", "tomorrow": "20260103", "day_after": "20260104",
        }],
        "kinds": [{"kind": "known", "jobs": 3}],
        "schedules": [{"name": "daily", "failed": False, "overdue_s": -60.0}],
        "status": [{"name": "default", "ready": 3, "due": 0, "shards": 2, "paused": False}],
        "processes": [{"host": "a", "pid": 1, "version": "0.1.0", "beat_age_s": 0.5}],
    },
    where="host=db",
    round_trip_s=0.001,
    schema_version=3,
    code_version=3,
    pid_of_protocol=7,
)  # fmt: skip


def test_a_healthy_place_has_nothing_but_right_things() -> None:
    found = findings(HEALTHY)
    assert [finding for finding in found if finding.level != "ok"] == []
    assert len({finding.check for finding in found}) == len(found) > 20


def server(**values: Any) -> Callable[[Facts], None]:
    return lambda facts: facts.rows["server"][0].update(values)


def put(name: str, **values: Any) -> Callable[[Facts], None]:
    return lambda facts: facts.rows[name][0].update(values)


def add(name: str, row: dict[str, Any]) -> Callable[[Facts], None]:
    return lambda facts: facts.rows[name].append(row)


def say(**values: Any) -> Callable[[Facts], None]:
    return lambda facts: [setattr(facts, key, value) for key, value in values.items()] and None


@pytest.mark.parametrize(
    ("spoil", "check", "level", "words", "fix"),
    [
        (server(version_num=140_012, version="14.12"), "server", "problem", "14.12 is too old", "15 or newer"),
        (server(is_standby=True), "server", "problem", "standby", "the primary"),
        (server(default_transaction_read_only="on"), "server", "problem", "read-only", "= off"),
        (say(schema_version=0), "schema", "unknown", "cannot be seen", 'grant "wqcore_observer" to "worker"'),
        (say(schema_version=2), "schema", "problem", "has version 2, this program needs 3", "wqcore migrate"),
        (say(schema_version=4), "schema", "problem", "has version 4, this program knows 3", "install the release"),
        (server(fsync="off"), "durability", "problem", "fsync is off", "alter system set fsync = on"),
        (server(synchronous_commit="off"), "durability", "problem", "loses what was acknowledged", "synchronous_commit = on"),
        (server(default_transaction_isolation="serializable"), "isolation", "problem", "serializable", "read committed"),
        (add("role_settings", {"setting": "jit=on", "is_of_role": True}), "role settings", "remark", "jit=on", None),
        (server(shared_buffers_bytes=16 << 20), "memory of the server", "remark", "16 MiB", "shared_buffers"),
        (put("sessions", all=99), "connections", "problem", "95 are others'", "max_connections"),
        (put("sessions", all=96), "connections", "remark", "rolling deploy", "max_connections"),
        (put("role", is_superuser=True), "rights", "remark", "is a superuser", "wqcore_runner"),
        (put("role", may_run=False), "rights", "remark", "but not run workers", "wqcore_runner"),
        (server(backend_pid=8), "pooler", "problem", "a pooler stands between", 'pooler = "transaction"'),
        (server(tls=False), "encryption", "remark", "in the clear", "verify-full"),
        (say(round_trip_s=0.02), "distance", "remark", "20.00 ms", "nearer"),
        (say(round_trip_s=0.2), "distance", "problem", "200.00 ms", "nearer"),
        (say(ahead_s=-90.0), "clocks", "remark", "90.0 s behind", "NTP"),
        (server(autovacuum="off"), "autovacuum", "problem", "autovacuum is off", "autovacuum = on"),
        (
            put("tables", options=["autovacuum_vacuum_threshold=20000", "autovacuum_enabled=false"]),
            "autovacuum", "problem", 'off for "wqcore"."job"', "reset (autovacuum_enabled)",
        ),
        (put("tables", options=[]), "autovacuum", "remark", "other autovacuum settings", "autovacuum_vacuum_threshold=20000"),
        (put("tables", dead=3_000_000), "dead rows", "remark", "3,000,000 dead rows", "snapshot"),
        (put("tables", table_bytes=3 << 30), "dead rows", "remark", "3 GiB for 10 rows", "vacuum (full)"),
        (add("snapshots", session(900.0)), "oldest snapshot", "remark", "99 bi report", "pg_terminate_backend(99)"),
        (add("snapshots", session(7200.0)), "oldest snapshot", "problem", "for 2 hours", "pg_terminate_backend(99)"),
        (
            add("snapshots", session(0.0, what="replication slot", id="old", state="inactive") | {"age_s": None}),
            "oldest snapshot", "problem", "replication slot old", "pg_drop_replication_slot('old')",
        ),
        (put("notify", usage=0.2), "notifications", "remark", "20% full", "listens"),
        (put("notify", usage=0.7), "notifications", "problem", "70% full", "listens"),
        (put("indexes", usable=False), "indexes", "problem", "job_pkey is invalid", "reindex index concurrently"),
        (lambda facts: facts.rows["indexes"].pop(1), "indexes", "problem", "job_ready is missing", "migrations"),
        (put("partitions", days=["history_20260102"]), "history", "remark", "20260103, 20260104", "make_partitions"),
        (put("processes", beat_age_s=60.0), "masters", "problem", "silent for 60 s", "rescues"),
        (
            add("processes", {"host": "b", "pid": 2, "version": "0.2.0", "beat_age_s": 0.1}),
            "masters", "remark", "0.1.0, 0.2.0", "finish the deploy",
        ),
        (lambda facts: facts.rows["processes"].clear(), "masters", "remark", "no master", "wqcore run"),
        (put("status", shards=0), "queues", "problem", "3 jobs that wait and no worker", "group 'default'"),
        (put("status", paused=True), "queues", "remark", "is paused", "queues resume"),
        (add("kinds", {"kind": "strange", "jobs": 2}), "kinds", "problem", "strange (2)", "process.handlers"),
        (say(kinds=frozenset()), "kinds", "unknown", "names no module", None),
        (put("schedules", failed=True), "schedules", "problem", "'daily' failed", "schedules"),
        (put("schedules", overdue_s=600.0), "schedules", "problem", "10 minutes late", "a master"),
    ],
)  # fmt: skip
def test_one_thing_that_is_wrong_is_one_finding(
    spoil: Callable[[Facts], None], check: str, level: str, words: str, fix: str | None
) -> None:
    facts = copy.deepcopy(HEALTHY)
    spoil(facts)
    [found] = [finding for finding in findings(facts) if finding.level != "ok"]
    assert (found.check, found.level) == (check, level)
    assert words in found.text
    assert (found.fix is None) if fix is None else fix in (found.fix or "")


def test_a_check_that_could_not_be_made_says_which_grant_would_allow_it_and_the_others_are_made() -> None:
    facts = copy.deepcopy(HEALTHY)
    del facts.rows["kinds"]
    facts.refused["kinds"] = "permission denied for table job"
    found = findings(facts)
    [unknown] = [finding for finding in found if finding.level != "ok"]
    assert (unknown.check, unknown.level) == ("kinds", "unknown")
    assert 'grant "wqcore_observer" to "worker"' in (unknown.fix or "")
    assert len(found) == len(findings(HEALTHY))


def test_a_schema_that_is_not_there_is_said_once() -> None:
    facts = copy.deepcopy(HEALTHY)
    facts.schema_version = 0
    for name in ("role", "tables", "indexes", "partitions"):
        facts.rows[name].clear()
    for name in ("status", "processes", "kinds", "schedules"):
        facts.refused[name] = 'relation "wqcore.job" does not exist'
    [found] = [finding for finding in findings(facts) if finding.level != "ok"]
    assert (found.check, found.level, found.fix) == ("schema", "problem", "wqcore migrate")


def test_without_a_connection_the_program_is_still_looked_at() -> None:
    facts = Facts(HEALTHY.settings, unreachable="cannot use PostgreSQL at host=db: refused")
    assert [(finding.check, finding.level) for finding in findings(facts)] == [("program", "ok"), ("connection", "problem")]
