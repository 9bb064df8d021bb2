"""What priorities and serial keys cost, beside the same drain without them."""

from __future__ import annotations

from functools import partial

from wqcore.client import SyncClient
from wqcore.line.insert import InsertOptions

from ..bench_handlers import BenchBlocked
from ..cluster import Database
from ..measure import Round, drain, drained, fresh
from ..plan import Bench, Cell, Shape
from ..system import System

PRIORITIES = 8
HOLD_S = 600.0
COMPARED = ("wqcore", "graphile_worker")


def priorities(bench: Bench) -> Shape:
    """wqcore and Graphile Worker."""
    return _shape(
        bench,
        "priorities",
        "Mixed priorities",
        f"What does a backlog of {PRIORITIES} priorities, evenly mixed, cost?",
        {"priorities": PRIORITIES},
    )


def keys(bench: Bench) -> Shape:
    """wqcore and Graphile Worker, each job with a serial key of its own (100,000 at a full run)."""
    count = max(200, bench.sizes.drain_jobs // 2)
    return _shape(
        bench, "serial_keys", "Serial keys", f"What do {count:,} keys, a job each, cost?", {"keys": count}, jobs=count
    )


def _shape(
    bench: Bench, name: str, title: str, question: str, options: dict[str, float], jobs: int | None = None
) -> Shape:
    cells = []
    for system in bench.only(*COMPARED):
        if not set(options) <= set(system.described.feed_options):
            continue
        count = jobs or bench.jobs(system)
        plain = partial(drain, bench.cluster, system, count)
        cells += [
            Cell(system.name, f"{system.described.title}, {title.lower()}", partial(plain, options=options)),
            Cell(f"{system.name}_plain", f"{system.described.title}, without", plain),
        ]
    return Shape(name, title, question, "jobs_s", "jobs/s", cells, rounds=bench.side_rounds)


def blocked(bench: Bench) -> Shape:
    """wqcore: free jobs behind many that wait for two busy keys."""
    free = max(200, bench.sizes.drain_jobs // 4)
    cells = []
    for system in bench.only("wqcore"):
        cells += [
            Cell("wqcore", "behind blocked jobs", partial(_behind_blocked, bench, system, free * 2, free)),
            Cell("wqcore_plain", "alone", partial(drain, bench.cluster, system, free)),
        ]
    return Shape(
        "blocked_keys",
        "Behind blocked keys",
        f"How fast are {free:,} free jobs drained behind {free * 2:,} that wait for two busy keys?",
        "jobs_s",
        "jobs/s",
        cells,
        rounds=bench.side_rounds,
    )


def _behind_blocked(bench: Bench, system: System, blocked: int, free: int) -> Round:
    with fresh(bench.cluster, system) as database:
        with SyncClient(dsn=database.dsn) as client:
            # two hold their keys, above all others; those behind them stand before the free ones
            client.insert_many((BenchBlocked(key, HOLD_S), InsertOptions(priority=3)) for key in range(2))
            client.insert_many(BenchBlocked(number % 2) for number in range(blocked))
        with system.feeder(database.dsn) as feeder:
            feeder.insert(free)
        database.settle()
        first = int(database.scalar("select min(id) from wqcore.job where kind = 'benchNoop'"))
        return drained(database, system, free, finished=partial(_none_from, database, first))


def _none_from(database: Database, first: int) -> bool:
    return not database.scalar("select exists (select from wqcore.job where id >= %s)", first)
