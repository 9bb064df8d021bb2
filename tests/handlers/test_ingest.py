"""Events come in once, and each new one is delivered once."""

from __future__ import annotations

import asyncio
import datetime as dt

from handlers.ingest import Event, ingest
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "pg", "platform"]


async def test_an_event_is_written_and_its_delivery_enqueued(platform: Platform) -> None:
    [record] = await ingest(
        platform.store, platform.environment, [Event(id="a", name="order.made", payload={"n": 1.5, "ü": [None]})]
    )
    assert record.is_new
    assert (record.event_id, record.name, record.source, record.payload) == (
        "a", "order.made", "trigger.dev", {"n": 1.5, "ü": [None]},
    )  # fmt: skip
    assert platform.jobs("deliverEvent") == [{"id": record.id}]


async def test_a_repeat_finds_the_first_record_and_delivers_nothing_more(platform: Platform) -> None:
    [first] = await ingest(platform.store, platform.environment, [Event(id="a", name="x", payload=1)])
    again = await ingest(
        platform.store, platform.environment, [Event(id=id_, name="y", payload=2) for id_ in ("b", "a", "b")]
    )
    assert [(record.event_id, record.payload, record.is_new) for record in again] == [
        ("b", 2, True), ("a", 1, False), ("b", 2, False),
    ]  # fmt: skip
    assert again[1].id == first.id
    assert again[2].id == again[0].id
    assert len(platform.jobs("deliverEvent")) == 2


async def test_one_event_sent_many_times_at_once_makes_one_record(platform: Platform) -> None:
    found = await asyncio.gather(
        *(ingest(platform.store, platform.environment, [Event(id="a", name="x", payload=n)]) for n in range(20))
    )
    assert len({record.id for [record] in found}) == 1
    assert sum(record.is_new for [record] in found) == 1
    assert len(platform.jobs("deliverEvent")) == 1


async def test_an_event_for_later_is_delivered_later(platform: Platform) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    await ingest(platform.store, platform.environment, [Event(id="a", name="x", payload=None, deliver_at=later)])
    assert platform.one("select run_at from {wq}.job where kind = 'deliverEvent'") == later
