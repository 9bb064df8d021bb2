"""A server that crashes, freezes, refuses to write or is full is waited for, without haste; then everything goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import wqcore
from tests.chaos import load
from tests.chaos import world as chaos
from tests.chaos.cluster import Cluster
from tests.check.history import read
from tests.check.verdict import findings
from tests.fix_cluster import NewCluster, admin
from tests.fix_master import World, ready, until
from tests.fix_proxy import Proxy
from wqcore import launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.settings import Database, Queue, Settings

NewProxy = Callable[[str], Proxy]
CONNECTIONS_MAX = 300
OURS = "datname = current_database() and application_name like 'wqcore%%'"
UNTOUCHED = load.Mix(hopeless=0, cancel=0, reschedule=0, reprioritise=0)


class Mail(msgspec.Struct):
    to: int


CATALOG = Catalog()
CATALOG.declare(
    Kind(
        "mail", Mail, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
        planned=False,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    return module_cluster(settings={"max_connections": str(CONNECTIONS_MAX)})


@pytest.fixture
def own_world(cluster: Cluster, tmp_path: Path) -> Iterator[World]:
    """A World on a database of `cluster`, which the test may do things to."""
    name = f"w{time.monotonic_ns()}"
    with admin(cluster) as conn:
        conn.execute(f"create database {name}")
    world = World(tmp_path, make_conninfo(cluster.dsn, dbname=name))
    yield world
    world.stop()


@contextmanager
def under_load(dead_after_s: float) -> Iterator[chaos.World]:
    """Two masters and a client at work; afterwards the queue is drained and the checker finds nothing wrong."""
    settings = {"process": {"dead_after_s": dead_after_s}, "database": {"statement_timeout_s": 2.0}}
    with chaos.world(settings) as here:
        for number in range(chaos.MASTERS):
            here.start_master(number)
        here.wait_ready()
        client = load.Client(
            here.client_settings(), load.journal(here.folder), seed=f"{time.monotonic_ns()}", mix=UNTOUCHED, per_second=60
        )
        client.start()
        until(lambda: here.scalar("select count(*) from wqcore.history"), "jobs end")
        yield here
        client.finish()
        client.join(30)
        assert client.error is None
        assert here.drained(60)
        here.finish()
        history = read(here.folder)
        assert [str(finding) for finding in findings(history)] == []


def test_a_server_that_crashes_again_and_again_under_load_loses_nothing() -> None:
    with under_load(dead_after_s=4.0) as here:
        for _ in range(3):
            ended = here.scalar("select count(*) from wqcore.history")
            here.cluster.crash()
            here.cluster.start()
            until(lambda: here.scalar("select count(*) from wqcore.history") > ended, "jobs end again")  # noqa: B023


def test_a_server_that_was_frozen_for_longer_than_a_lease_is_not_taken_for_dead_masters() -> None:
    """Every heartbeat is old when it thaws; the keeper that was answered first rescued the shards of the others."""
    with under_load(dead_after_s=3.0) as here:
        young = "select count(*) from wqcore.process where started_at > now() - interval '5 seconds'"
        until(lambda: not here.scalar(young), "both keepers have beaten for long enough to judge")
        shards = here.scalar("select array_agg(id order by id) from wqcore.shard")
        here.cluster.freeze()
        here.proxies[1].silence()
        time.sleep(3.3)  # the length of the fault: longer than a lease, and no statement is given up
        here.cluster.thaw()
        time.sleep(1.5)  # the second master is answered so much later
        here.proxies[1].speak()
        goes_on(here)
        assert here.scalar("select array_agg(id order by id) from wqcore.shard") == shards
        assert here.scalar("select count(*) from wqcore.audit where deaths > 0") == 0


def goes_on(here: chaos.World) -> None:
    ended = here.scalar("select count(*) from wqcore.history")
    until(lambda: here.scalar("select count(*) from wqcore.history") > ended, "jobs end again")


def test_a_server_that_refuses_to_write_is_asked_again_without_haste(
    cluster: Cluster, own_world: World, new_proxy: NewProxy
) -> None:
    """After a first success each attempt to connect came 0.05 s after the last."""
    world, proxy = own_world, new_proxy(own_world.dsn)
    config = world.configure(database={"dsn": proxy.dsn, "connect_timeout_s": 2})
    world.start(config)
    ready(world)
    old = f"select count(*) from pg_stat_activity where {OURS} and backend_start < now() - interval '4 seconds'"
    settings = Settings(database=Database(dsn=world.dsn, connect_timeout_s=2), queues={"default": Queue()})
    with wqcore.SyncClient(settings, catalog=CATALOG) as client, admin(cluster) as conn:
        until(lambda: world.scalar(old) >= 2, "the connections of shard and keeper are not new")
        jobs = world.insert("nap", 400, {"s": 0.05})
        until(lambda: len(world.notes()) > 40, "jobs run")
        try:
            conn.execute("alter system set default_transaction_read_only = on")
            conn.execute("select pg_reload_conf()")
            until(lambda: world.log().count("session is read-only") >= 2, "shard and keeper are refused")
            with pytest.raises(wqcore.DatabaseUnavailable, match="read-only"):
                client.insert(Mail(1))
            accepted, began = proxy.accepted, time.monotonic()
            time.sleep(2)  # the length of the fault
            tried, lasted = proxy.accepted - accepted, time.monotonic() - began
        finally:
            conn.execute("alter system reset default_transaction_read_only")
            conn.execute("select pg_reload_conf()")
        assert 1 <= tried <= 4 * lasted + 4  # it was 20 a second
        until(lambda: world.outcomes().get("completed") == len(jobs), "all jobs are completed", 60)
        until(lambda: inserted(client), "the client inserts again")
    assert set(world.runs().values()) == {1}
    assert "Traceback" not in world.log()


def inserted(client: wqcore.SyncClient) -> bool:
    try:
        return client.insert(Mail(2)) > 0
    except wqcore.DatabaseUnavailable:
        return False


def test_a_server_without_a_free_connection_is_explained_and_waited_for(cluster: Cluster, own_world: World) -> None:
    world = own_world
    config = world.configure(database={"connect_timeout_s": 2})
    world.start(config)
    ready(world)
    jobs = world.insert("nap", 400, {"s": 0.05})
    until(lambda: len(world.notes()) > 40, "jobs run")
    settings = Settings(database=Database(dsn=world.dsn, connect_timeout_s=2), queues={"default": Queue()})
    with wqcore.SyncClient(settings, catalog=CATALOG) as client, ExitStack() as foreign:
        until(lambda: full(cluster, foreign) and not ours(world), "others have taken every connection")
        until(lambda: world.log().count("or raise max_connections") >= 2, "shard and keeper say what to do")
        for call in (client.insert, fresh_insert(settings)):
            with pytest.raises(wqcore.DatabaseUnavailable, match="too many clients already.*raise max_connections"):
                call(Mail(1))
        said = world.cli(config, "status")
        assert (said.returncode, "max_connections" in said.stderr) == (3, True)
        foreign.close()
        until(lambda: world.outcomes().get("completed") == len(jobs), "all jobs are completed", 60)
        until(lambda: inserted(client), "the client inserts again")
    assert set(world.runs().values()) == {1}
    assert "Traceback" not in world.log()


def full(cluster: Cluster, foreign: ExitStack) -> bool:
    """Opens idle connections until the server has no more."""
    with pytest.raises(psycopg.OperationalError, match="too many clients"):
        while True:
            foreign.enter_context(psycopg.connect(cluster.dsn, autocommit=True))
    return True


def ours(world: World) -> bool:
    """Ends the connections of wqcore; whether it had any."""
    return bool(world.scalar(f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {OURS}"))


def fresh_insert(settings: Settings) -> Callable[[Mail], None]:
    def insert(args: Mail) -> None:
        with wqcore.SyncClient(settings, catalog=CATALOG) as client:
            client.insert(args)

    return insert


def test_a_client_does_not_sleep_through_the_end_of_an_outage(new_cluster: NewCluster) -> None:
    """Its pool paused for as long as the outage had lasted already."""
    cluster = new_cluster()
    settings = Settings(
        database=Database(dsn=cluster.dsn, migrate="auto", connect_timeout_s=1), queues={"default": Queue()}
    )
    launch.prepare(settings, cluster.dsn, lambda text: None)
    with wqcore.SyncClient(settings, catalog=CATALOG) as client:
        client.insert(Mail(1))
        cluster.crash()
        began = time.monotonic()
        while time.monotonic() < began + 3.2:  # the length of the fault
            with pytest.raises(wqcore.DatabaseUnavailable):
                client.insert(Mail(2))
        cluster.start()
        assert client.insert(Mail(3)) > 0
