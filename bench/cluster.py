"""A PostgreSQL of the benchmark's own, made new for each run, with its durability on, and the CPU time it has used."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from wqcore import launch
from wqcore.client import Item, SyncClient
from wqcore.db import embedded
from wqcore.settings import Database, Process, Queue, Retention, Settings

from .bench_handlers import BenchNoop

FOLDER = Path(".wqcore/bench")
SETTINGS = {
    "shared_buffers": "'1GB'",
    "max_wal_size": "'8GB'",
    "checkpoint_timeout": "'30min'",
    "max_connections": "100",
}
SHOWN = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "wal_compression")


class Cluster:
    """A running server and what a benchmark asks of it."""

    def __init__(self, server: embedded.Embedded) -> None:
        self.server = server
        self.dsn = server.dsn
        self.conn: psycopg.Connection[Any] = psycopg.connect(self.dsn, autocommit=True)
        # What a benchmark asks while it measures must not be most of the work: a scan of a million waiting jobs a hundred
        # times a second took a third of the drain's rate.
        self.conn.execute("set enable_seqscan = off; set enable_bitmapscan = off")

    def scalar(self, query: str, *params: Any) -> Any:
        """The first column of the first row."""
        row = self.conn.execute(query, params).fetchone()
        return row[0] if row else None

    def settings(self) -> dict[str, str]:
        """The server settings that matter here."""
        return {name: str(self.scalar(f"show {name}")) for name in SHOWN}

    def cpu_s(self) -> float:
        """CPU seconds that the server's processes have used since the start, those that ended included."""
        postmaster = psutil.Process(self.server.pid)
        own = postmaster.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in postmaster.children():
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return float(total)

    def wal_bytes(self) -> int:
        """The position in the WAL, in bytes."""
        return int(self.scalar("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))

    def settle(self) -> None:
        """Leaves no work of the last round to the next."""
        self.conn.execute("vacuum analyze")
        self.conn.execute("checkpoint")


def program(processes: int, *, history: bool, workers: int = 100, drain_timeout_s: float = 30.0) -> Settings:
    """The settings of the benchmarked wqcore."""
    return Settings(
        database=Database(embedded=False, migrate="auto"),
        process=Process(handlers=["bench.bench_handlers"], drain_timeout_s=drain_timeout_s),
        retention=Retention() if history else Retention(completed_hours=0, cancelled_hours=0),
        queues={"default": Queue(workers=workers, processes=processes)},
    )


def fill(cluster: Cluster, settings: Settings, jobs: int, kind: Callable[[str], Item] = BenchNoop) -> float:
    """Inserts `jobs` no-ops in bulk, each made by `kind` from its id; returns the seconds it took."""
    launch.prepare(settings, cluster.dsn, lambda text: None)
    began = time.monotonic()
    with SyncClient(settings, dsn=cluster.dsn) as client:
        client.insert_many(kind(f"1b4e28ba-2fa1-11d2-883f-{number:012x}") for number in range(jobs))
    return time.monotonic() - began


@contextmanager
def cluster(version: int = 18) -> Iterator[Cluster]:
    """A fresh cluster in `.wqcore/bench`, removed afterwards."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    server = embedded.start(FOLDER / "pg", version=version, settings=SETTINGS, delete_after=True)
    found = Cluster(server)
    try:
        yield found
    finally:
        found.conn.close()
        server.stop()
        shutil.rmtree(FOLDER / "pg", ignore_errors=True)
