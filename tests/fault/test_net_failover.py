"""A primary dies and its standby is promoted: workers and clients find it by themselves, and what was acknowledged is done."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import wqcore
from tests.chaos.cluster import Cluster
from tests.fix_cluster import NewCluster, admin, either
from tests.fix_master import World, ready, until
from wqcore import load
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind


class Nap(msgspec.Struct):
    s: float = 0.0
    group: str | None = None


CATALOG = Catalog()
CATALOG.declare(
    Kind("nap", Nap, queue="default", serial_key=None, priority=1, max_attempts=5, timeout_s=60, backoff=river, planned=False)
)


@pytest.fixture
def pair(new_cluster: NewCluster) -> tuple[Cluster, Cluster]:
    """A primary that acknowledges what its standby has on disk, and that standby."""
    primary = new_cluster(settings={"synchronous_standby_names": "*"})
    standby = new_cluster("standby", copy_of=primary)
    with admin(primary) as conn:
        until(
            lambda: conn.execute("select count(*) from pg_stat_replication where sync_state = 'sync'").fetchone() == (1,),
            "the standby streams",
        )
    return primary, standby


class Inserting(threading.Thread):
    """Inserts one job after the other until told to stop; `acknowledged` has the ids that it was told."""

    def __init__(self, settings: wqcore.Settings) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[int] = []
        self.failures = 0
        self.enough = threading.Event()
        self._settings = settings

    def run(self) -> None:
        with wqcore.SyncClient(self._settings, catalog=CATALOG) as client:
            while not self.enough.is_set():
                try:
                    self.acknowledged.append(int(client.insert(Nap(0.01))))
                except wqcore.DatabaseUnavailable:
                    self.failures += 1
                    time.sleep(0.1)  # as a caller does that tries again


def test_a_promoted_standby_is_found_and_every_acknowledged_job_is_completed(
    pair: tuple[Cluster, Cluster], tmp_path: Path
) -> None:
    primary, standby = pair
    with admin(primary) as conn:
        conn.execute("create database jobs")
    hosts = either(standby, primary, database="jobs")  # the first one is the standby, so that it must be passed over
    world = World(tmp_path, make_conninfo(hosts, target_session_attrs="read-write"))
    try:
        config = world.configure(database={"dsn": hosts, "connect_timeout_s": 2})
        world.start(config)
        ready(world)
        inserting = Inserting(load(config, environ={}))
        inserting.start()
        until(lambda: world.outcomes().get("completed", 0) > 50, "jobs are completed")
        primary.crash()
        began = time.monotonic()
        until(lambda: world.log().count("trying again") >= 6, "shard and keeper look for another")
        with psycopg.connect(standby.dsn, autocommit=True) as conn:
            assert conn.execute("select pg_promote(wait => true)").fetchone() == (True,)
        world.conn = psycopg.connect(world.dsn, autocommit=True)
        before = len(inserting.acknowledged)
        until(lambda: len(inserting.acknowledged) > before + 20, "the client inserts again")
        tried, lasted = world.log().count("trying again"), time.monotonic() - began
        inserting.enough.set()
        inserting.join(30)
        until(lambda: world.scalar("select count(*) from wqcore.job") == 0, "all jobs have ended", 60)
        assert tried <= 8 * lasted + 12
        assert inserting.failures
        lost = world.scalar(
            "select array_agg(id) from unnest(%s::bigint[]) id where not exists "
            "(select from wqcore.history h where h.id = any (array[id]) and outcome = 'completed')",
            inserting.acknowledged,
        )
        assert lost is None
        assert world.scalar("select count(*) - count(distinct id) from wqcore.history") == 0
        assert world.scalar("select max(deaths) from wqcore.history") == 0
        assert "Traceback" not in world.log()
    finally:
        world.stop()


class Lagging(NamedTuple):
    """A master, and a client, on a primary whose standby hears nothing of it any more, but knows the shard."""

    world: World
    master: subprocess.Popen[bytes]
    client: wqcore.SyncClient
    primary: Cluster
    standby: Cluster

    def promote(self) -> None:
        with psycopg.connect(self.standby.dsn, autocommit=True) as conn:
            assert conn.execute("select pg_promote(wait => true)").fetchone() == (True,)
        self.world.conn = psycopg.connect(self.world.dsn, autocommit=True)

    def until_done(self) -> None:
        until(lambda: self.world.scalar("select count(*) from wqcore.job") == 0, "all have ended")

    def inserted(self) -> list[int]:
        """Ids of ten new jobs; none while there is no server."""
        try:
            return [int(self.client.insert(Nap())) for _ in range(10)]
        except wqcore.DatabaseUnavailable:
            return []


@pytest.fixture
def lagging(new_cluster: NewCluster, tmp_path: Path) -> Iterator[Lagging]:
    primary = new_cluster()
    with admin(primary) as conn:
        conn.execute("create database jobs")
    standby = new_cluster("standby", copy_of=primary)
    hosts = either(standby, primary, database="jobs")
    world = World(tmp_path, make_conninfo(hosts, target_session_attrs="read-write"))
    try:
        config = world.configure(database={"dsn": hosts, "connect_timeout_s": 2}, queues__default={"poll_interval_s": 0.2})
        master = world.start(config)
        ready(world)
        with admin(standby) as conn:
            until(lambda: has_shard(standby), "the standby knows the shard")
            conn.execute("alter system set primary_conninfo = ''")
            conn.execute("select pg_reload_conf()")
            until(lambda: conn.execute("select count(*) from pg_stat_wal_receiver").fetchone() == (0,), "it streams no more")
        with wqcore.SyncClient(load(config, environ={}), catalog=CATALOG) as client:
            yield Lagging(world, master, client, primary, standby)
    finally:
        world.stop()


def has_shard(standby: Cluster) -> bool:
    with psycopg.connect(make_conninfo(standby.dsn, dbname="jobs"), autocommit=True) as conn:
        row = conn.execute("select count(*) from wqcore.slot where shard is not null").fetchone()
        return row is not None and row[0] > 0


def test_jobs_of_a_promoted_standby_that_had_not_got_all_run_though_their_ids_were_used_before(lagging: Lagging) -> None:
    """They stayed for ever: the shard went on from ids that it had read on the old primary."""
    end = time.monotonic() + 3
    while time.monotonic() < end:  # looks and turns, so that the floor goes up
        lagging.client.insert_many([Nap()] * 20)
        time.sleep(0.1)
    lagging.until_done()
    newest = lagging.world.scalar("select max(id) from wqcore.history")
    lagging.primary.crash()
    lagging.promote()
    again = until(lagging.inserted, "the client finds the standby")
    assert max(again) < newest, "no id was used before, so this shows nothing"
    lagging.until_done()
    assert {lagging.client.wait(job_id, timeout_s=5).state for job_id in again} == {"completed"}


def test_what_became_of_a_job_is_not_written_of_another_one_that_got_its_id(lagging: Lagging) -> None:
    """A worker acknowledged, on a promoted standby, jobs of the old primary: new ones with their ids ended without a run."""
    world = lagging.world
    lagging.client.insert_many([Nap()] * 50)  # beyond what a sequence has written ahead
    lagging.until_done()
    old = [int(lagging.client.insert(Nap(s))) for s in (0.5, 3.0)]
    until(lambda: set(old) <= world.runs().keys(), "both run")
    lagging.primary.crash()
    until(lambda: "trying again" in world.log(), "the worker has noticed")
    time.sleep(0.6)  # the first one ends meanwhile, and the other one runs
    tree = [psutil.Process(lagging.master.pid), *psutil.Process(lagging.master.pid).children(recursive=True)]
    for process in tree:
        process.suspend()
    lagging.promote()
    new = until(lagging.inserted, "the client finds the standby")
    while max(new) < max(old):
        new += lagging.inserted()
    assert set(old) <= set(new), "no id was given twice, so this shows nothing"
    for process in tree:
        process.resume()
    lagging.until_done()
    assert world.scalar("select count(*) from wqcore.history where id = any(%s)", new) == len(new)
    assert {job_id: world.runs().get(job_id) for job_id in old} == dict.fromkeys(old, 2), "each id ran twice: two jobs"
    assert "Traceback" not in world.log()
