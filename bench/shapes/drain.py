"""A backlog of no-op jobs, drained: what the queue itself costs; beside it what PostgreSQL alone would need."""

from __future__ import annotations

from functools import partial

from ..limits import DRAINS
from ..measure import Round, drain, drained, fresh
from ..plan import Bench, Cell, Shape
from ..statements import counted
from ..system import System

COUNTED_JOBS = 20_000


def shape(bench: Bench) -> Shape:
    """All systems and all limits."""
    counted_statements: dict[str, float] = {}
    cells = [
        Cell(name, system.described.title, partial(_run, bench, system, counted_statements))
        for name, system in bench.systems.items()
    ]
    if "wqcore" in bench.systems:
        cells += [
            Cell(name, limit.title, partial(limit.run, bench.cluster, bench.systems["wqcore"], bench.sizes.drain_jobs))
            for name, limit in DRAINS.items()
        ]
    return Shape(
        "drain",
        "Drain",
        "How fast is a backlog of no-op jobs worked off, and what does a job cost?",
        "jobs_s",
        "jobs/s",
        cells,
    )


def _run(bench: Bench, system: System, counted_statements: dict[str, float]) -> Round:
    if system.name not in counted_statements:
        counted_statements[system.name] = _statements_job(bench, system)
    round_ = drain(bench.cluster, system, bench.jobs(system))
    return round_ | {"statements_job": counted_statements[system.name]}


def _statements_job(bench: Bench, system: System) -> float:
    """Statements that a drain sends for each job: counted by a proxy in a run of its own, which is not timed."""
    jobs = max(100, min(bench.sizes.drain_jobs, int(COUNTED_JOBS * system.described.jobs_scale)))
    with fresh(bench.cluster, system) as database:
        with system.feeder(database.dsn) as feeder:
            feeder.insert(jobs)
        with counted(database.dsn) as counts:
            drained(database, system, jobs, dsn=counts.dsn)
            return counts.statements / jobs
