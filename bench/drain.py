"""Drains a backlog of typed no-ops with real masters, alternating with the bare protocol loop in the same run.

    python -m bench.drain [--jobs 200000] [--rounds 5] [--processes 2] [--no-history] [--json]

wqcore runs as users run it: master, keeper, workers, time-outs armed, counters on. Both drain the same backlog, freshly
vacuumed and checkpointed; a round's rate is taken from the first claim to the moment when no job is left. WAL is that of
claims, deletions and history, not that of the insert.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psutil
import typer

from wqcore.settings import Settings

from . import floor
from .cluster import Cluster, cluster, fill, program

POLL_S = 0.01
HELD = "select coalesce(sum(cardinality(ids)), 0) from wqcore.claim"
"""Asked while the drain runs: looking for a live row in a table full of dead ones would cost more than the drain."""
ROUND_LIMIT_S = 300.0


def main(
    jobs: Annotated[int, typer.Option(help="Jobs a round.")] = 200_000,
    rounds: Annotated[int, typer.Option(help="Rounds; each is a floor run and a wqcore run.")] = 5,
    processes: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    history: Annotated[bool, typer.Option(help="Keep completed jobs in the history.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Measures the drain and prints medians, spread and the ratio to the floor."""
    found: list[dict[str, Any]] = []
    with cluster() as server:
        settings = program(processes, history=history)
        for number in range(rounds + 1):
            insert_s = fill(server, settings, jobs)
            server.settle()
            bare = floor.drain(server, processes, history=history)
            server.conn.execute("truncate wqcore.history")
            fill(server, settings, jobs)
            server.settle()
            round_ = _drain(server, settings, jobs) | {"floor_jobs_s": bare, "insert_jobs_s": jobs / insert_s}
            server.conn.execute("truncate wqcore.history")
            if number == 0:
                _say(as_json, f"warm-up: floor {bare:,.0f} jobs/s, wqcore {round_['jobs_s']:,.0f} jobs/s (not counted)")
                continue
            found.append(round_ | {"ratio": round_["jobs_s"] / bare})
            _say(
                as_json,
                f"round {number}: floor {bare:,.0f} jobs/s, wqcore {round_['jobs_s']:,.0f} jobs/s, "
                f"ratio {found[-1]['ratio']:.2f}",
            )
        report = {
            "shape": "drain",
            "jobs": jobs,
            "processes": processes,
            "history": history,
            "rounds": found,
            "median": {key: statistics.median(round_[key] for round_ in found) for key in found[0]},
            "spread": {key: [min(r[key] for r in found), max(r[key] for r in found)] for key in found[0]},
            "postgresql": server.settings(),
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        }
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for key in (
        "floor_jobs_s",
        "jobs_s",
        "ratio",
        "cpu_us_workers",
        "cpu_us_postgresql",
        "wal_bytes_job",
        "insert_jobs_s",
    ):
        low, high = report["spread"][key]  # type: ignore[index]
        print(f"{key:18} median {report['median'][key]:>12,.2f}   from {low:,.2f} to {high:,.2f}")  # type: ignore[index]
    print("PostgreSQL:", report["postgresql"])


def _drain(server: Cluster, settings: Settings, jobs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.toml"
        config.write_text(_toml(settings, server.dsn))
        master = subprocess.Popen(
            [sys.executable, "-m", "wqcore", "--config", str(config)], stderr=subprocess.PIPE, cwd=Path.cwd()
        )
        try:
            _until(lambda: server.scalar(HELD), master)
            first, first_left = time.monotonic(), jobs
            cpu, wal = server.cpu_s(), server.wal_bytes()
            tree = [psutil.Process(master.pid), *psutil.Process(master.pid).children()]
            own = sum(sum(process.cpu_times()[:2]) for process in tree)
            _until(
                lambda: not server.scalar(HELD) and not server.scalar("select exists (select from wqcore.job)"), master
            )
            seconds = time.monotonic() - first
            own = sum(sum(process.cpu_times()[:2]) for process in tree) - own
            cpu, wal = server.cpu_s() - cpu, server.wal_bytes() - wal
        finally:
            master.terminate()
            master.wait(30)
    return {
        "jobs_s": first_left / seconds,
        "cpu_us_workers": own / first_left * 1e6,
        "cpu_us_postgresql": cpu / first_left * 1e6,
        "wal_bytes_job": wal / first_left,
    }


def _say(silent: bool, text: str) -> None:
    if not silent:
        print(text, flush=True)


def _until(condition: Any, master: subprocess.Popen[bytes]) -> None:
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
        f"[retention]\ncompleted_hours = {settings.retention.completed_hours}\n"
        f"[queues.default]\nworkers = {queue.workers}\nprocesses = {msgspec.json.encode(queue.processes).decode()}\n"
    )


if __name__ == "__main__":
    typer.run(main)
