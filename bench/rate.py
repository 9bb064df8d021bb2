"""A real master that drains a backlog: its rate, and what a job costs it and PostgreSQL.

The rate is taken from the first claim to the moment when the backlog is done. WAL is that of claims, deletions and
history, not that of the insert.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from wqcore.settings import Settings

from .cluster import Cluster

POLL_S = 0.01
HELD = "select coalesce(sum(cardinality(ids)), 0) from wqcore.claim"
"""Asked while the drain runs: looking for a live row in a table full of dead ones would cost more than the drain."""
ROUND_LIMIT_S = 300.0


def drain_rate(
    server: Cluster, settings: Settings, jobs: int, finished: Callable[[], bool] | None = None
) -> dict[str, float]:
    """Starts a master and measures `jobs` jobs; `finished` says when they are done (default: no job is left)."""
    done = finished or (lambda: not server.scalar(HELD) and not server.scalar("select exists (select from wqcore.job)"))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.toml"
        config.write_text(_toml(settings, server.dsn))
        master = subprocess.Popen(
            [sys.executable, "-m", "wqcore", "--config", str(config)], stderr=subprocess.PIPE, cwd=Path.cwd()
        )
        try:
            _until(lambda: server.scalar(HELD), master)
            first = time.monotonic()
            cpu, wal = server.cpu_s(), server.wal_bytes()
            tree = [psutil.Process(master.pid), *psutil.Process(master.pid).children()]
            own = sum(sum(process.cpu_times()[:2]) for process in tree)
            _until(done, master)
            seconds = time.monotonic() - first
            own = sum(sum(process.cpu_times()[:2]) for process in tree) - own
            cpu, wal = server.cpu_s() - cpu, server.wal_bytes() - wal
        finally:
            master.terminate()
            master.wait(30)
    return {
        "jobs_s": jobs / seconds,
        "cpu_us_workers": own / jobs * 1e6,
        "cpu_us_postgresql": cpu / jobs * 1e6,
        "wal_bytes_job": wal / jobs,
    }


def _until(condition: Callable[[], object], master: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + ROUND_LIMIT_S
    while not condition():
        if master.poll() is not None:
            error = master.stderr.read().decode() if master.stderr else ""
            raise RuntimeError(f"the master ended with {master.returncode}: {error[-2000:]}")
        if time.monotonic() > end:
            raise RuntimeError(f"not done within {ROUND_LIMIT_S:g} s")
        time.sleep(POLL_S)


def _toml(settings: Settings, dsn: str) -> str:
    queue = settings.queues["default"]
    return (
        f"[database]\ndsn = {json.dumps(dsn)}\nmigrate = 'auto'\n"
        f"[process]\nhandlers = {json.dumps(settings.process.handlers)}\n"
        f"drain_timeout_s = {settings.process.drain_timeout_s}\n"
        f"[retention]\ncompleted_hours = {settings.retention.completed_hours}\n"
        f"[queues.default]\nworkers = {queue.workers}\nprocesses = {msgspec.json.encode(queue.processes).decode()}\n"
    )
