"""More processes: with cores, more jobs a second; beyond the cores, the same CPU a job."""

from __future__ import annotations

from functools import partial

from ..measure import drain
from ..plan import Bench, Cell, Shape

PROCESSES = (1, 2, 4)
COMPARED = ("wqcore", "graphile_worker")


def shape(bench: Bench) -> Shape:
    """wqcore and Graphile Worker."""
    return Shape(
        "scale",
        "Number of processes",
        "What do 1, 2 and 4 worker processes drain, and does a job cost more with more of them?",
        "jobs_s",
        "jobs/s",
        [
            Cell(
                f"{system.name}_{processes}",
                f"{system.described.title}, {processes} process{'es' if processes > 1 else ''}",
                partial(drain, bench.cluster, system, bench.jobs(system), processes=processes),
            )
            for system in bench.only(*COMPARED)
            for processes in PROCESSES
        ],
        rounds=bench.side_rounds,
    )
