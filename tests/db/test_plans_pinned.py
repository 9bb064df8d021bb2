"""The hot statements have one plan each, by index, whatever the statistics say."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fix_pg import Fresh
from wqcore.db.connect import TURN_SETTINGS, BigIntArray

LANES = [(slot, priority) for priority in (5, 1) for slot in range(4)]
SLOTS = BigIntArray([slot for slot, _ in LANES])
PRIORITIES = BigIntArray([priority for _, priority in LANES])
CURSORS = BigIntArray([0 for _ in LANES])
FOUR = BigIntArray([0, 1, 2, 3])
PEEK: dict[str, Any] = {
    "shard": 1, "queue": "default", "lane_slots": SLOTS, "lane_priorities": PRIORITIES, "lane_after": CURSORS,
    "slots": FOUR, "gap_above": BigIntArray([5, 1, -1001]), "gap_below": BigIntArray([1001, 5, 1]), "floor": 0,
    "exclude": BigIntArray([1, 2]), "due_after_us": CURSORS, "due_after_id": CURSORS, "busy_keys": ["a"],
    "due_floor_us": 0,
}
TURN: dict[str, Any] = {
    "shard": 1, "queue": "default", "durable": True, "keep_hours": 24.0, "done_ids": BigIntArray([1, 2]),
    "done_revisions": BigIntArray([0, 0]), "done_ago_us": BigIntArray([1, 1]), "lane_slots": SLOTS,
    "lane_priorities": PRIORITIES, "lane_after": CURSORS, "due_after_us": CURSORS,
    "due_after_id": CURSORS, "exclude": BigIntArray([1, 2]), "busy_keys": ["a"], "n": 100, "turn": 2,
    "since": 1, "held": BigIntArray([1]), "changed": True,
}
RETRY: dict[str, Any] = {
    "shard": 1, "ids": BigIntArray([1, 2]), "revisions": BigIntArray([0, 0]), "attempts": BigIntArray([1, 1]),
    "delays_s": BigIntArray([1, 1]), "errors": ["a", "b"], "ready_us": BigIntArray([1, 1]), "errors_kept": 10,
}
END: dict[str, Any] = {
    "shard": 1, "ids": BigIntArray([1, 2]), "revisions": BigIntArray([0, 0]), "ago_us": BigIntArray([1, 1]),
    "outcomes": ["discarded", "discarded"], "errors": ["a", "b"], "outputs": ["1", "2"], "started": ["t", "f"],
    "logs": ["[]", "[]"], "errors_kept": 10,
}
RESCUE: dict[str, Any] = {
    "shard": 1, "started_ids": BigIntArray([1, 2]), "started_attempts": BigIntArray([0, 0]), "deaths_max": 3,
    "reason": "x", "suspect_rest": True, "channel": "c",
}
STATISTICS = {
    "an empty table": "update pg_class set reltuples = 0, relpages = 0 where oid = any(%s)",
    "ten million rows": "update pg_class set reltuples = 1e7, relpages = 200000 where oid = any(%s)",
    "an analysis that met three rows on many pages": (
        "update pg_class set reltuples = 3, relpages = 5000 where oid = any(%s)"
    ),
    "never analysed": "update pg_class set reltuples = -1, relpages = 0 where oid = any(%s)",
}


@pytest.mark.parametrize("statistics", [*STATISTICS, "a hundred thousand dead rows beside an old snapshot"])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_the_turn_and_the_look_ride_their_indexes(database: Fresh, statistics: str, mode: str) -> None:
    with psycopg.connect(database.dsn) as old:
        if statistics in STATISTICS:
            oids = database.one(
                "select array_agg(oid) from pg_class where relnamespace = %s::regnamespace and relname ~ '^job'",
                f'"{database.schema}"',
            )
            database.sql(STATISTICS[statistics].replace("{", "{{"), oids)
        else:
            old.execute("set transaction isolation level repeatable read")
            old.execute("select count(*) from pg_class")
            database.sql(
                "insert into {s}.job (queue, slot, priority, kind, args) "
                "select 'default', n %% 4, 1, 'k', '{{}}' from generate_series(1, %s) n",
                100_000,
            )
            database.sql("delete from {s}.job")
            database.sql("vacuum analyze {s}.job")
        database.conn.execute(TURN_SETTINGS)  # type: ignore[arg-type]
        database.conn.execute(sql.SQL("set plan_cache_mode = {}").format(sql.SQL(mode)))
        for name, params in (("turn", TURN), ("peek", PEEK)):
            scans = plan(database, name, params)
            on_job = {index for kind, relation, index in scans if relation == "job" and index}
            whole = [scan for scan in scans if scan[1] == "job" and scan[0] not in ("Index Scan", "Index Only Scan")]
            assert whole == [], f"{name}: {whole}"
            assert {"job_ready", "job_due"} <= on_job, name
            assert on_job <= {"job_ready", "job_due", "job_pkey"}, name
            assert ("job_pkey" in on_job) == (name == "turn")
        for name, params in (("settle_retry", RETRY), ("settle_end", END), ("rescue", RESCUE)):
            on_job = {scan for scan in plan(database, name, params) if scan[1] == "job"}
            assert on_job == {("Index Scan", "job", "job_pkey")}, name


def plan(database: Fresh, name: str, params: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """(node, relation, index) of every node that reads a table as the server plans the
    prepared statement; without a condition that an index serves the node is called `… of all`."""
    text = database.statements[name].decode()
    cursor = psycopg.ClientCursor(database.conn)
    values: dict[str, str] = {}
    for parameter, value in params.items():
        if f"%({parameter})s" in text:
            text = text.replace(f"%({parameter})s", f"${len(values) + 1}")
            values[parameter] = _literal(cursor, value)
    types = [_TYPES.get(parameter, "bigint[]") for parameter in values]
    cursor.execute(f"prepare p_{name} ({', '.join(types)}) as {text.replace('%%', '%')}".encode())
    try:
        cursor.execute(f"explain (format json) execute p_{name} ({', '.join(values.values())})".encode())
        row = cursor.fetchone()
        assert row is not None
        return list(_scans(row[0][0]["Plan"] if not isinstance(row[0], str) else json.loads(row[0])[0]["Plan"]))
    finally:
        cursor.execute(f"deallocate p_{name}".encode())


def _literal(cursor: psycopg.ClientCursor[Any], value: Any) -> str:
    if isinstance(value, BigIntArray):
        return "'{" + ",".join(map(str, value.items)) + "}'"
    if isinstance(value, list):
        return "'{" + ",".join(value) + "}'"
    return cursor.mogrify("%s", (value,))


def _scans(node: dict[str, Any]) -> Any:
    if "Relation Name" in node and node["Node Type"] not in ("ModifyTable",):
        kind = node["Node Type"] if "Index Cond" in node else f"{node['Node Type']} of all"
        yield kind, node["Relation Name"], node.get("Index Name")
    for inner in node.get("Plans", []):
        yield from _scans(inner)


_TYPES = {
    "shard": "bigint", "queue": "text", "durable": "boolean", "keep_hours": "float8", "busy_keys": "text[]", "n": "bigint",
    "turn": "bigint", "since": "bigint", "changed": "boolean", "floor": "bigint", "due_floor_us": "bigint",
    "xid": "bigint", "id": "bigint", "upto": "bigint", "after": "bigint", "scan": "bigint", "reason": "text",
    "whole": "boolean", "unfinished": "boolean", "running_too": "boolean", "history": "text", "serial_key": "text",
    "job_key": "text", "error": "text", "delays_s": "float8[]",
    "started": "boolean[]", "in_metadata": "boolean[]", "key": "text",
    "errors_kept": "integer", "deaths_max": "integer", "suspect_rest": "boolean", "channel": "text",
    "older_s": "float8", "newer_s": "float8", "older_at": "timestamptz",
    "newer_at": "timestamptz", "priority_min": "integer", "priority_max": "integer",
} | dict.fromkeys(
    (
        "errors", "outputs", "logs", "kinds", "queues", "states", "outcomes", "paths", "values", "texts", "tags",
        "arg_paths", "arg_values", "metadata_paths", "metadata_values",
    ), "text[]"
)
