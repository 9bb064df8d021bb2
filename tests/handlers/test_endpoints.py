"""What an endpoint declares becomes rows: indexEndpoint against a real HTTP endpoint, registerJob against the tables."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

import wqcore
from handlers.declared import JobMetadata
from handlers.endpoints import IndexEndpoint, RegisterJob, index_endpoint, queue_of, register_job
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "endpoint", "pg", "platform"]

RULE = {"event": "invoice.made", "source": "shop", "payload": {"paid": [True]}, "context": {"eu": [True]}}
JOB: dict[str, Any] = {
    "id": "send-invoice",
    "name": "Send invoice",
    "version": "1.0.0",
    "event": {
        "name": "invoice.made", "title": "Invoice", "source": "shop", "icon": "bolt",
        "examples": [{"id": "paid", "name": "Paid", "payload": {"paid": True}}],
    },
    "trigger": {"type": "static", "title": "Invoice", "rule": RULE},
    "integrations": {},
    "enabled": True,
    "startPosition": "latest",
    "preprocessRuns": False,
}  # fmt: skip
INTERVAL = {"type": "scheduled", "schedule": {"type": "interval", "options": {"seconds": 60}}}
SOURCE = {
    "version": "2",
    "channel": "HTTP",
    "integration": {"id": "github", "metadata": {"id": "github", "name": "GitHub"}, "authSource": "LOCAL"},
    "key": "github.repo.acme/app",
    "params": {"owner": "acme"},
    "options": {"event": ["push"]},
}
INDEX: dict[str, Any] = {
    "jobs": [JOB, JOB | {"id": "old", "enabled": False}],
    "sources": [SOURCE],
    "webhooks": [],
    "dynamicTriggers": [{"id": "on-issue", "jobs": [{"id": "triage", "version": "0.0.1"}]}],
    "dynamicSchedules": [{"id": "per-user", "jobs": []}],
    "somethingNew": {"that": "a later SDK sends"},
}
REGISTRATIONS = ("registerJob", "registerSource", "registerDynamicTrigger", "registerDynamicSchedule")


async def register(endpoint_id: str, **changes: Any) -> None:
    await register_job(RegisterJob(endpoint_id, JOB | changes), make_job())


def dispatcher(platform: Platform) -> tuple[Any, ...]:
    [row] = platform.sql(
        "select kind, target_id, events, source, payload_filter, context_filter, manual, enabled from {s}.event_dispatcher"
    )
    return row


def schedule(platform: Platform) -> tuple[Any, ...]:
    [row] = platform.sql("select type, cron, seconds, active, next_tick from {s}.schedule_source")
    return row


async def test_an_index_is_recorded_and_each_part_is_registered_in_the_endpoints_series(
    platform: Platform, endpoint: EndpointServer
) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer(INDEX)
    await index_endpoint(IndexEndpoint(shop, source="API", source_data={"a": 1}, reason="new"), make_job())
    [request] = endpoint.requests
    assert request.headers["x-trigger-action"] == "INDEX_ENDPOINT"
    assert request.headers["x-trigger-api-key"] == platform.api_key
    assert [args for kind in REGISTRATIONS for args in platform.jobs(kind)] == [
        {"endpointId": shop, "job": JOB},
        {"endpointId": shop, "source": SOURCE},
        {"endpointId": shop, "dynamicTrigger": INDEX["dynamicTriggers"][0]},
        {"endpointId": shop, "dynamicSchedule": INDEX["dynamicSchedules"][0]},
    ]
    assert platform.sql("select distinct serial_key from {wq}.job") == [(f"endpoint-{shop}",)]
    assert platform.sql("select wq_job_id, source, source_data, reason, stats from {s}.endpoint_index") == [
        (7, "API", {"a": 1}, "new",
         {"jobs": 2, "enabledJobs": 1, "sources": 1, "dynamicTriggers": 1, "dynamicSchedules": 1}),
    ]  # fmt: skip
    assert platform.one("select indexed_at is not null from {s}.endpoint")


async def test_an_index_that_runs_again_after_its_commit_changes_nothing(
    platform: Platform, endpoint: EndpointServer
) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer(INDEX)
    for attempt in (1, 2):
        await index_endpoint(IndexEndpoint(shop), make_job(attempt=attempt))
    assert platform.one("select count(*) from {s}.endpoint_index") == 1
    assert [len(platform.jobs(kind)) for kind in REGISTRATIONS] == [1, 1, 1, 1]


async def test_a_newer_index_takes_the_place_of_registrations_that_still_wait(
    platform: Platform, endpoint: EndpointServer
) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer({"jobs": [JOB]}, {"jobs": [JOB | {"version": "2.0.0"}, JOB | {"id": "other"}]})
    await index_endpoint(IndexEndpoint(shop), make_job(7))
    await index_endpoint(IndexEndpoint(shop), make_job(8))
    assert [(args["job"]["id"], args["job"]["version"]) for args in platform.jobs("registerJob")] == [
        ("send-invoice", "2.0.0"), ("other", "1.0.0"),
    ]  # fmt: skip


async def test_what_an_endpoint_declares_no_longer_stops(platform: Platform, endpoint: EndpointServer) -> None:
    shop = platform.add_endpoint(endpoint.url)
    hidden = JOB | {"id": "hidden"}
    held = {
        "jobs": [JOB, JOB | {"id": "tick", "trigger": INTERVAL}, hidden],
        "sources": [SOURCE | {"registerSourceJob": {"id": "hidden", "version": "1"}}],
        "dynamicTriggers": [{"id": "on-issue", "jobs": [{"id": "hidden", "version": "1"}]}],
    }
    endpoint.will_answer(held, {"jobs": [JOB | {"enabled": False}, hidden]}, held)
    started = (
        "select j.slug from {s}.event_dispatcher d join {s}.job j on j.id = d.key where d.enabled order by 1"
    )  # fmt: skip
    for answered, slugs in (
        (1, ["hidden", "send-invoice", "tick"]),
        (2, ["hidden"]),
        (3, ["hidden", "send-invoice", "tick"]),
    ):
        await platform.client.insert(IndexEndpoint(shop))
        await platform.drain()
        assert [slug for (slug,) in platform.sql(started)] == slugs, answered
        assert schedule(platform)[3] is (answered != 2)
        assert platform.one("select count(*) from {s}.dynamic_trigger_job") == (answered != 2)
        assert platform.one("select count(*) from {s}.source_event where wanted") == (answered != 2)


@pytest.mark.parametrize(("answer", "outcome"), [(Answer(503), wqcore.Retry), (Answer(401), wqcore.Discard)])
async def test_an_endpoint_that_does_not_answer_or_refuses_leaves_nothing(
    platform: Platform, endpoint: EndpointServer, answer: Answer, outcome: type[Exception]
) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer(answer)
    with pytest.raises(outcome, match=f"INDEX_ENDPOINT at {endpoint.url} answered {answer.status}"):
        await index_endpoint(IndexEndpoint(shop), make_job())
    assert platform.one("select count(*) from {s}.endpoint_index") == 0


async def test_an_answer_that_does_not_fit_names_the_field(platform: Platform, endpoint: EndpointServer) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer({"jobs": [JOB, JOB | {"enabled": "yes"}]})
    with pytest.raises(wqcore.Discard, match=r"INDEX_ENDPOINT from .* does not fit: .*`\$\.jobs\[1\]\.enabled`"):
        await index_endpoint(IndexEndpoint(shop), make_job())


async def test_metadata_over_the_limit_of_a_jobs_args_is_a_permanent_failure(
    platform: Platform, endpoint: EndpointServer
) -> None:
    shop = platform.add_endpoint(endpoint.url)
    endpoint.will_answer({"jobs": [JOB, JOB | {"id": "large", "event": {"schema": "x" * 300_000}}]})
    with pytest.raises(wqcore.Discard, match="'shop': .*bytes"):
        await index_endpoint(IndexEndpoint(shop), make_job())
    assert platform.jobs("registerJob") == []


async def test_an_endpoint_that_is_gone_is_a_permanent_failure(platform: Platform) -> None:
    for attempt in index_endpoint(IndexEndpoint("ep_gone"), make_job()), register("ep_gone"):
        with pytest.raises(wqcore.Discard, match="no endpoint 'ep_gone'"):
            await attempt


async def test_a_job_gets_its_row_version_alias_queue_examples_and_dispatcher(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop, internal=True, preprocessRuns=True)
    assert platform.sql(
        "select j.slug, j.title, j.internal, v.version, v.enabled, v.preprocess_runs, v.event, v.examples, v.endpoint_id,"
        " q.name, q.max_jobs from {s}.job j join {s}.job_alias a on a.job_id = j.id and a.name = 'latest'"
        " join {s}.job_version v on v.id = a.version_id join {s}.job_queue q on q.id = v.queue_id"
    ) == [
        ("send-invoice", "Send invoice", True, "1.0.0", True, True,
         {key: value for key, value in JOB["event"].items() if key != "examples"}, JOB["event"]["examples"], shop,
         "default", 100),
    ]  # fmt: skip
    job_id = platform.one("select id from {s}.job")
    assert dispatcher(platform) == (
        "JOB_VERSION", job_id, ["invoice.made"], "shop", {"paid": [True]}, {"eu": [True]}, False, True,
    )  # fmt: skip


async def test_a_job_that_is_registered_again_changes_its_rows_and_makes_no_more(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    await register(shop)
    rule = {"event": ["a", "b"], "source": "trigger.dev"}
    await register(shop, name="Renamed", trigger={"type": "static", "title": "x", "rule": rule})
    assert platform.sql("select slug, title from {s}.job") == [("send-invoice", "Renamed")]
    assert platform.one("select count(*) from {s}.job_version") == 1
    assert dispatcher(platform)[2:6] == (["a", "b"], "trigger.dev", None, None)


async def test_latest_is_the_version_that_was_declared_last(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    latest = "select v.version from {s}.job_alias a join {s}.job_version v on v.id = a.version_id"
    for version in ("0.9.0", "0.10.0", "0.9.0"):
        await register(shop, version=version)
        assert platform.sql(latest) == [(version,)]
    assert platform.one("select count(*) from {s}.job_version") == 2


@pytest.mark.parametrize(
    ("declared", "queue"),
    [
        ({}, ("default", 100)),
        ({"concurrencyLimit": 3}, ("job:j", 3)),
        ({"concurrencyLimit": 5000}, ("job:j", 100)),
        ({"concurrencyLimit": 0}, ("job:j", 1)),
        ({"concurrencyLimit": {"id": "mails", "limit": 2}}, ("mails", 2)),
        ({"queue": "default"}, ("default", 100)),
        ({"queue": "slow"}, ("slow", 100)),
        ({"queue": {"name": "slow", "maxConcurrent": 2}}, ("slow", 2)),
        ({"queue": {"name": "default", "maxConcurrent": 1}}, ("default", 100)),
    ],
)
def test_a_jobs_queue_is_what_it_declares(declared: dict[str, Any], queue: tuple[str, int]) -> None:
    assert queue_of(msgspec.convert(JOB | {"id": "j"} | declared, JobMetadata)) == queue


async def test_a_queue_whose_limit_rises_is_started_again(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    for limit in (2, 2, 1):
        await register(shop, concurrencyLimit=limit)
    assert platform.jobs("startQueuedRuns") == []
    await register(shop, concurrencyLimit=5)
    assert platform.sql("select name, max_jobs from {s}.job_queue") == [("job:send-invoice", 5)]
    assert platform.jobs("startQueuedRuns") == [{"id": platform.one("select id from {s}.job_queue")}]


async def test_integrations_are_shared_by_slug_and_those_that_left_are_dropped(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    github = {"id": "github", "authSource": "HOSTED", "metadata": {"id": "github", "name": "GitHub"}}
    slack = {"id": "slack", "authSource": "LOCAL", "metadata": {"id": "slack", "name": "Slack"}}
    await register(shop, integrations={"gh": github, "also": github, "sl": slack})
    await register(shop, id="other", integrations={"x": slack | {"authSource": "RESOLVER"}})
    used = (
        "select j.slug, u.key, i.slug, i.auth_source from {s}.job_integration u"
        " join {s}.integration i on i.id = u.integration_id join {s}.job_version v on v.id = u.version_id"
        " join {s}.job j on j.id = v.job_id order by 1 desc, 2"
    )
    assert platform.sql(used) == [
        ("send-invoice", "also", "github", "HOSTED"),
        ("send-invoice", "gh", "github", "HOSTED"),
        ("send-invoice", "sl", "slack", "RESOLVER"),
        ("other", "x", "slack", "RESOLVER"),
    ]
    await register(shop, integrations={"gh": slack})
    assert platform.sql(used)[0] == ("send-invoice", "gh", "slack", "LOCAL")
    assert platform.one("select count(*) from {s}.integration") == 2


async def test_a_scheduled_job_has_a_dispatcher_that_no_event_invokes_and_its_first_tick(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop, trigger=INTERVAL)
    job_id = platform.one("select id from {s}.job")
    assert dispatcher(platform) == (
        "JOB_VERSION", job_id, ["dev.trigger.scheduled"], "trigger.dev", None, None, True, True,
    )  # fmt: skip
    schedule_id, key, tick = platform.sql("select id, key, next_tick from {s}.schedule_source")[0]
    assert key == job_id
    assert platform.sql("select args ->> 'id', run_at, serial_key, job_key from {wq}.jobs") == [
        (schedule_id, tick, f"scheduler-{platform.environment}", f"scheduled:{schedule_id}"),
    ]


async def test_a_trigger_of_another_type_turns_off_what_was_there(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop, trigger=INTERVAL)
    await register(shop)
    assert dispatcher(platform)[6:] == (False, True)
    assert schedule(platform)[3:] == (False, None)
    for other in ({"type": "invoke"}, {"type": "dynamic", "id": "on-issue"}):
        await register(shop)
        await register(shop, trigger=other)
        assert dispatcher(platform)[7] is False
    await register(shop, trigger=INTERVAL)
    assert dispatcher(platform)[6:] == (True, True)
    assert schedule(platform)[3] is True


async def test_a_job_that_became_disabled_is_started_by_nothing(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop, trigger=INTERVAL)
    await register(shop, trigger=INTERVAL, enabled=False)
    assert dispatcher(platform)[7] is False
    assert schedule(platform)[3:] == (False, None)
    assert platform.one("select enabled from {s}.job_version") is False
    await register(shop, id="never-seen", enabled=False)
    assert platform.one("select count(*) from {s}.job") == 1


async def test_a_job_that_names_a_dynamic_trigger_joins_it_whichever_is_registered_first(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    metadata = {"id": "on-issue", "jobs": [{"id": "send-invoice", "version": "1.0.0"}, {"id": "late", "version": "1"}]}
    by_trigger = {"type": "dynamic", "id": "on-issue"}
    await register(shop, trigger=by_trigger)
    await platform.client.enqueue("registerDynamicTrigger", {"endpointId": shop, "dynamicTrigger": metadata})
    await platform.drain()
    await register(shop, id="late", trigger=by_trigger)
    joined = "select j.slug from {s}.dynamic_trigger_job c join {s}.job j on j.id = c.job_id order by 1"
    assert platform.sql(joined) == [("late",), ("send-invoice",)]
    await platform.client.enqueue(
        "registerDynamicTrigger", {"endpointId": shop, "dynamicTrigger": metadata | {"jobs": metadata["jobs"][1:]}}
    )  # fmt: skip
    await platform.drain()
    assert platform.sql(joined) == [("late",)]


async def test_many_registrations_at_once_make_one_of_each(platform: Platform) -> None:
    shops = [platform.add_endpoint("http://a.example", slug) for slug in ("one", "two")]
    uses = {key: {"id": key, "authSource": "LOCAL"} for key in "abc"}
    backwards = dict(reversed(uses.items()))
    await asyncio.gather(
        *(
            register(shops[n % 2], id=f"job-{n % 3}", trigger=INTERVAL, integrations=uses if n % 2 else backwards)
            for n in range(24)
        )
    )
    for table, rows in ("job", 3), ("job_version", 3), ("job_queue", 1), ("integration", 3), ("schedule_source", 3):
        assert platform.sql("select count(*) from {s}." + table) == [(rows,)], table
    assert platform.one("select count(*) from {wq}.job where kind = 'events.deliverScheduled'") == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trigger": {"type": "sometimes"}}, "sometimes"),
        ({"trigger": {"type": "static"}}, "`rule`"),
        ({"trigger": {"type": "scheduled", "schedule": {"type": "cron", "options": {"cron": "x"}}}}, "cron = 'x'"),
        (
            {"trigger": {"type": "scheduled", "schedule": {"type": "interval", "options": {"seconds": 0}}}},
            "`seconds`|>= 1",
        ),
        ({"integrations": {"x": {}}}, "`id`"),
        ({"version": 1}, r"`\$\.version`"),
    ],
)
async def test_metadata_that_does_not_fit_is_a_permanent_failure_that_names_the_field(
    platform: Platform, changes: dict[str, Any], field: str
) -> None:
    shop = platform.add_endpoint("http://a.example")
    with pytest.raises(wqcore.Discard, match=f"does not fit: .*({field})"):
        await register(shop, **changes)
    assert platform.one("select count(*) from {s}.job") == 0
