"""A PostgreSQL of the benchmark's own, made new for each run, with its durability on; and what it has spent.

Each queue that is measured gets a database of its own in it, made new for each round, so that no queue walks over what
another has left and all of them run on the same server within the same minutes.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from wqcore.db import embedded

from .errors import BenchError

FOLDER = Path(".wqcore/bench")
SETTINGS = {
    "shared_buffers": "'1GB'",
    "max_wal_size": "'8GB'",
    "checkpoint_timeout": "'30min'",
    "max_connections": "200",
}
SHOWN = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "data_checksums",
    "shared_buffers",
    "max_wal_size",
    "wal_compression",
    "autovacuum",
    "jit",
)


class Spent(NamedTuple):
    """What the server has spent since its start (commits: since the database was made)."""

    cpu_s: float
    wal_bytes: int
    commits: int

    def since(self, before: Spent) -> Spent:
        """What was spent between two readings."""
        return Spent(self.cpu_s - before.cpu_s, self.wal_bytes - before.wal_bytes, self.commits - before.commits)


class Cluster:
    """A running server."""

    def __init__(self, server: embedded.Embedded) -> None:
        self._server = server
        self._conn: psycopg.Connection[Any] = psycopg.connect(server.dsn, autocommit=True)

    @property
    def bin_path(self) -> Path:
        """The folder of the server's programs."""
        return self._server.bin_path

    def dsn(self, name: str) -> str:
        """The URI of a database, over the server's Unix socket."""
        at = conninfo_to_dict(self._server.dsn)
        return f"postgresql://{at['user']}:@/{name}?host={at['host']}"

    def settings(self) -> dict[str, str]:
        """The server settings that matter here."""
        rows = (
            (name, self._conn.execute(sql.SQL("show {}").format(sql.Identifier(name))).fetchone()) for name in SHOWN
        )
        return {name: str(row[0]) for name, row in rows if row is not None}

    def spent(self, name: str) -> Spent:
        """What the server has spent until now: CPU seconds of its processes, those that ended included, and WAL."""
        row = self._conn.execute(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, xact_commit::bigint"
            "  from pg_stat_database where datname = %s",
            (name,),
        ).fetchone()
        assert row is not None
        return Spent(self._cpu_s(), int(row[0]), int(row[1]))

    def _cpu_s(self) -> float:
        postmaster = psutil.Process(self._server.pid)
        while True:
            own = postmaster.cpu_times()
            found = own.user + own.system + own.children_user + own.children_system
            for child in postmaster.children():
                with suppress(psutil.NoSuchProcess):
                    found += sum(child.cpu_times()[:2])
            # a child that ends while this is read moves from the children to `own`: then all is read again
            if postmaster.cpu_times()[2:4] == own[2:4]:
                return float(found)

    @contextmanager
    def database(self, name: str) -> Iterator[Database]:
        """A new, empty database, dropped afterwards. What the last one has left to write is written before."""
        quoted = sql.Identifier(name)
        self._conn.execute(sql.SQL("drop database if exists {} with (force)").format(quoted))
        self._conn.execute(sql.SQL("create database {}").format(quoted))
        self._conn.execute("checkpoint")
        conn = psycopg.connect(self.dsn(name), autocommit=True)
        # What a benchmark asks while it measures must not be most of the work: a scan of a million waiting jobs a hundred
        # times a second took a third of the drain's rate.
        conn.execute("set enable_seqscan = off; set enable_bitmapscan = off")
        try:
            yield Database(self, name, conn)
        finally:
            conn.close()
            self._conn.execute(sql.SQL("drop database if exists {} with (force)").format(quoted))

    def close(self) -> None:
        """Closes the connection."""
        self._conn.close()


class Database:
    """A queue's database."""

    def __init__(self, cluster: Cluster, name: str, conn: psycopg.Connection[Any]) -> None:
        self.name = name
        self.dsn = cluster.dsn(name)
        self.cluster = cluster
        self.conn = conn

    def scalar(self, query: str, *params: Any) -> Any:
        """The first column of the first row."""
        row = self.conn.execute(query, params or None).fetchone()
        return row[0] if row else None

    def spent(self) -> Spent:
        """What the server has spent."""
        return self.cluster.spent(self.name)

    def settle(self) -> None:
        """Statistics and hint bits as a server has them that has run for a while.

        No checkpoint: each page touched after one is written whole into the WAL, which would hide what a job costs.
        """
        self.conn.execute("vacuum analyze")


@contextmanager
def cluster(version: int = 18) -> Iterator[Cluster]:
    """A fresh server in `.wqcore/bench`, removed afterwards. Raises BenchError when another benchmark runs here."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(
                "another benchmark is running in this folder, and two at once measure each other"
            ) from None
        with _server(version) as server:
            yield server


@contextmanager
def _server(version: int) -> Iterator[Cluster]:
    if (FOLDER / "pg").exists():  # a benchmark was killed: its server may still run
        embedded.start(FOLDER / "pg", version=version, delete_after=True).stop()
        shutil.rmtree(FOLDER / "pg", ignore_errors=True)
    server = embedded.start(FOLDER / "pg", version=version, settings=SETTINGS, delete_after=True)
    try:
        found = Cluster(server)
        try:
            yield found
        finally:
            found.close()
    finally:
        server.stop()
        shutil.rmtree(FOLDER / "pg", ignore_errors=True)
