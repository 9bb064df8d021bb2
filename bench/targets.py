"""What a run should reach, on 2 cores; each is judged by the report, reached or not."""

from __future__ import annotations

from typing import Literal

from .report import Target


def _ratio(
    text: str,
    shape: str,
    system: str,
    against: str,
    goal: float,
    *,
    measure: str = "jobs_s",
    op: Literal[">=", "<="] = ">=",
) -> Target:
    return Target(shape, text, system, measure, "ratio", op, goal, against)


def _value(text: str, shape: str, system: str, measure: str, op: Literal[">=", "<="], goal: float) -> Target:
    return Target(shape, text, system, measure, "value", op, goal)


TARGETS = (
    _ratio("drain vs Graphile Worker, both deleting", "drain", "wqcore", "graphile_worker", 2.5),
    _ratio("drain with history kept vs Graphile Worker", "drain", "wqcore_history", "graphile_worker", 2.0),
    _ratio("drain vs the classic claim loop in pgbench", "drain", "wqcore", "pgbench_classic", 1.5),
    _ratio("steady vs Graphile Worker", "steady", "wqcore", "graphile_worker", 2.5),
    _ratio("bulk insert vs Graphile Worker", "bulk_insert", "wqcore", "graphile_worker", 3.0),
    _ratio("single awaited insert vs Graphile Worker", "single_insert", "wqcore", "graphile_worker", 2.0),
    _ratio("single awaited insert vs pgqueuer", "single_insert", "wqcore", "pgqueuer", 1.3),
    _ratio(
        "idle latency p50 vs Graphile Worker",
        "latency_idle",
        "wqcore",
        "graphile_worker",
        0.8,
        measure="p50_ms",
        op="<=",
    ),
    _ratio(
        "idle latency p99 vs Graphile Worker",
        "latency_idle",
        "wqcore",
        "graphile_worker",
        0.5,
        measure="p99_ms",
        op="<=",
    ),
    _ratio("drain vs our own bare loop", "drain", "wqcore", "floor", 0.75),
    _ratio("the same with history kept", "drain", "wqcore_history", "floor_history", 0.75),
    _ratio("drain beside an old snapshot vs without", "old_snapshot", "wqcore", "wqcore_plain", 0.9),
    _value(
        "minutes beside an old snapshot, last fifth vs first", "snapshot_slope", "wqcore", "last_to_first", ">=", 0.95
    ),
    _value("WAL a job, whole life", "drain", "wqcore", "wal_bytes_life", "<=", 500),
    _value("WAL a job, whole life, history kept", "drain", "wqcore_history", "wal_bytes_life", "<=", 800),
    _ratio(
        "CPU a job of workers, 4 processes vs 2",
        "scale",
        "wqcore_4",
        "wqcore_2",
        1.15,
        measure="cpu_us_workers",
        op="<=",
    ),
    _value("idle conf/prod.toml, whole tree, PSS", "idle", "wqcore", "pss_mb", "<=", 120),
    _value("idle conf/prod.toml, whole tree, CPU", "idle", "wqcore", "cpu_percent", "<=", 2),
)
