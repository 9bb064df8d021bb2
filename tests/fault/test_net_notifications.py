"""Connections that are ended, and notifications that are lost, cost time for as long as it lasts and nothing else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec

from tests.fix_master import World, ready, until
from tests.fix_proxy import Proxy
from wqcore import SyncClient, load
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind

NewProxy = Callable[[str], Proxy]
OURS = "datname = current_database() and application_name like 'wqcore%%'"


class Nap(msgspec.Struct):
    s: float = 0.0
    group: str | None = None


CATALOG = Catalog()
CATALOG.declare(
    Kind("nap", Nap, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river, planned=False)
)


def test_terminated_connections_cost_throughput_while_it_lasts_and_nothing_else(world: World) -> None:
    world.start(world.configure())
    ready(world)
    connections = world.scalar(f"select count(*) from pg_stat_activity where {OURS}")
    before = rate(world, 1000)
    jobs = world.insert("nap", 4000, {"s": 0.01})
    end = time.monotonic() + 3
    killed = 0
    while time.monotonic() < end:
        killed += world.scalar(f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {OURS}")
        time.sleep(0.25)  # the rate of the fault: four times a second
    assert killed > 4
    until(lambda: world.outcomes().get("completed") == len(jobs) + 1000, "all jobs are completed", 60)
    assert rate(world, 1000) > before / 3
    assert world.scalar("select count(*) - count(distinct id) from wqcore.history") == 0
    assert set(world.runs().values()) == {1}
    assert world.scalar(f"select count(*) from pg_stat_activity where {OURS}") == connections
    assert "Traceback" not in world.log()


def rate(world: World, count: int) -> float:
    """Jobs a second, of naps of 10 ms on 20 seats, so that the seats limit it and not the machine."""
    done = world.outcomes().get("completed", 0)
    began = time.monotonic()
    world.insert("nap", count, {"s": 0.01})
    until(lambda: world.outcomes().get("completed") == done + count, "they are completed", 60)
    return count / (time.monotonic() - began)


def test_lost_notifications_cost_a_poll_interval_until_they_are_heard_again(world: World, new_proxy: NewProxy) -> None:
    """The median of a few: a job may be inserted just before a look."""
    poll_s = 1.2
    proxy = new_proxy(world.dsn)
    config = world.configure(database={"dsn": proxy.dsn}, queues__default={"poll_interval_s": poll_s})
    world.start(config)
    ready(world)
    with SyncClient(load(config, environ={}), dsn=world.dsn, catalog=CATALOG) as client:
        hearing = [latency(world) for _ in range(5)]
        proxy.deaf()
        deaf = [latency(world) for _ in range(4)]
        client.set_schedule("tick", Nap(group="tick"), every_s=1.0)
        until(lambda: sum(world.outcomes().values()) > 9, "a keeper that is deaf, too, finds the schedule")
        client.delete_schedule("tick")
        unheard = proxy.unheard
        proxy.hear()
        again = [latency(world) for _ in range(5)]
    assert unheard >= len(deaf)
    assert statistics.median(hearing) < poll_s / 3
    assert statistics.median(deaf) > poll_s / 3
    assert max(deaf) < poll_s * 1.1 + 2.0  # two seconds for a slow machine
    assert statistics.median(again) < poll_s / 3
    assert proxy.unheard == unheard


def latency(world: World) -> float:
    """Seconds from the insert of a job until its handler starts, on an idle queue."""
    began = time.monotonic()
    job = world.scalar("select wqcore.enqueue('nap', '{}')")
    until(lambda: job in world.runs(), "the job runs")
    return next(at for what, id_, _, _, at in world.notes() if what == "start" and id_ == job) - began
