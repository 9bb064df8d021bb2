"""Inserting: in bulk, and one job after the other as a web request does it."""

from __future__ import annotations

from functools import partial

from ..limits import INSERTS
from ..measure import Round, fresh, insert
from ..plan import Bench, Cell, Shape
from ..system import System


def bulk(bench: Bench) -> Shape:
    """All systems that insert differently: what is kept of finished jobs does not matter here."""
    return Shape(
        "bulk_insert",
        "Bulk insert",
        "How fast are many jobs inserted by the queue's fastest documented call?",
        "jobs_s",
        "jobs/s",
        [
            Cell(name, system.described.title, partial(insert, bench.cluster, system, _jobs(bench, system)))
            for name, system in bench.systems.items()
            if not name.endswith("_history")
        ],
    )


def single(bench: Bench) -> Shape:
    """The same systems."""
    cells = [
        Cell(name, system.described.title, partial(_single, bench, system))
        for name, system in bench.systems.items()
        if not name.endswith("_history")
    ]
    if "wqcore" in bench.systems:
        cells += [
            Cell(name, limit.title, partial(limit.run, bench.cluster, bench.systems["wqcore"], bench.sizes.single))
            for name, limit in INSERTS.items()
        ]
    return Shape(
        "single_insert",
        "Single awaited insert",
        "How many jobs a second does one client insert that waits for each to be committed?",
        "jobs_s",
        "jobs/s",
        cells,
    )


def _single(bench: Bench, system: System) -> Round:
    with fresh(bench.cluster, system) as database:
        before = database.spent()
        seconds = system.single(database.dsn, bench.sizes.single)
        spent = database.spent().since(before)
        return {
            "jobs_s": bench.sizes.single / seconds,
            "cpu_us_postgresql": spent.cpu_s / bench.sizes.single * 1e6,
            "wal_bytes_job": spent.wal_bytes / bench.sizes.single,
            "commits_job": spent.commits / bench.sizes.single,
        }


def _jobs(bench: Bench, system: System) -> int:
    return max(200, int(bench.sizes.insert_jobs * min(1.0, system.described.jobs_scale * 10)))
