"""Producer and workers together: what a queue carries when both ask the same server for their work."""

from __future__ import annotations

from functools import partial

from ..measure import STEADY_BACKLOG, STEADY_CHUNK, Round, steady
from ..plan import Bench, Cell, Shape
from ..system import System

JOBS_SCALE_MIN = 0.1


def shape(bench: Bench) -> Shape:
    """All systems but those that would work for seconds on the first chunk of jobs."""
    return Shape(
        "steady",
        "Producer and workers together",
        f"How many jobs a second go through while they are inserted by {STEADY_CHUNK:,} at a time (at most "
        f"{STEADY_BACKLOG:,} wait)?",
        "jobs_s",
        "jobs/s",
        [
            Cell(name, system.described.title, partial(_run, bench, system))
            for name, system in bench.systems.items()
            if system.described.jobs_scale >= JOBS_SCALE_MIN
        ],
    )


def _run(bench: Bench, system: System) -> Round:
    return steady(bench.cluster, system, bench.sizes.steady_s)[0]
