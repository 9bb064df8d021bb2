"""Samples of a soak: memory of processes by role, and what the server has done between two samples.

Memory is read of the tree that nobody kills, where a leak has the whole run to show: USS of the master, of the keeper and,
on average, of a worker. The server's counters are differences between samples. A crash of PostgreSQL sets them to zero;
a difference over a crash is not known, so that sample has none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import psutil

from tests.chaos.masters import Master
from tests.chaos.world import SCHEMA, World

MB = 2**20

_COUNTERS = f"""
select (select sum(idx_tup_read - idx_tup_fetch) from pg_stat_user_indexes
         where schemaname = '{SCHEMA}' and relname = 'job')::bigint as dead_rows,
       (select heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit from pg_statio_user_tables
         where schemaname = '{SCHEMA}' and relname = 'job')::bigint as buffers,
       (select n_tup_ins from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'claim')::bigint as turns,
       (select n_tup_ins from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'job')::bigint as jobs,
       (select n_tup_ins from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'shard')::bigint as shards,
       (pg_current_wal_insert_lsn() - '0/0')::bigint as wal,
       extract(epoch from pg_postmaster_start_time())::float8 as server_since
"""
_STATE = f"""
select (select count(*) from pg_stat_activity where application_name ~ '^wqcore (keeper|.* shard )') as connections,
       (select count(*) from pg_stat_activity where application_name = 'wqcore client') as client_connections,
       (select n_dead_tup from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'job') as job_dead_rows,
       (select n_dead_tup from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'claim')
           as claim_dead_rows,
       -- not count(*): it walks over every dead row, and would be most of what is measured here
       (select n_live_tup from pg_stat_user_tables where schemaname = '{SCHEMA}' and relname = 'job') as job_rows,
       pg_total_relation_size('{SCHEMA}.job') / {MB}.0::float8 as job_mb,
       pg_total_relation_size('{SCHEMA}.claim') / {MB}.0::float8 as claim_mb,
       (select sum(pg_total_relation_size(relid)) from pg_partition_tree('{SCHEMA}.history')) / {MB}.0::float8
           as history_mb,
       coalesce((select extract(epoch from now() - min(xact_start))::float8 from pg_stat_activity
                  where application_name = 'old snapshot'), 0) as snapshot_s
"""


class Sample(msgspec.Struct, kw_only=True):
    """One sample; rates are of the time since the one before."""

    at_s: float
    master_uss_mb: float
    keeper_uss_mb: float
    worker_uss_mb: float
    trees_pss_mb: float
    processes: int
    descriptors: int
    connections: int
    client_connections: int
    job_rows: int
    job_dead_rows: int
    claim_dead_rows: int
    job_mb: float
    claim_mb: float
    history_mb: float
    snapshot_s: float
    shards_begun: int | None = None
    """Workers that have registered: each reads the slots that it gets from their heads."""
    dead_rows_per_turn: float | None = None
    dead_rows_per_turn_settled: float | None = None
    """The same, in samples in which no slot has got a new owner."""
    dead_rows_per_turn_moved: float | None = None
    """The same, in the others."""
    buffers_per_turn: float | None = None
    turns_per_s: float | None = None
    jobs_per_s: float | None = None
    wal_bytes_per_job: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    pulses: int = 0


class Sampler:
    """Takes samples of a World; `undisturbed` is the number of the master that nobody kills."""

    def __init__(self, world: World, undisturbed: int) -> None:
        self.samples: list[Sample] = []
        self._world = world
        self._undisturbed = undisturbed
        self.began = time.monotonic()
        self._before: tuple[float, Mapping[str, Any]] | None = None

    def sample(self) -> None:
        """Takes one."""
        at = time.monotonic()
        with self._world.connect() as conn:
            state = _first(conn, _STATE)
            counters = _first(conn, _COUNTERS)
        found = Sample(at_s=round(at - self.began, 2), **_memory(self._world, self._undisturbed), **state)
        if self._before is not None:
            _rates(found, at - self._before[0], self._before[1], counters)
        self._before = at, counters
        self.samples.append(found)


def _rates(found: Sample, seconds: float, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if now["server_since"] != before["server_since"]:
        return
    past = {name: now[name] - before[name] for name in ("dead_rows", "buffers", "turns", "jobs", "wal", "shards")}
    found.shards_begun = past["shards"]
    if past["turns"] > 0:
        found.dead_rows_per_turn = past["dead_rows"] / past["turns"]
        if found.shards_begun:
            found.dead_rows_per_turn_moved = found.dead_rows_per_turn
        else:
            found.dead_rows_per_turn_settled = found.dead_rows_per_turn
        found.buffers_per_turn = past["buffers"] / past["turns"]
    if past["jobs"] > 0:
        found.wal_bytes_per_job = past["wal"] / past["jobs"]
    found.turns_per_s, found.jobs_per_s = past["turns"] / seconds, past["jobs"] / seconds


def _memory(world: World, undisturbed: int) -> dict[str, Any]:
    master = world.masters[undisturbed]
    assert master is not None
    workers = [_uss(child) for child in master.children("worker")]
    keepers = [_uss(child) for child in master.children("keeper")]
    trees = [pid for each in world.masters if each is not None and each.alive() for pid in each.tree()]
    return {
        "master_uss_mb": _uss(psutil.Process(master.pid)),
        "keeper_uss_mb": sum(keepers) / max(1, len(keepers)),
        "worker_uss_mb": sum(workers) / max(1, len(workers)),
        "trees_pss_mb": sum(_pss(pid) for pid in trees),
        "processes": len(trees),
        "descriptors": _descriptors(master),
    }


def _uss(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / MB


def _pss(pid: int) -> float:
    """Of a process that may end at this moment: then nothing."""
    with suppress(psutil.Error):
        return float(psutil.Process(pid).memory_full_info().pss) / MB
    return 0.0


def _descriptors(master: Master) -> int:
    return sum(psutil.Process(pid).num_fds() for pid in master.tree())


def _first(conn: Any, query: str) -> dict[str, Any]:
    cursor = conn.execute(query)
    row = cursor.fetchone()
    return {column.name: value for column, value in zip(cursor.description, row, strict=True)}
