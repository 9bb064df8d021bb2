"""From the moment when an insert has returned to the moment when the handler is entered.

Both times are of one clock. A handler can be entered before its inserter has its reply; such a time is negative.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from ..measure import START_LIMIT_S, Round, fresh, percentile, steady, warm
from ..plan import Bench, Cell, Shape
from ..system import Feeder, System

EVERY_MS = 20.0
COMPARED = ("wqcore", "graphile_worker", "pgqueuer")
LOAD_EVERY_S = 0.01
LOAD_PROBE_S = 2.0
"""How long each round finds out what a queue carries, half of which is its load."""


def idle(bench: Bench) -> Shape:
    """All systems, nothing else to do."""
    return _shape(
        bench,
        "latency_idle",
        "Latency, idle",
        "an idle queue",
        loaded=False,
        compared=set(bench.systems) - {"wqcore_history"},
    )


def half_load(bench: Bench) -> Shape:
    """wqcore, Graphile Worker and pgqueuer, beside a load of half of what each carries."""
    return _shape(
        bench,
        "latency_half_load",
        "Latency at half load",
        "a queue at half of what it carries",
        loaded=True,
        compared=COMPARED,
        rounds=bench.side_rounds,
    )


def _shape(
    bench: Bench,
    name: str,
    title: str,
    what: str,
    *,
    loaded: bool,
    compared: Collection[str],
    rounds: int | None = None,
) -> Shape:
    return Shape(
        name,
        title,
        f"How long after its insert returned does a job's handler start on {what} (one job per {EVERY_MS:g} ms)?",
        "p50_ms",
        "ms",
        [
            Cell(label, system.described.title, partial(_run, bench, system, loaded=loaded))
            for label, system in bench.systems.items()
            if label in compared
        ],
        better="lower",
        rounds=rounds,
    )


def _run(bench: Bench, system: System, *, loaded: bool) -> Round:
    count = bench.sizes.paced
    carried = steady(bench.cluster, system, LOAD_PROBE_S)[0]["jobs_s"] if loaded else 0.0
    with (
        fresh(bench.cluster, system) as database,
        system.feeder(database.dsn) as feeder,
        system.working(database.dsn) as workers,
    ):
        warm(feeder, workers)
        load: AbstractContextManager[None] = _load(feeder, carried / 2) if loaded else nullcontext()
        with load:
            returned = system.paced(database.dsn, count, EVERY_MS)
            entered = workers.entered(count, START_LIMIT_S)
    took_ms = sorted((entered[number] - at) / 1e6 for number, at in enumerate(returned))
    round_ = {f"p{percent}_ms": percentile(took_ms, percent) for percent in (50, 90, 99)}
    return round_ | {"max_ms": took_ms[-1]} | ({"load_jobs_s": carried / 2} if loaded else {})


@contextmanager
def _load(feeder: Feeder, jobs_s: float) -> Iterator[None]:
    """Inserts at a rate from a thread, by what is due each `LOAD_EVERY_S`."""
    stop = threading.Event()

    def feed() -> None:
        began, inserted = time.monotonic(), 0
        while not stop.wait(LOAD_EVERY_S):
            due = int((time.monotonic() - began) * jobs_s) - inserted
            if due > 0:
                feeder.insert(due)
                inserted += due

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
