"""Jobs that wait a millisecond, as jobs do that call something: how well the workers are kept busy."""

from __future__ import annotations

from functools import partial

from ..measure import drain
from ..plan import Bench, Cell, Shape

WAIT_MS = 1.0
WORKERS = (64, 256)
COMPARED = ("wqcore", "graphile_worker", "pgqueuer")


def shape(bench: Bench) -> Shape:
    """wqcore, Graphile Worker and pgqueuer; `concurrency` is each process's, so it is halved for two."""
    cells = []
    for workers in WORKERS:
        for system in bench.only(*COMPARED):
            concurrency = workers if system.described.forks else workers // system.described.processes
            cells.append(
                Cell(
                    f"{system.name}_{workers}",
                    f"{system.described.title}, {workers} workers",
                    partial(
                        drain,
                        bench.cluster,
                        system,
                        bench.jobs(system) // 2,
                        concurrency=concurrency,
                        wait_ms=WAIT_MS,
                    ),
                )
            )
    return Shape(
        "async_jobs",
        "Jobs that wait 1 ms",
        f"How many jobs a second that each wait {WAIT_MS:g} ms do {' and '.join(map(str, WORKERS))} workers do?",
        "jobs_s",
        "jobs/s",
        cells,
        rounds=bench.side_rounds,
    )
