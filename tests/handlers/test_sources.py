"""Sources are stored, activated by the endpoint's own job, and their requests come in as events."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

import wqcore
from handlers import ids, secrets, sources
from handlers.endpoints import RegisterJob, register_job
from handlers.sources import (
    ActivateSource,
    DeliverHttpSourceRequest,
    RegisterDynamicTrigger,
    RegisterSource,
    activate_source,
    deliver_http_source_request,
    register_dynamic_trigger,
    register_source,
)
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "endpoint", "pg", "platform"]

KEY = "github.repo.acme/app"
SOURCE: dict[str, Any] = {
    "version": "2",
    "channel": "HTTP",
    "integration": {"id": "github", "metadata": {"id": "github", "name": "GitHub"}, "authSource": "LOCAL"},
    "key": KEY,
    "params": {"owner": "acme"},
    "options": {"event": ["push", "issues", "push"], "target": ["org"]},
}
HIDDEN = {
    "id": KEY, "name": KEY, "version": "1", "event": {"name": "x"}, "enabled": True, "internal": True,
    "trigger": {"type": "static", "rule": {"event": "dev.trigger.source.register.v2", "source": "trigger.dev",
                                           "payload": {"source": {"key": [KEY]}}}},
}  # fmt: skip


async def register(endpoint_id: str, **changes: Any) -> None:
    await register_source(RegisterSource(endpoint_id, SOURCE | changes), make_job())


async def update(platform: Platform, **body: Any) -> dict[str, Any] | None:
    return await sources.update_source(
        platform.store, platform.environment, "shop", body.pop("key", KEY), {"options": {}} | body
    )  # fmt: skip


def source_id(platform: Platform) -> str:
    return str(platform.one("select id from {s}.trigger_source"))


def activations(platform: Platform) -> list[dict[str, Any]]:
    """The payloads of the events that ask for a registration, oldest first."""
    return [
        payload
        for (payload,) in platform.sql(
            "select payload from {s}.event_record where name like 'dev.trigger.source.register%%' order by id"
        )
    ]  # fmt: skip


def events_of(platform: Platform) -> list[tuple[Any, ...]]:
    return platform.sql("select name, value, registered, wanted from {s}.source_event order by 1, 2")


async def test_a_source_gets_its_row_a_secret_and_its_events_and_is_activated(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    assert platform.sql(
        "select s.key, s.channel, s.version, s.params, s.active, i.slug, s.endpoint_id from {s}.trigger_source s"
        " join {s}.integration i on i.id = s.integration_id"
    ) == [(KEY, "HTTP", "2", {"owner": "acme"}, False, "github", shop)]
    assert events_of(platform) == [
        ("event", "issues", False, True), ("event", "push", False, True), ("target", "org", False, True),
    ]  # fmt: skip
    assert len(secrets.unseal(platform.one("select value_sealed from {s}.secret"))) == 64
    assert platform.sql("select args, serial_key from {wq}.job where kind = 'activateSource'") == [
        ({"id": source_id(platform)}, f"endpoint-{shop}")
    ]


async def test_a_source_that_is_registered_again_keeps_its_row_and_its_secret(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    before = platform.sql("select s.id, x.id, x.value_sealed from {s}.trigger_source s, {s}.secret x")
    await asyncio.gather(*(register(shop) for _ in range(5)))
    assert platform.sql("select s.id, x.id, x.value_sealed from {s}.trigger_source s, {s}.secret x") == before


async def test_a_source_whose_job_is_not_registered_yet_is_tried_again(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    hidden = {"registerSourceJob": {"id": KEY, "version": "1"}}
    with pytest.raises(wqcore.Retry, match="is not registered yet"):
        await register(shop, **hidden)
    assert platform.one("select count(*) from {s}.trigger_source") == 0
    await register_job(RegisterJob(shop, HIDDEN), make_job())
    await register(shop, **hidden)
    assert platform.one(
        "select j.slug from {s}.trigger_source s join {s}.job j on j.id = s.register_job_id"
    ) == KEY  # fmt: skip


async def test_an_activation_asks_for_all_events_once_a_job(platform: Platform) -> None:
    await register(platform.add_endpoint("http://a.example"))
    source = source_id(platform)
    for attempt in (1, 2):
        await activate_source(ActivateSource(source), make_job(41, attempt=attempt))
    assert platform.sql("select event_id, name, source, source_context from {s}.event_record") == [
        (f"{source}:41", "dev.trigger.source.register.v2", "trigger.dev", None)
    ]
    assert activations(platform) == [
        {
            "id": source,
            "source": {
                "key": KEY,
                "params": {"owner": "acme"},
                "active": False,
                "secret": secrets.unseal(platform.one("select value_sealed from {s}.secret")),
                "channel": {"type": "HTTP", "url": f"http://127.0.0.1:3030/api/v1/sources/http/{source}"},
                "clientId": "github",
            },
            "options": {
                "event": {"desired": ["issues", "push"], "missing": [], "orphaned": []},
                "target": {"desired": ["org"], "missing": [], "orphaned": []},
            },
        }
    ]
    assert len(platform.jobs("deliverEvent")) == 1


async def test_what_the_registration_reports_is_kept_and_the_source_is_active(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    reported = {"event": ["push", "issues", "unasked"], "target": ["org"]}
    reply = await update(platform, key=KEY, secret="from-github", data={"hook": 5}, options=reported)
    assert reply == {"id": source_id(platform), "key": KEY}
    assert all(registered for _, _, registered, _ in events_of(platform))
    assert len(events_of(platform)) == 3
    assert platform.sql("select active, channel_data from {s}.trigger_source") == [(True, {"hook": 5})]
    assert secrets.unseal(platform.one("select value_sealed from {s}.secret")) == "from-github"
    await update(platform, options={"event": ["push"]})
    assert platform.one("select channel_data from {s}.trigger_source") == {"hook": 5}
    assert secrets.unseal(platform.one("select value_sealed from {s}.secret")) == "from-github"


async def test_only_a_source_of_the_environment_and_an_endpoint_of_it_can_be_updated(platform: Platform) -> None:
    await register(platform.add_endpoint("http://a.example"))
    assert await update(platform, key="other") is None
    assert await sources.update_source(platform.store, platform.environment, "other", KEY, {"options": {}}) is None
    assert await sources.update_source(platform.store, "env_other", "shop", KEY, {"options": {}}) is None
    assert platform.one("select active from {s}.trigger_source") is False


@pytest.mark.parametrize(("body", "field"), [({}, "`options`"), ({"options": {"event": "push"}}, r"`\$\.options")])
async def test_a_report_that_does_not_fit_names_the_field(platform: Platform, body: Any, field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        await sources.update_source(platform.store, platform.environment, "shop", KEY, body)


async def test_an_active_source_is_asked_for_what_is_missing_and_what_is_orphaned(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    await update(platform, options={"event": ["push", "issues"], "target": ["org"]}, data=[1])
    await register(shop)
    assert len(platform.jobs("activateSource")) == 1
    await register(shop, options={"event": ["push", "release"], "target": ["org"]})
    assert platform.jobs("activateSource")[1:] == [{"id": source_id(platform), "orphanedEvents": ["issues"]}]
    await activate_source(ActivateSource(source_id(platform), ["issues", "older"]), make_job(42))
    [payload] = activations(platform)
    assert payload["options"] == {
        "event": {"desired": ["push"], "missing": ["release"], "orphaned": ["issues", "older"]},
        "target": {"desired": ["org"], "missing": [], "orphaned": []},
    }
    assert (payload["source"]["active"], payload["source"]["data"]) == (True, [1])
    await update(platform, options={"event": ["push", "release"], "target": ["org"]})
    await register(shop, options={"event": ["push", "release"], "target": ["org"]})
    assert len(platform.jobs("activateSource")) == 2
    assert [value for _, value, _, _ in events_of(platform)] == ["push", "release", "org"]


async def test_a_source_of_version_1_is_asked_in_its_own_words(platform: Platform) -> None:
    old = {"channel": "HTTP", "key": "old", "params": None, "events": ["issues"]}
    await register_source(RegisterSource(platform.add_endpoint("http://a.example"), old), make_job())
    await activate_source(ActivateSource(source_id(platform)), make_job())
    assert platform.one("select name from {s}.event_record") == "dev.trigger.source.register"
    [payload] = activations(platform)
    assert (payload["events"], payload["missingEvents"], payload["orphanedEvents"]) == (["issues"], [], [])
    assert "clientId" not in payload["source"]
    body = {"registeredEvents": ["issues"]}
    await sources.update_source(platform.store, platform.environment, "shop", "old", body)
    assert events_of(platform) == [("event", "issues", True, True)]


async def test_a_source_that_is_gone_or_not_served_cannot_be_activated(platform: Platform) -> None:
    with pytest.raises(wqcore.Discard, match="no source 'src_gone'"):
        await activate_source(ActivateSource("src_gone"), make_job())
    await register(platform.add_endpoint("http://a.example"), channel="SQS")
    assert platform.one("select count(*) from {s}.secret") == 0
    with pytest.raises(wqcore.Discard, match="channel SQS"):
        await activate_source(ActivateSource(source_id(platform)), make_job())


async def deliverable(platform: Platform, endpoint: EndpointServer, body: bytes | None = b"raw \x00\xff") -> str:
    await register(platform.add_endpoint(endpoint.url))
    delivery = await sources.accept_delivery(
        platform.store, source_id(platform), "POST", "https://p.example/api/v1/sources/http/x?a=ü b",
        {"x-github-event": "push", "x-odd": "ü"}, body,
    )  # fmt: skip
    assert delivery is not None
    return delivery


async def test_a_request_is_handed_to_the_endpoint_as_it_came_and_its_events_come_in(
    platform: Platform, endpoint: EndpointServer
) -> None:
    delivery = await deliverable(platform, endpoint)
    await update(platform, data={"hook": 5})
    endpoint.will_answer(
        {
            "events": [
                {"name": "push", "source": "github.com", "payload": {"n": 1}, "id": "given", "context": {"c": 1}},
                {"name": "opened", "payload": None, "timestamp": "2026-01-02T03:04:05Z"},
            ],
            "response": {"status": 200, "body": {"ok": True}},
            "metadata": {"cursor": "ü"},
        }
    )
    for attempt in (1, 2):
        await deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job(attempt=attempt))
    [request] = endpoint.requests
    assert request.body == b"raw \x00\xff"
    sent = {name: value for name, value in request.headers.items() if name.startswith("x-t") or name == "content-type"}
    assert sent == {
        "content-type": "application/octet-stream",
        "x-trigger-action": "DELIVER_HTTP_SOURCE_REQUEST",
        "x-trigger-api-key": platform.api_key,
        "x-trigger-version": "2023-09-29",
        "x-ts-key": KEY,
        "x-ts-secret": secrets.unseal(platform.one("select value_sealed from {s}.secret")),
        "x-ts-params": '{"owner": "acme"}',
        "x-ts-data": '{"hook": 5}',
        "x-ts-http-url": "https://p.example/api/v1/sources/http/x?a=%C3%BC%20b",
        "x-ts-http-method": "POST",
        "x-ts-http-headers": '{"x-odd": "\\u00fc", "x-github-event": "push"}',
    }
    columns = "select event_id, name, source, payload, context from {s}.event_record order by name"
    assert platform.sql(columns) == [
        (f"{delivery}:1", "opened", "trigger.dev", None, None),
        ("given", "push", "github.com", {"n": 1}, {"c": 1}),
    ]
    happened = platform.one("""select "timestamp" from {s}.event_record where name = 'opened'""")
    assert happened == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert platform.one("select metadata from {s}.trigger_source") == {"cursor": "ü"}
    assert len(platform.jobs("deliverEvent")) == 2
    assert platform.one("select delivered_at is not null from {s}.http_source_delivery")


async def test_the_sources_metadata_goes_along_with_its_next_request(
    platform: Platform, endpoint: EndpointServer
) -> None:
    delivery = await deliverable(platform, endpoint, body=None)
    platform.sql("update {s}.trigger_source set metadata = '[1]'")
    endpoint.will_answer({"events": []})
    await deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job())
    [request] = endpoint.requests
    assert (request.headers["x-ts-metadata"], request.headers["x-ts-data"], request.body) == ("[1]", "{}", b"")
    assert "x-ts-auth" not in request.headers
    assert platform.one("select metadata from {s}.trigger_source") == [1]


async def test_a_hosted_integrations_connection_goes_along(platform: Platform, endpoint: EndpointServer) -> None:
    delivery = await deliverable(platform, endpoint)
    endpoint.will_answer({"events": []})
    platform.sql("update {s}.integration set auth_source = 'HOSTED', token_url = 'https://github.example/token'")
    for account, token in (None, "tok"), ("someone-else", "other"):
        platform.sql(
            "insert into {s}.connection (id, organization_id, integration_id, account_id, access_token_sealed, scopes)"
            " select %s, organization_id, id, %s, %s, '{{repo}}' from {s}.integration",
            ids.new("con"), account, secrets.seal(token),
        )  # fmt: skip
    await deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job())
    assert msgspec.json.decode(endpoint.requests[0].headers["x-ts-auth"]) == {
        "type": "oauth2", "accessToken": "tok", "scopes": ["repo"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(500), wqcore.Retry),
        (Answer(closes=True), wqcore.Retry),
        (Answer(400, b'{"message": "Invalid headers"}'), wqcore.Discard),
        (Answer(body=b'{"events": [{}]}'), wqcore.Discard),
    ],
)
async def test_a_request_that_the_endpoint_does_not_handle_stays_undelivered(
    platform: Platform, endpoint: EndpointServer, answer: Answer, outcome: type[Exception]
) -> None:
    delivery = await deliverable(platform, endpoint)
    endpoint.will_answer(answer)
    with pytest.raises(outcome, match="DELIVER_HTTP_SOURCE_REQUEST"):
        await deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job())
    assert platform.one("select delivered_at from {s}.http_source_delivery") is None


async def test_two_workers_with_one_request_make_its_events_once(platform: Platform, endpoint: EndpointServer) -> None:
    delivery = await deliverable(platform, endpoint)
    endpoint.will_answer({"events": [{"name": "a", "payload": 1}]})
    await asyncio.gather(
        *(deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job()) for _ in range(8))
    )
    assert platform.one("select count(*) from {s}.event_record") == 1
    assert len(platform.jobs("deliverEvent")) == 1


async def test_requests_are_accepted_while_the_source_is_wanted_or_active(platform: Platform) -> None:
    shop = platform.add_endpoint("http://a.example")
    await register(shop)
    source = source_id(platform)

    async def accepted(to: str) -> bool:
        return await sources.accept_delivery(platform.store, to, "POST", "http://p.example/", {}, b"") is not None

    assert await accepted(source)
    assert platform.sql("select kind, serial_key from {wq}.job where kind like 'deliver%%'") == [
        ("deliverHttpSourceRequest", f"endpoint-{shop}")
    ]
    platform.sql("update {s}.source_event set wanted = false")
    assert not await accepted(source)
    await update(platform, options={"event": ["push"]})
    assert await accepted(source)
    assert not await accepted("src_gone")
    assert len(platform.jobs("deliverHttpSourceRequest")) == 2


RULE = {"event": "push", "source": "github.com", "payload": {"repository": ["app"]}}
REGISTRATION = {"rule": RULE, "source": SOURCE, "accountId": "ada"}


async def add_dynamic(platform: Platform, key: str, body: Any, idempotency_key: str | None) -> dict[str, Any] | None:
    async with platform.store.transaction() as tx:
        return await sources.register_dynamic(
            tx, platform.environment, "shop", "on-push", key, body, idempotency_key=idempotency_key
        )  # fmt: skip


async def declare_dynamic(platform: Platform, url: str = "http://a.example") -> None:
    shop = platform.add_endpoint(url)
    metadata = {"id": "on-push", "jobs": [], "registerSourceJob": {"id": "hidden", "version": "1"}}
    await register_dynamic_trigger(RegisterDynamicTrigger(shop, metadata), make_job())


async def test_a_registration_on_a_dynamic_trigger_has_a_source_and_a_dispatcher_of_its_own(platform: Platform) -> None:
    await declare_dynamic(platform)
    for request in ("r1", "r1", "r2"):
        reply = await add_dynamic(platform, "acme", REGISTRATION, request)
    trigger = platform.one("select id from {s}.dynamic_trigger")
    source = source_id(platform)
    assert platform.sql("select key, registration_key, account_id, dynamic_trigger_id from {s}.trigger_source") == [
        (f"{trigger}:acme:{KEY}", "acme", "ada", trigger)
    ]
    assert platform.sql(
        "select key, kind, target_id, events, source, payload_filter, manual, enabled from {s}.event_dispatcher"
    ) == [(source, "DYNAMIC_TRIGGER", trigger, ["push"], "github.com", {"repository": ["app"]}, False, True)]
    assert reply is not None
    assert reply["options"]["event"] == {"desired": ["issues", "push"], "missing": [], "orphaned": []}
    assert (reply["id"], reply["source"]["key"]) == (source, f"{trigger}:acme:{KEY}")
    assert activations(platform) == [reply | {"dynamicTriggerId": "on-push"}] * 2
    assert len(platform.jobs("deliverEvent")) == 2


async def test_a_registration_that_is_active_asks_for_nothing(platform: Platform) -> None:
    await declare_dynamic(platform)
    reply = await add_dynamic(platform, "acme", REGISTRATION, "r1")
    assert reply is not None
    own_key = reply["source"]["key"]
    assert await update(platform, key=own_key, options=SOURCE["options"]) == {"id": source_id(platform), "key": own_key}
    await add_dynamic(platform, "acme", REGISTRATION, "r2")
    assert len(activations(platform)) == 1
    await add_dynamic(platform, "other", REGISTRATION, "r3")
    assert len(activations(platform)) == 2


async def test_a_registration_on_an_unknown_trigger_is_not_found_and_one_that_does_not_fit_names_the_field(
    platform: Platform,
) -> None:
    assert await add_dynamic(platform, "acme", REGISTRATION, None) is None
    with pytest.raises(msgspec.ValidationError, match="`rule`"):
        await add_dynamic(platform, "acme", {"source": SOURCE}, None)


async def test_a_request_for_a_dynamic_source_names_its_trigger_and_its_runs_see_the_registration(
    platform: Platform, endpoint: EndpointServer
) -> None:
    await declare_dynamic(platform, endpoint.url)
    await add_dynamic(platform, "acme", REGISTRATION, None)
    delivery = await sources.accept_delivery(
        platform.store, source_id(platform), "PUT", "http://p.example/", {}, b"{}"
    )  # fmt: skip
    assert delivery is not None
    endpoint.will_answer({"events": [{"name": "push", "payload": 1}]})
    await deliver_http_source_request(DeliverHttpSourceRequest(delivery), make_job())
    headers = endpoint.requests[0].headers
    trigger = platform.one("select id from {s}.dynamic_trigger")
    assert (headers["x-ts-dynamic-id"], headers["x-ts-key"]) == ("on-push", f"{trigger}:acme:{KEY}")
    assert platform.sql("select source_context, account_id from {s}.event_record where name = 'push'") == [
        ({"id": "acme", "metadata": None}, "ada")
    ]
