"""Events come in once for each id, alone or many at once, at their time, and can be cancelled until they are delivered."""

from __future__ import annotations

import asyncio
import datetime as dt

from tests.fix_api import ApiServer, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "pg", "platform"]


async def test_an_event_comes_in_and_its_delivery_is_enqueued(api: ApiServer) -> None:
    sent = {"name": "order.made", "payload": {"n": 1.5}, "context": {"u": 1}, "timestamp": "2026-01-02T03:04:05.678Z"}
    answer = await api.call("POST", "/api/v1/events", {"event": sent, "options": {"accountId": "ada"}})
    event = answer.body
    assert answer.status == 200
    assert {name: event[name] for name in ("name", "payload", "context")} == {
        name: sent[name] for name in ("name", "payload", "context")
    }
    assert dt.datetime.fromisoformat(event["timestamp"]) == dt.datetime.fromisoformat(sent["timestamp"])
    assert (event["deliverAt"], event["deliveredAt"], event["cancelledAt"]) == (None, None, None)
    [row] = api.platform.sql("select id, event_id, source, account_id, environment_id from {s}.event_record")
    assert row[1:] == (event["id"], "trigger.dev", "ada", api.platform.environment)
    assert api.platform.jobs("deliverEvent") == [{"id": row[0]}]


async def test_a_repeat_of_an_id_returns_the_first_record(api: ApiServer) -> None:
    first = await api.call("POST", "/api/v1/events", {"event": {"id": "a", "name": "x", "payload": 1}})
    again = await api.call("POST", "/api/v1/events", {"event": {"id": "a", "name": "y", "payload": 2}})
    assert again.body == first.body
    assert again.body["payload"] == 1
    assert len(api.platform.jobs("deliverEvent")) == 1


async def test_one_event_posted_many_times_at_once_is_one(api: ApiServer) -> None:
    answers = await asyncio.gather(
        *(api.call("POST", "/api/v1/events", {"event": {"id": "a", "name": "x", "payload": n}}) for n in range(20))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["payload"] for answer in answers}) == 1
    assert len(api.platform.jobs("deliverEvent")) == 1


async def test_two_environments_may_use_the_same_id(api: ApiServer) -> None:
    mine = await api.call("POST", "/api/v1/events", {"event": {"id": "a", "name": "x", "payload": "mine"}})
    theirs = await api.call(
        "POST", "/api/v1/events", {"event": {"id": "a", "name": "x", "payload": "theirs"}}, key=api.stranger
    )
    assert (mine.body["payload"], theirs.body["payload"]) == ("mine", "theirs")


async def test_an_event_for_later_is_delivered_later(api: ApiServer) -> None:
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    by_time = await api.call(
        "POST", "/api/v1/events", {"event": {"name": "x"}, "options": {"deliverAt": at.isoformat()}}
    )
    assert dt.datetime.fromisoformat(by_time.body["deliverAt"]) == at
    assert api.platform.one("select run_at from {wq}.job where kind = 'deliverEvent'") == at
    by_delay = await api.call("POST", "/api/v1/events", {"event": {"name": "x"}, "options": {"deliverAfter": 3600}})
    wait = dt.datetime.fromisoformat(by_delay.body["deliverAt"]) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(minutes=50) < wait <= dt.timedelta(hours=1)


async def test_many_events_come_in_together_and_in_their_order(api: ApiServer) -> None:
    events = [{"id": str(n % 600), "name": "x", "payload": n} for n in range(1000)]
    answer = await api.call("POST", "/api/v1/events/bulk", {"events": events, "options": {}})
    assert answer.status == 200
    assert [event["id"] for event in answer.body] == [event["id"] for event in events]
    assert [event["payload"] for event in answer.body] == [n % 600 for n in range(1000)]
    assert len(api.platform.jobs("deliverEvent")) == 600
    assert (await api.call("POST", "/api/v1/events/bulk", {"events": []})).body == []


async def test_more_than_a_thousand_events_at_once_are_refused(api: ApiServer) -> None:
    answer = await api.call("POST", "/api/v1/events/bulk", {"events": [{"name": "x"}] * 1001})
    assert (answer.status, answer.body["field"]) == (422, "events")


async def test_a_bad_event_refuses_all_of_its_batch(api: ApiServer) -> None:
    answer = await api.call("POST", "/api/v1/events/bulk", {"events": [{"name": "x"}, {"name": ""}]})
    assert (answer.status, answer.body["field"]) == (422, "events[1].name")
    assert api.platform.one("select count(*) from {s}.event_record") == 0


async def test_an_event_is_cancelled_until_it_is_delivered(api: ApiServer) -> None:
    for event in ("a", "b"):
        await api.call("POST", "/api/v1/events", {"event": {"id": event, "name": "x"}})
    api.platform.sql("update {s}.event_record set delivered_at = now() where event_id = 'b'")
    cancelled = await api.call("POST", "/api/v1/events/a/cancel")
    assert cancelled.body["cancelledAt"]
    assert (await api.call("POST", "/api/v1/events/a/cancel")).body == cancelled.body
    delivered = await api.call("POST", "/api/v1/events/b/cancel")
    assert (delivered.status, delivered.body["cancelledAt"]) == (200, None)


async def test_an_event_is_shown_with_its_runs(api: ApiServer) -> None:
    run = api.add_run()
    event = api.platform.one("select event_id from {s}.job_run where id = %s", run)
    answer = await api.call("GET", f"/api/v2/events/{event}")
    assert (answer.body["id"], answer.body["name"]) == (event, "x")
    assert answer.body["updatedAt"] == answer.body["createdAt"]
    assert answer.body["runs"] == [{"id": run, "status": "STARTED", "startedAt": None, "completedAt": None}]
    await api.call("POST", "/api/v1/events", {"event": {"id": "lonely", "name": "x"}})
    assert (await api.call("GET", "/api/v2/events/lonely")).body["runs"] == []
