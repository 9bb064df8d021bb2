"""PostgreSQL's disk is full, and then it is not: callers are told so, workers wait, nothing is lost and nothing runs twice."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest

import wqcore
from tests.chaos.cluster import Cluster, _initialised
from tests.fix_master import World, ready, until
from tests.fix_tmpfs import Tmpfs
from wqcore import settings
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.db.connect import Connection

FAILURES_SEEN = 6
FULL_S = 3.0
"""How long the disk stays full once that is noticed: a loop without delays shows in less."""
INSERTS_MAX = 3000


class Nap(msgspec.Struct):
    """The kind of fix_master, with room for more."""

    s: float = 0.0
    pad: str = ""


CATALOG = Catalog()
CATALOG.declare(
    Kind("nap", Nap, queue="default", serial_key=None, priority=1, max_attempts=5, timeout_s=60, backoff=river,
         planned=False)
)  # fmt: skip


@contextmanager
def server(data: Path, wal: Path) -> Iterator[Cluster]:
    """A server whose data are in the folder `data`, and whose write-ahead log is in `wal`."""
    folder = data / "pg"
    _initialised(folder)
    owner = folder.stat()
    shutil.move(folder / "pg_wal", wal / "pg_wal")
    for path in (wal / "pg_wal", *(wal / "pg_wal").rglob("*")):  # what is moved to another disk is copied, by us
        os.chown(path, owner.st_uid, owner.st_gid)
    (folder / "pg_wal").symlink_to(wal / "pg_wal")
    cluster = Cluster(data)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder on a disk with room, which another user may reach."""
    folder = Path(tempfile.mkdtemp(prefix="wq-fault-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def at_work(cluster: Cluster, folder: Path) -> Iterator[tuple[World, wqcore.SyncClient]]:
    """A master and a client."""
    world = World(folder, cluster.dsn)
    try:
        world.start(world.configure())
        ready(world)
        with wqcore.SyncClient(settings.load(folder / "wq.toml", environ={}), catalog=CATALOG) as client:
            yield world, client
    finally:
        world.stop()


def failures(world: World) -> list[str]:
    """The lines in which the worker and the keeper say that they try again."""
    return [line for line in world.log().splitlines() if "trying again in" in line]


def connect_again(world: World) -> Connection:
    world.conn.close()
    world.conn = psycopg.connect(world.dsn, autocommit=True)
    return world.conn


def test_on_a_full_disk_inserts_are_refused_workers_wait_and_all_goes_on_when_there_is_room(
    new_tmpfs: Callable[[int], Tmpfs], room: Path, tmp_path: Path
) -> None:
    disk = new_tmpfs(110)
    with server(disk.folder, room) as cluster, at_work(cluster, tmp_path) as (world, client):
        acknowledged = int(client.insert_many(Nap(0.05, "x" * 1500) for _ in range(1200)))
        until(lambda: len(world.runs()) > 20, "jobs run")
        disk.fill()
        with pytest.raises(wqcore.DiskFull, match=r"no room left.*nothing was written.*No space left on device"):
            for _ in range(INSERTS_MAX):
                client.insert(Nap(pad="x" * 500))
                acknowledged += 1
        with pytest.raises(wqcore.DiskFull):
            client.insert_many(Nap(pad="x" * 5000) for _ in range(100))
        began, before = time.monotonic(), len(failures(world))
        until(
            lambda: (
                # a new connection is refused as well, when its server process cannot write what it caches
                sum("No space left on device" in line for line in failures(world)) >= FAILURES_SEEN
                and time.monotonic() > began + FULL_S
            ),
            "it is noticed", 40,
        )  # fmt: skip
        assert len(failures(world)) - before <= at_most_in(time.monotonic() - began), "a tight loop"
        disk.free()
        until(lambda: world.outcomes().get("completed") == acknowledged, "all jobs are completed", 60)
        judge(world)


def test_a_full_disk_for_the_log_crashes_postgresql_and_nothing_that_was_acknowledged_is_lost(
    new_tmpfs: Callable[[int], Tmpfs], room: Path, tmp_path: Path
) -> None:
    disk = new_tmpfs(40)
    with server(room, disk.folder) as cluster, at_work(cluster, tmp_path) as (world, client):
        acknowledged = int(client.insert_many(Nap(0.05) for _ in range(600)))
        until(lambda: len(world.runs()) > 20, "jobs run")
        disk.fill()
        pad = os.urandom(60_000).hex()
        with pytest.raises(wqcore.DatabaseUnavailable):
            for _ in range(INSERTS_MAX):
                client.insert(Nap(pad=pad))
                acknowledged += 1
        [said] = room.glob("*.log")
        log = said.read_text(errors="replace")
        assert "PANIC" in log, "PostgreSQL did not crash, so this shows nothing"
        began, before = time.monotonic(), len(failures(world))
        until(
            lambda: len(failures(world)) - before >= FAILURES_SEEN and time.monotonic() > began + FULL_S, "it is noticed", 40
        )
        assert len(failures(world)) - before <= at_most_in(time.monotonic() - began), "a tight loop"
        disk.free()
        # recovery writes to the log as well, so it may have ended the server: whoever runs it starts it again
        if cluster.process is not None and cluster.process.poll() is not None:
            cluster.start()
        until(lambda: can_connect(world), "PostgreSQL is back", 40)
        until(lambda: not world.scalar("select count(*) from wqcore.job"), "all jobs are done", 60)
        assert acknowledged <= world.outcomes()["completed"] <= acknowledged + 1
        judge(world)


def at_most_in(seconds: float) -> float:
    """How often two processes fail that begin with 0.05 s, double it and wait 1.75 s in the end, all 30 % shorter."""
    return 2 * (8 + seconds / (1.75 * 0.7))


def can_connect(world: World) -> bool:
    try:
        connect_again(world)
    except psycopg.OperationalError:
        return False
    return True


def judge(world: World) -> None:
    assert world.scalar("select count(*) from wqcore.job") == 0
    assert world.scalar("select count(*) - count(distinct id) from wqcore.history") == 0
    assert world.scalar("select max(deaths) from wqcore.history") == 0
    assert set(world.runs().values()) == {1}
    assert "Traceback" not in world.log()


