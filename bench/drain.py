"""Drains a backlog of typed no-ops with real masters, alternating with the bare protocol loop in the same run.

    python -m bench.drain [--jobs 200000] [--rounds 5] [--processes 2] [--no-history] [--json]

wqcore runs as users run it: master, keeper, workers, time-outs armed, counters on. Both drain the same backlog, freshly
vacuumed and checkpointed; a round's rate is taken from the first claim to the moment when no job is left. WAL is that of
claims, deletions and history, not that of the insert.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import floor
from .cluster import cluster, fill, program
from .rate import drain_rate
from .report import report, show

SHOWN = (
    "floor_jobs_s",
    "jobs_s",
    "ratio",
    "cpu_us_workers",
    "cpu_us_postgresql",
    "wal_bytes_job",
    "insert_jobs_s",
)


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
            round_ = drain_rate(server, settings, jobs) | {"floor_jobs_s": bare, "insert_jobs_s": jobs / insert_s}
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
        told = report("drain", found, jobs=jobs, processes=processes, history=history, postgresql=server.settings())
    show(told, SHOWN, as_json=as_json)


def _say(silent: bool, text: str) -> None:
    if not silent:
        print(text, flush=True)


if __name__ == "__main__":
    typer.run(main)
