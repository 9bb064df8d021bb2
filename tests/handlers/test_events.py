"""A received event reaches the dispatchers that match, once, and each makes numbered runs, once."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest

import wqcore
from handlers import ids
from handlers.events import DeliverEvent, InvokeDispatcher, deliver_events, invoke_dispatchers
from tests.fix_endpoint import endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform
from tests.fix_shop import Shop, run_batch, shop

__all__ = ["empty_dsn", "endpoint", "pg", "platform", "shop"]


async def deliver(event: str) -> None:
    await run_batch(deliver_events, DeliverEvent(event))


async def invoke(dispatcher: str, event: str) -> None:
    await run_batch(invoke_dispatchers, InvokeDispatcher(dispatcher, event))


def invoked(shop: Shop) -> set[str]:
    return {args["id"] for args in shop.platform.jobs("events.invokeDispatcher")}


def numbers(shop: Shop) -> list[Any]:
    return [number for (number,) in shop.platform.sql("select number from {s}.job_run order by number")]


async def test_an_event_reaches_the_dispatchers_that_match(shop: Shop) -> None:
    wanted = {
        shop.dispatcher,
        shop.add_dispatcher(shop.job, "order.paid", "order.made", payload={"country": ["DE", "FR"]}),
        shop.add_dispatcher(shop.job, "order.made", payload={}, context={"shop": {"id": [7]}}),
    }
    shop.add_dispatcher(shop.job, "order.paid")
    shop.add_dispatcher(shop.job, "order.made", payload={"country": ["US"]})
    shop.add_dispatcher(shop.job, "order.made", context={"shop": {"id": [8]}})
    shop.add_dispatcher(shop.job, "order.made", manual=True)
    shop.add_dispatcher(shop.job, "order.made", enabled=False)
    event = await shop.add_event(payload={"country": "DE"}, context={"shop": {"id": 7}})
    await deliver(event)
    assert invoked(shop) == wanted
    assert shop.platform.one("select delivered_at is not null from {s}.event_record where id = %s", event)


async def test_an_event_of_another_source_or_environment_reaches_nobody(shop: Shop) -> None:
    await deliver(await shop.add_event(source="github.com"))
    shop.platform.sql(
        "insert into {s}.environment (id, organization_id, project_id, slug, type, api_key_hash, api_key_sealed) "
        "select 'env_b', organization_id, project_id, 'prod', 'PRODUCTION', 'b', 'b' from {s}.environment"
    )
    shop.platform.sql("update {s}.event_dispatcher set environment_id = 'env_b'")
    await deliver(await shop.add_event())
    assert invoked(shop) == set()


async def test_an_event_is_delivered_once(shop: Shop) -> None:
    event = await shop.add_event()
    await deliver(event)
    await deliver(event)
    await asyncio.gather(*(deliver(event) for _ in range(5)))
    assert len(shop.platform.jobs("events.invokeDispatcher")) == 1


async def test_a_cancelled_event_is_not_delivered(shop: Shop) -> None:
    event = await shop.add_event()
    shop.platform.sql("update {s}.event_record set cancelled_at = now()")
    await deliver(event)
    assert invoked(shop) == set()
    assert shop.platform.one("select delivered_at from {s}.event_record where id = %s", event) is None


async def test_what_does_not_exist_is_a_permanent_failure(shop: Shop) -> None:
    with pytest.raises(wqcore.Discard, match="evt_none"):
        await deliver("evt_none")
    event = await shop.add_event()
    with pytest.raises(wqcore.Discard, match="disp_none"):
        await invoke("disp_none", event)
    with pytest.raises(wqcore.Discard, match="evt_none"):
        await invoke(shop.dispatcher, "evt_none")


async def test_a_dispatcher_makes_a_run_of_the_latest_version(shop: Shop) -> None:
    event = await shop.add_event(account_id="customer-1")
    await invoke(shop.dispatcher, event)
    [run] = shop.platform.sql(
        "select number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id, dispatcher_id, account_id, "
        "status, has_place from {s}.job_run"
    )
    assert run == (
        1, shop.job, shop.version, shop.platform.environment, shop.endpoint_id, shop.queue, event, shop.dispatcher,
        "customer-1", "PENDING", False,
    )  # fmt: skip
    assert shop.platform.jobs("startRun") == [{"id": shop.platform.one("select id from {s}.job_run")}]


async def test_a_repeated_invocation_makes_nothing_and_leaves_no_gap_in_the_numbers(shop: Shop) -> None:
    first, second = await shop.add_event(), await shop.add_event()
    await invoke(shop.dispatcher, first)
    await invoke(shop.dispatcher, first)
    await invoke(shop.dispatcher, second)
    assert numbers(shop) == [1, 2]
    assert len(shop.platform.jobs("startRun")) == 2


async def test_invocations_at_one_moment_neither_fail_nor_double_nor_leave_gaps(shop: Shop) -> None:
    events = [await shop.add_event() for _ in range(4)]
    await asyncio.gather(*(invoke(shop.dispatcher, event) for event in events for _ in range(6)))
    assert numbers(shop) == [1, 2, 3, 4]
    assert len(shop.platform.jobs("startRun")) == 4


async def test_a_dynamic_trigger_makes_a_run_of_each_of_its_jobs(shop: Shop) -> None:
    trigger, (other, _) = ids.new("dyn"), shop.add_job("bill")
    shop.platform.sql(
        "insert into {s}.dynamic_trigger (id, endpoint_id, environment_id, slug, type) values (%s, %s, %s, 'd', 'EVENT')",
        trigger, shop.endpoint_id, shop.platform.environment,
    )  # fmt: skip
    for job in (shop.job, other):
        shop.platform.sql("insert into {s}.dynamic_trigger_job values (%s, %s)", trigger, job)
    dispatcher, event = shop.add_dispatcher(trigger, "x", kind="DYNAMIC_TRIGGER"), await shop.add_event()
    await asyncio.gather(*(invoke(dispatcher, event) for _ in range(5)))
    assert set(shop.platform.sql("select job_id, number from {s}.job_run")) == {(shop.job, 1), (other, 1)}
    assert len(shop.platform.jobs("startRun")) == 2


async def test_a_disabled_dispatcher_and_a_disabled_version_make_no_run(shop: Shop) -> None:
    event = await shop.add_event()
    shop.platform.sql("update {s}.job_version set enabled = false")
    await invoke(shop.dispatcher, event)
    shop.platform.sql("update {s}.job_version set enabled = true")
    shop.platform.sql("update {s}.event_dispatcher set enabled = false")
    await invoke(shop.dispatcher, event)
    assert numbers(shop) == []


async def test_an_event_becomes_a_run_that_succeeds(shop: Shop) -> None:
    shop.endpoint.will_answer({"status": "SUCCESS", "output": {"shipped": 1.0}})
    event = await shop.add_event(
        payload={"amount": 12345678901234567890},
        id="order-1",
        deliver=True,
        timestamp=dt.datetime(2023, 7, 1, tzinfo=dt.UTC),
    )
    drained = await shop.platform.drain()
    assert (drained.completed, drained.failed, drained.discarded) == (7, 0, 0)
    assert shop.platform.sql("select status, output, event_id from {s}.job_run") == [
        ("SUCCESS", {"shipped": 1.0}, event)
    ]
    assert shop.places_taken() == 0
    assert b"12345678901234567890" in shop.endpoint.requests[0].body
    assert shop.body()["event"] | {"payload": None} == {
        "id": "order-1", "name": "order.made", "payload": None, "context": None, "timestamp": "2023-07-01T00:00:00Z",
    }  # fmt: skip
