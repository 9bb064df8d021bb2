"""The masters, as their heartbeats show them; and asking one, from any machine, to drain.

A request to drain is a mark in the master's row. Its keeper reads it with the next heartbeat, within `beat_interval_s`, and
the drain is the one that TERM begins. A master that is gone reads nothing; its row is removed by the next keeper that
looks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import msgspec

from wqcore.db.request import Query, Request
from wqcore.errors import UnknownMaster


class RunningJob(msgspec.Struct, frozen=True):
    """A job that a worker ran at the last heartbeat."""

    id: int
    attempt: int
    """1 for the first."""
    kind: str
    for_s: float


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process at the last heartbeat of its master.

    Attributes:
        pid (int | None): None of a master of an older release.
        queue (str | None): None before it has registered.
        state (str): starting, working or draining.
        seats (int), running (int), held (int): jobs that it can run at a time, runs, and has claimed.
        completed (int), failed (int), completed_per_s (float), failed_per_s (float): since its start, and lately.
        memory_bytes (int | None): its share of memory (PSS).
        silent_s (float): how long its event loop had not turned.
        jobs (list of RunningJob): the running ones, longest first; at most 500.
    """

    shard: str
    pid: int | None
    queue: str | None
    state: str
    seats: int
    running: int
    held: int
    completed: int
    failed: int
    completed_per_s: float
    failed_per_s: float
    memory_bytes: int | None
    silent_s: float
    jobs: list[RunningJob]


class MasterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A master.

    Attributes:
        id (str), host (str), pid (int), group (str | None), version (str): who it is; no group: all queues.
        started_at (datetime): by the database's clock.
        beat_age_s (float): how long ago it was heard of.
        drain_asked_at (datetime | None): when somebody asked it, through the database, to drain.
        keeper_pid (int | None): None of a master of an older release.
        workers (list of WorkerInfo): by queue and pid.
    """

    id: str
    host: str
    pid: int
    group: str | None
    version: str
    started_at: dt.datetime
    beat_age_s: float
    drain_asked_at: dt.datetime | None
    keeper_pid: int | None
    workers: list[WorkerInfo]

    @property
    def running(self) -> int:
        """Jobs that run on it."""
        return sum(worker.running for worker in self.workers)


def masters() -> Request[list[MasterInfo]]:
    """All masters, by host and start."""
    return [_info(*row) for row in (yield Query("masters"))]


def ask_to_drain(ids: Iterable[str]) -> Request[list[str]]:
    """Asks masters to drain; the ids of those that are there."""
    return [found for (found,) in (yield Query("master_drain", {"ids": list(ids)}))]


def named(known: list[MasterInfo], targets: Iterable[str]) -> list[MasterInfo]:
    """The masters that are meant by a host, a pid, HOST:PID, or the beginning of an id. Raises UnknownMaster."""
    found: dict[str, MasterInfo] = {}
    for target in targets:
        meant = [one for one in known if target in (one.host, f"{one.host}:{one.pid}")]
        if not meant and target.isascii() and target.isdecimal():
            meant = [one for one in known if one.pid == int(target)]
            if len(meant) > 1:
                names = ", ".join(f"{one.host}:{one.pid}" for one in meant)
                raise UnknownMaster(f"pid {target} is that of several masters: say {names}")
        if not meant and len(target) >= 4:
            meant = [one for one in known if one.id.startswith(target.lower())]
            if len(meant) > 1:
                raise UnknownMaster(f"several masters have an id that begins with {target!r}: write more of it")
        if not meant:
            names = ", ".join(f"{one.host}:{one.pid}" for one in known) or "none"
            raise UnknownMaster(
                f"no master is called {target!r} (a host, a pid, HOST:PID, or 4 digits of an id); known: {names}"
            )
        found |= {one.id: one for one in meant}
    return list(found.values())


def _info(
    id_: str,
    host: str,
    pid: int,
    group: str | None,
    version: str,
    started_at: dt.datetime,
    beat_age_s: float,
    drain_asked_at: dt.datetime | None,
    report: dict[str, Any],
    shards: dict[str, dict[str, Any]],
) -> MasterInfo:
    reported = report.get("shards", {})
    workers = [_worker(shard, shards.get(shard, {}), reported.get(shard, {})) for shard in {**shards, **reported}]
    return MasterInfo(
        id=id_,
        host=host,
        pid=pid,
        group=group,
        version=version,
        started_at=started_at,
        beat_age_s=round(beat_age_s, 2),
        drain_asked_at=drain_asked_at,
        keeper_pid=report.get("keeper", {}).get("pid"),
        workers=sorted(workers, key=lambda worker: (worker.queue or "", worker.pid or 0)),
    )


def _worker(shard: str, registered: dict[str, Any], told: dict[str, Any]) -> WorkerInfo:
    jobs = [RunningJob(job, attempt + 1, kind, for_s) for job, attempt, kind, for_s in told.get("running", [])]
    return WorkerInfo(
        shard=shard,
        pid=told.get("pid") or None,
        queue=registered.get("queue"),
        state=told.get("state", "working") if told else "registered",
        seats=told.get("workers", 0),
        running=told.get("running_count", 0),
        held=registered.get("held", 0),
        completed=told.get("completed", 0),
        failed=told.get("failed", 0),
        completed_per_s=told.get("completed_per_s", 0.0),
        failed_per_s=told.get("failed_per_s", 0.0),
        memory_bytes=told.get("memory_bytes"),
        silent_s=told.get("silent_s", 0.0),
        jobs=sorted(jobs, key=lambda job: -job.for_s),
    )
