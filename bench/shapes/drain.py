"""A backlog of no-op jobs, drained: what the queue itself costs; beside it what PostgreSQL alone would need."""

from __future__ import annotations

from functools import partial

from ..limits import LIMITS
from ..measure import drain
from ..plan import Bench, Cell, Shape


def shape(bench: Bench) -> Shape:
    """All systems and all limits."""
    cells = [
        Cell(name, system.described.title, partial(drain, bench.cluster, system, bench.jobs(system)))
        for name, system in bench.systems.items()
    ]
    if "wqcore" in bench.systems:
        cells += [
            Cell(
                name, limit.title, partial(limit.drain, bench.cluster, bench.systems["wqcore"], bench.sizes.drain_jobs)
            )
            for name, limit in LIMITS.items()
        ]
    return Shape(
        "drain",
        "Drain",
        "How fast is a backlog of no-op jobs worked off, and what does a job cost?",
        "jobs_s",
        "jobs/s",
        cells,
    )
