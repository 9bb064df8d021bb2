"""What others do to the same database: an old snapshot, an idle transaction that has written, readers that scan.

An old snapshot keeps VACUUM, and the pruning of pages and of index entries, from removing any version of a row that died
after it was taken; an idle transaction that has written does the same and is the oldest running xid besides.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
from psycopg import sql

from ..cluster import Database
from ..errors import BenchError
from ..measure import Beside, Round, drain, steady
from ..plan import Bench, Cell, Shape
from ..system import System

READERS = 4
COMPARED = ("wqcore", "graphile_worker")
WINDOW_S = 5.0


@contextmanager
def old_snapshot(database: Database, system: System) -> Iterator[None]:
    """A transaction that took its snapshot before the first job was claimed."""
    with psycopg.connect(database.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


@contextmanager
def idle_writer(database: Database, system: System) -> Iterator[None]:
    """A transaction that has written a row and does nothing more."""
    with psycopg.connect(database.dsn) as conn:
        conn.execute("create table bench_elsewhere (id int)")
        conn.execute("insert into bench_elsewhere values (1)")
        yield
        conn.rollback()


@contextmanager
def readers(database: Database, system: System) -> Iterator[None]:
    """Connections that count the queue's table again and again, each in one snapshot for as long as it lasts."""
    stop, failed = threading.Event(), []
    count = sql.SQL("select count(*) from {}").format(sql.Identifier(*system.described.table.split(".")))

    def read() -> None:
        try:
            with psycopg.connect(database.dsn) as conn:
                conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                while not stop.is_set():
                    conn.execute(count)
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise BenchError(f"a reader beside {system.name} failed: {failed[0]}")


def snapshot(bench: Bench) -> Shape:
    """Drains with and without an old snapshot."""
    return _shape(
        bench, "old_snapshot", "Beside an old snapshot", "an open snapshot taken before the drain", old_snapshot
    )


def writer(bench: Bench) -> Shape:
    """Drains with and without an idle transaction that has written."""
    return _shape(
        bench, "idle_writer", "Beside an idle writing transaction", "an idle transaction that has written", idle_writer
    )


def scans(bench: Bench) -> Shape:
    """Drains with and without readers."""
    return _shape(
        bench,
        "readers",
        "Beside four scanning readers",
        f"{READERS} readers that count the table again and again, each in one snapshot,",
        readers,
    )


def _shape(bench: Bench, name: str, title: str, what: str, beside: Beside) -> Shape:
    cells = []
    for system in bench.only(*COMPARED):
        plain = partial(drain, bench.cluster, system, bench.jobs(system))
        cells += [
            Cell(system.name, f"{system.described.title}, beside it", partial(plain, beside=beside)),
            Cell(f"{system.name}_plain", f"{system.described.title}, alone", plain),
        ]
    return Shape(name, title, f"What does {what} do to a drain?", "jobs_s", "jobs/s", cells, rounds=bench.side_rounds)


def slope(bench: Bench) -> Shape:
    """Producer and workers for minutes beside one old snapshot: does the rate fall?"""
    found = Shape(
        "snapshot_slope",
        "Minutes beside an old snapshot",
        f"Does the rate of producer and workers fall over {bench.sizes.slope_s:g} s beside one open snapshot?",
        "last_to_first",
        "last fifth ÷ first fifth",
        [],
        rounds=1,
        x_title="seconds",
        y_title="jobs/s",
    )
    found.cells = [
        Cell(system.name, system.described.title, partial(_slope, bench, system, found))
        for system in bench.only(*COMPARED)
    ]
    return found


def _slope(bench: Bench, system: System, found: Shape) -> Round:
    round_, progress = steady(bench.cluster, system, bench.sizes.slope_s, beside=old_snapshot)
    window_ns = min(WINDOW_S, bench.sizes.slope_s / 5) * 1e9
    began = progress[0][0] + int(1e9)
    line, last = [], (began, 0)
    for at, total in progress:
        if at >= last[0] + window_ns:
            if last[1]:
                line.append([(at - began) / 1e9, (total - last[1]) / (at - last[0]) * 1e9])
            last = (at, total)
    found.series[system.described.title] = line
    fifth = max(1, len(line) // 5)
    first = sum(rate for _, rate in line[:fifth]) / fifth
    ended = sum(rate for _, rate in line[-fifth:]) / fifth
    return round_ | {"last_to_first": ended / first}
