"""A connection whose other end is gone without a word is noticed in bounded time and replaced; nothing is lost or charged.

Twice: a proxy that has lost its connections and still acknowledges every byte, so that only clocks of our own help; and a
network that drops packets, which the kernel notices.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import wqcore
from tests.fix_cluster import NewCluster
from tests.fix_master import World, ready, until
from tests.fix_netns import Far
from tests.fix_proxy import Proxy
from wqcore import launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.settings import Database, Queue, Settings

NewProxy = Callable[[str], Proxy]
FAR_FUTURE = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
TEN = 10


class Mail(msgspec.Struct):
    to: int


CATALOG = Catalog()
CATALOG.declare(
    Kind(
        "mail", Mail, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
        planned=False,
    )
)  # fmt: skip


def prepared(world: World, **limits: Any) -> Settings:
    """Settings of a client for a database that has its schema."""
    settings = Settings(
        database=Database(dsn=world.dsn, migrate="auto", **limits), queues={"default": Queue()}
    )
    launch.prepare(settings, world.dsn, lambda text: None)
    return settings


def each_completed_once(world: World, jobs: list[int]) -> None:
    until(lambda: world.outcomes().get("completed") == len(jobs), "all jobs are completed", 60)
    assert world.scalar("select count(*) from wqcore.job") == 0
    assert world.scalar("select count(distinct id) from wqcore.history") == len(jobs)
    assert world.scalar("select max(attempt) from wqcore.history") == 1
    assert world.scalar("select max(deaths) from wqcore.history") == 0


def test_a_worker_and_a_keeper_replace_connections_that_a_proxy_has_lost(world: World, new_proxy: NewProxy) -> None:
    """They took eleven seconds more than they should, because psycopg asked for a cancellation; the lease was in doubt then."""
    proxy = new_proxy(world.dsn)
    world.start(world.configure(database={"dsn": proxy.dsn, "statement_timeout_s": 1.0}))
    ready(world)
    jobs = world.insert("nap", 400, {"s": 0.05})
    until(lambda: len(world.notes()) > 40, "jobs run")
    accepted = proxy.accepted
    proxy.strand()
    jobs += world.insert("nap", 40, {"s": 0.05})
    each_completed_once(world, jobs)
    until(lambda: world.log().count("no reply within 3 s") == 2, "the shard and the keeper have noticed")
    until(lambda: proxy.accepted == accepted + 2, "each has one new connection")
    assert set(world.runs().values()) == {1}
    assert "lease unproven" not in world.log()
    assert "Traceback" not in world.log()


@pytest.mark.timeout(60)
def test_no_call_of_a_client_for_asyncio_waits_for_a_lost_connection(
    world: World, new_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for ever: a statement's only limit was the server's."""
    monkeypatch.setattr("wqcore.client.asyncio_client.IDLE_CHECK_S", math.inf)  # the calls themselves are to meet it
    settings, proxy = prepared(world, statement_timeout_s=0.5), new_proxy(world.dsn)

    async def scenario() -> None:
        async with wqcore.Client(settings, dsn=proxy.dsn, catalog=CATALOG) as client:
            first = await client.insert(Mail(1))
            while not (idle := idle_connections(client)):
                await asyncio.gather(*(client.insert(Mail(2)) for _ in range(TEN)))
            proxy.strand()
            calls = [client.insert_many([Mail(4)] * 2000), client.job(first)]
            calls += [client.insert(Mail(3)) for _ in range(idle - len(calls))]  # one for each lost connection
            errors = await asyncio.gather(*calls, return_exceptions=True)
            says_so(errors)
            assert await client.insert(Mail(5)) > first

    asyncio.run(scenario())
    assert world.scalar("select count(*) from wqcore.job where args ->> 'to' = '5'") == 1
    assert world.scalar("select count(*) from wqcore.job where args ->> 'to' in ('3', '4')") == 0


@pytest.mark.timeout(60)
def test_no_call_of_a_blocking_client_waits_for_a_lost_connection(
    world: World, new_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wqcore.client.sync_client.IDLE_CHECK_S", math.inf)
    settings, proxy = prepared(world, statement_timeout_s=0.5), new_proxy(world.dsn)
    with wqcore.SyncClient(settings, dsn=proxy.dsn, catalog=CATALOG) as client, ThreadPoolExecutor(TEN) as threads:
        first = client.insert(Mail(1))
        while not (idle := idle_connections(client)):
            list(threads.map(client.insert, [Mail(2)] * TEN))
        proxy.strand()
        calls = [threads.submit(client.insert_many, [Mail(4)] * 2000), threads.submit(client.job, first)]
        calls += [threads.submit(client.insert, Mail(3)) for _ in range(idle - len(calls))]  # one for each lost connection
        says_so([call.exception() for call in calls])
        assert client.insert(Mail(5)) > first
    assert world.scalar("select count(*) from wqcore.job where args ->> 'to' = '5'") == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("paused", [False, True])
def test_a_pool_of_the_program_s_own_does_not_wait_for_a_lost_connection(
    world: World, new_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """`handlers/` had one that waited for ever. After a pause not even its caller notices."""
    for module in ("sync_client", "asyncio_client"):
        monkeypatch.setattr(f"wqcore.client.{module}.IDLE_CHECK_S", -1.0 if paused else math.inf)
    settings, proxy = prepared(world), new_proxy(world.dsn)
    lost = nullcontext() if paused else pytest.raises(psycopg.OperationalError, match="no reply within 2.5 s")

    async def with_asyncio() -> None:
        async with wqcore.Client(settings, dsn=proxy.dsn) as client, client.pool(statement_timeout_s=0.5) as pool:
            await pool.wait()  # else it makes a second connection, which is lost as well
            async with pool.connection() as conn:
                await conn.execute("create table async_mark (it int)")
            proxy.strand()
            with lost:
                async with pool.connection() as conn:
                    await conn.execute("insert into async_mark values (1)")
            async with pool.connection() as conn:
                await conn.execute("insert into async_mark values (2)")

    asyncio.run(with_asyncio())
    with wqcore.SyncClient(settings, dsn=proxy.dsn) as client, client.pool(statement_timeout_s=0.5) as pool:
        pool.wait()
        with pool.connection() as conn:
            conn.execute("create table sync_mark (it int)")
        proxy.strand()
        with lost, pool.connection() as conn:
            conn.execute("insert into sync_mark values (1)")
        with pool.connection() as conn:
            conn.execute("insert into sync_mark values (2)")
    for name in ("async_mark", "sync_mark"):
        marks = [mark for (mark,) in world.conn.execute(f"select it from {name} order by it")]
        assert marks == ([1, 2] if paused else [2])


def idle_connections(client: Any) -> int:
    """How many connections the client's pool has, all idle; 0 when fewer than three, or when it makes one at this moment."""
    stats = client._routes.home.pool.get_stats()
    return int(stats["pool_size"]) if stats["pool_size"] == stats["pool_available"] >= 3 else 0


def says_so(errors: list[Any]) -> None:
    for error in errors:
        assert isinstance(error, wqcore.DatabaseUnavailable)
        assert "no reply within 2.5 s" in str(error)
        assert "it may have happened or not" in str(error)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_call_after_a_pause_does_not_notice_that_every_pooled_connection_was_lost(
    world: World, new_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    settings, proxy = prepared(world), new_proxy(world.dsn)
    for module in ("sync_client", "asyncio_client"):
        monkeypatch.setattr(f"wqcore.client.{module}.IDLE_CHECK_S", -1.0)  # the pause, without the waiting

    async def with_asyncio() -> None:
        async with wqcore.Client(settings, dsn=proxy.dsn, catalog=CATALOG) as client:
            await asyncio.gather(*(client.insert(Mail(1)) for _ in range(TEN)))
            proxy.strand()
            await client.insert(Mail(2))

    if way == "async":
        asyncio.run(with_asyncio())
    else:
        with wqcore.SyncClient(settings, dsn=proxy.dsn, catalog=CATALOG) as client, ThreadPoolExecutor(TEN) as threads:
            list(threads.map(client.insert, [Mail(1)] * TEN))
            proxy.strand()
            client.insert(Mail(2))
    assert world.scalar("select count(*) from wqcore.job where args ->> 'to' = '2'") == 1


def test_packets_that_vanish_are_noticed_by_workers_clients_and_the_server(
    far: Far, new_cluster: NewCluster, tmp_path: Any
) -> None:
    with far.entered():
        cluster = new_cluster(address=far.address)
    over_network = make_conninfo("", host=far.address, user="postgres", dbname="postgres")
    limits = {"tcp_user_timeout_s": 2.0, "connect_timeout_s": 2, "statement_timeout_s": 60.0}
    world = World(tmp_path, cluster.dsn)
    try:
        world.start(world.configure(database={"dsn": over_network} | limits))
        ready(world)
        jobs = world.insert("nap", 1000, {"s": 0.05})
        settings = Settings(database=Database(dsn=over_network, **limits), queues={"default": Queue()})
        with wqcore.SyncClient(settings, catalog=CATALOG) as client:
            until(lambda: len(world.notes()) > 40, "jobs run")
            client.insert(Mail(1), run_at=FAR_FUTURE)
            far.vanish()
            began = time.monotonic()
            with pytest.raises(wqcore.DatabaseUnavailable, match="it may have happened or not"):
                client.insert(Mail(2), run_at=FAR_FUTURE)
            until(lambda: world.log().count("trying again") >= 2, "the shard and the keeper have noticed", 40)
            until(lambda: not backends(world, far.here), "the server has dropped its ends", 40)
            # by the kernel's clocks: the statements' would have taken a minute
            assert time.monotonic() - began < limits["statement_timeout_s"]
            assert "no reply within" not in world.log()
            far.heal()
            jobs += world.insert("nap", 40, {"s": 0.05})
            until(lambda: inserted(client, Mail(3)), "the client inserts again")
        world.conn.execute("delete from wqcore.job where kind = 'mail'")
        each_completed_once(world, jobs)
        assert "Traceback" not in world.log()
    finally:
        world.stop()


def inserted(client: wqcore.SyncClient, args: Mail) -> bool:
    with suppress(wqcore.DatabaseUnavailable):
        return client.insert(args, run_at=FAR_FUTURE) > 0
    return False


def backends(world: World, address: str) -> int:
    """How many connections the server has from there."""
    return int(world.scalar("select count(*) from pg_stat_activity where client_addr = %s::inet", address))
