"""How one queue is measured once: a backlog drained, or a steady stream carried, in a new database.

A drain counts from the first handled job to the moment when no job is left: also the last acknowledgement is in the
database. Starting the workers is not counted; what they and PostgreSQL spend is, from the first job on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from .cluster import Cluster, Database, Spent
from .errors import BenchError
from .system import Feeder, System, Workers

DRAIN_LIMIT_S = 600.0
START_LIMIT_S = 60.0
STEADY_CHUNK = 1000
"""Jobs of one bulk insert of the producer."""
STEADY_BACKLOG = 10_000
"""The producer waits while this many of its jobs have not been handled."""
WARM_JOBS = 200

Round = dict[str, float]
Beside = Callable[[Database, System], AbstractContextManager[None]]


@contextmanager
def fresh(cluster: Cluster, system: System) -> Iterator[Database]:
    """A new database with the system's tables."""
    with cluster.database(f"bench_{system.name}") as database:
        system.setup(database.dsn)
        yield database


def drain(
    cluster: Cluster,
    system: System,
    jobs: int,
    *,
    processes: int = 0,
    concurrency: int = 0,
    wait_ms: float = 0.0,
    options: Mapping[str, float] | None = None,
    prepare: Callable[[Database], None] = lambda database: None,
    beside: Beside = lambda database, system: nullcontext(),
) -> Round:
    """Drains `jobs` jobs, inserted before with the feed's `options`; `beside` lasts as long as the drain."""
    with fresh(cluster, system) as database:
        prepare(database)
        before = database.spent()
        with system.feeder(database.dsn) as feeder:
            feeder.insert(jobs, **(options or {}))
        inserted = database.spent().since(before)
        database.settle()
        round_ = drained(
            database, system, jobs, processes=processes, concurrency=concurrency, wait_ms=wait_ms, beside=beside
        )
        round_["wal_bytes_insert"] = inserted.wal_bytes / jobs
        round_["wal_bytes_life"] = round_["wal_bytes_job"] + round_["wal_bytes_insert"]
        return round_


def drained(
    database: Database,
    system: System,
    jobs: int,
    *,
    processes: int = 0,
    concurrency: int = 0,
    wait_ms: float = 0.0,
    beside: Beside = lambda database, system: nullcontext(),
    finished: Callable[[], object] | None = None,
    dsn: str = "",
) -> Round:
    """Drains the `jobs` jobs that are there.

    `finished` says when, if others stay (default: when no job is left). The workers go over `dsn`, if that is another
    way to the database.
    """
    done = finished or (lambda: not database.scalar(system.described.any_unfinished))
    before = database.spent()
    with (
        beside(database, system),
        system.working(dsn or database.dsn, processes=processes, concurrency=concurrency, wait_ms=wait_ms) as workers,
    ):
        workers.until(workers.probes.handled, START_LIMIT_S)
        own, at_start, early = workers.cpu_s(), database.spent(), workers.probes.handled()
        workers.until(lambda: workers.probes.handled() >= jobs, DRAIN_LIMIT_S)
        workers.until(done, DRAIN_LIMIT_S)
        ended_ns = time.monotonic_ns()
        own = workers.cpu_s() - own
        spent = database.spent()
    commits = (
        database.spent().commits - before.commits
    )  # only now: sessions report theirs with a delay, or at their end
    if not done():
        raise BenchError(f"{system.name}: jobs came back after the drain had ended")
    counted = max(1, jobs - early)
    return {
        "jobs_s": jobs / (ended_ns - workers.probes.first_ns) * 1e9,
        "cpu_us_workers": own / counted * 1e6,
        "cpu_us_postgresql": spent.since(at_start).cpu_s / counted * 1e6,
        "wal_bytes_job": spent.since(before).wal_bytes / jobs,
        "commits_job": commits / jobs,
    }


def steady(
    cluster: Cluster,
    system: System,
    seconds: float,
    *,
    beside: Beside = lambda database, system: nullcontext(),
    warm_up_s: float = 1.0,
) -> tuple[Round, list[tuple[int, int]]]:
    """Producer and workers together: what they carry, and the progress (time in ns, jobs) behind that number."""
    with (
        fresh(cluster, system) as database,
        beside(database, system),
        system.feeder(database.dsn) as feeder,
        system.working(database.dsn) as workers,
    ):
        inserted = STEADY_CHUNK
        feeder.insert(inserted)
        workers.until(workers.probes.handled, START_LIMIT_S)
        began: tuple[float, int, float, Spent] | None = None
        end = time.monotonic() + warm_up_s
        while True:
            handled, now = workers.probes.handled(), time.monotonic()
            if now >= end:
                own, server = feeder.cpu_s() + workers.cpu_s(), database.spent()
                if began is not None:
                    break
                began, end = (now, handled, own, server), now + seconds
            if inserted - handled < STEADY_BACKLOG:
                feeder.insert(STEADY_CHUNK)
                inserted += STEADY_CHUNK
            else:
                time.sleep(0.001)
        done = handled - began[1]
        if not done:
            raise BenchError(f"{system.name} handled nothing for {seconds:g} s beside its producer")
        return {
            "jobs_s": done / (now - began[0]),
            "cpu_us_workers": (own - began[2]) / done * 1e6,
            "cpu_us_postgresql": server.since(began[3]).cpu_s / done * 1e6,
            "wal_bytes_job": server.since(began[3]).wal_bytes / done,
            "commits_job": server.since(began[3]).commits / done,
        }, workers.probes.progress()


def insert(cluster: Cluster, system: System, jobs: int) -> Round:
    """One bulk insert."""
    with fresh(cluster, system) as database, system.feeder(database.dsn) as feeder:
        feeder.insert(min(1000, jobs))
        before = database.spent()
        own = feeder.cpu_s()
        seconds = feeder.insert(jobs)
        spent = database.spent().since(before)
        return {
            "jobs_s": jobs / seconds,
            "cpu_us_workers": (feeder.cpu_s() - own) / jobs * 1e6,
            "cpu_us_postgresql": spent.cpu_s / jobs * 1e6,
            "wal_bytes_job": spent.wal_bytes / jobs,
        }


def percentile(rising: Sequence[float], percent: int) -> float:
    """The value that `percent` % of the values are below; they are in rising order."""
    return rising[min(len(rising) - 1, len(rising) * percent // 100)]


def warm(feeder: Feeder, workers: Workers) -> None:
    """Lets the workers handle some jobs, so that connections, plans and code paths are there."""
    feeder.insert(WARM_JOBS)
    workers.until(lambda: workers.probes.handled() >= WARM_JOBS, START_LIMIT_S)
