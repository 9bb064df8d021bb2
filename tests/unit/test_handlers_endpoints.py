"""indexEndpoint against a real HTTP endpoint: indexed, refused, no answer, and an answer that does not fit."""

from __future__ import annotations

import gzip
import logging
from typing import Any

import msgspec
import pytest

import wqcore
from handlers.calls import Endpoint
from handlers.endpoints import IndexEndpoint, index_endpoint
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import app, make_job

__all__ = ["app", "endpoint"]

KEY = "tr_dev_abc123"

JOB = {
    "id": "send-invoice",
    "name": "Send invoice",
    "version": "1.0.0",
    "event": {"name": "invoice.made", "title": "Invoice", "source": "trigger.dev", "icon": "bolt"},
    "trigger": {"type": "static", "title": "Invoice", "rule": {"event": "invoice.made", "source": "trigger.dev"}},
    "integrations": {},
    "internal": False,
    "enabled": True,
    "startPosition": "latest",
    "preprocessRuns": False,
}

INDEX: dict[str, Any] = {
    "jobs": [JOB, JOB | {"id": "old", "enabled": False, "queue": {"name": "slow", "maxConcurrent": 2}}],
    "sources": [
        {
            "version": "2",
            "channel": "HTTP",
            "integration": {"id": "github", "metadata": {"id": "github", "name": "GitHub"}, "authSource": "LOCAL"},
            "key": "github.repo.acme/app",
            "params": {"owner": "acme", "repo": "app"},
            "options": {"event": ["push"]},
            "registerSourceJob": {"id": "register-github", "version": "0.0.1"},
        },
        {"channel": "HTTP", "integration": {}, "key": "old", "params": None, "events": ["issues"]},
    ],
    "webhooks": [],
    "dynamicTriggers": [{"id": "on-issue", "jobs": [{"id": "triage", "version": "0.0.1"}]}],
    "dynamicSchedules": [{"id": "per-user", "jobs": []}, {"id": "per-team", "jobs": [{"id": "x", "version": "1"}]}],
    "somethingNew": {"that": "a later SDK sends"},
}


def use(app: Any, endpoint: EndpointServer, **http: Any) -> None:
    app(endpoints={"shop": {"url": endpoint.url, "api_key": KEY}}, http=http)


async def index() -> None:
    await index_endpoint(IndexEndpoint(id="shop", source="API"), make_job())


async def test_an_endpoint_is_asked_with_its_key_and_what_it_holds_is_logged(
    app: Any, endpoint: EndpointServer, caplog: pytest.LogCaptureFixture
) -> None:
    use(app, endpoint)
    endpoint.will_answer(INDEX)
    with caplog.at_level(logging.INFO, logger="handlers"):
        await index()
    [request] = endpoint.requests
    assert (request.method, request.path, request.body) == ("POST", "/api/trigger", b"{}")
    wanted = {
        "content-type": "application/json",
        "x-trigger-action": "INDEX_ENDPOINT",
        "x-trigger-api-key": KEY,
        "x-trigger-version": "2023-09-29",
    }
    assert {name: request.headers.get(name) for name in wanted} == wanted
    assert "2 jobs (1 enabled), 2 sources, 1 dynamicTriggers, 2 dynamicSchedules" in caplog.text
    assert KEY not in caplog.text


async def test_calls_one_after_the_other_share_a_connection(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint)
    endpoint.will_answer(INDEX)
    for _ in range(5):
        await index()
    assert (len(endpoint.requests), endpoint.connections) == (5, 1)


async def test_an_endpoint_without_sources_is_indexed(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint)
    endpoint.will_answer({"jobs": []})
    await index()
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599, 408])
async def test_an_endpoint_that_cannot_answer_now_is_retried(app: Any, endpoint: EndpointServer, status: int) -> None:
    use(app, endpoint)
    endpoint.will_answer(Answer(status, b"out of order"), INDEX)
    with pytest.raises(wqcore.Retry, match=f"answered {status}: out of order"):
        await index()
    await index()
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 429, 301, 307])
async def test_an_endpoint_that_refuses_is_a_permanent_failure_with_its_words(
    app: Any, endpoint: EndpointServer, status: int
) -> None:
    use(app, endpoint)
    endpoint.will_answer(Answer(status, b'{"message": "no"}', {"location": "http://127.0.0.1:1/"}))
    with pytest.raises(wqcore.Discard, match=f'answered {status}: {{"message": "no"}}'):
        await index()
    assert len(endpoint.requests) == 1


async def test_the_reason_holds_only_the_beginning_of_a_long_answer(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint)
    endpoint.will_answer(Answer(404, b"<html>" + b"x" * 1_000_000))
    with pytest.raises(wqcore.Discard) as raised:
        await index()
    assert len(str(raised.value)) < 500


async def test_no_endpoint_at_the_url_is_retried(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint)
    await endpoint.stop()
    with pytest.raises(wqcore.Retry, match="ConnectError"):
        await index()


async def test_a_connection_closed_in_the_middle_is_retried(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint)
    endpoint.will_answer(Answer(closes=True), INDEX)
    with pytest.raises(wqcore.Retry, match="INDEX_ENDPOINT at http"):
        await index()
    await index()


async def test_an_answer_that_takes_too_long_is_retried(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint, total_timeout_s=0.2)
    endpoint.will_answer(Answer(delay_s=30.0))
    with pytest.raises(wqcore.Retry, match=r"no full answer within 0\.2 s"):
        await index()


async def test_an_answer_over_the_limit_is_a_permanent_failure(app: Any, endpoint: EndpointServer) -> None:
    use(app, endpoint, response_bytes_max=2_000)
    endpoint.will_answer({"jobs": [], "padding": "x" * 3_000})
    with pytest.raises(wqcore.Discard, match="response_bytes_max = 2000"):
        await index()


async def test_a_compressed_answer_that_was_not_asked_for_is_a_permanent_failure(
    app: Any, endpoint: EndpointServer
) -> None:
    use(app, endpoint)
    packed = gzip.compress(msgspec.json.encode(INDEX))
    endpoint.will_answer(Answer(body=packed, headers={"content-encoding": "gzip"}))
    with pytest.raises(wqcore.Discard, match="encoded as 'gzip'"):
        await index()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"<html>hello</html>", "malformed"),
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "expected `object`"),
        (b"{}", "`jobs`"),
        (b'{"jobs": null}', r"`\$\.jobs`"),
        (msgspec.json.encode({"jobs": [JOB, JOB | {"enabled": "yes"}]}), r"`\$\.jobs\[1\]\.enabled`"),
        (msgspec.json.encode({"jobs": [], "sources": [{"channel": "HTTP"}]}), "`key`"),
        (b'{"jobs": [{"event": {"deep": ' + b"[" * 100_000, "recursion"),
    ],
)
async def test_an_answer_that_does_not_fit_is_a_permanent_failure_that_names_the_field(
    app: Any, endpoint: EndpointServer, body: bytes, field: str
) -> None:
    use(app, endpoint)
    endpoint.will_answer(Answer(body=body))
    with pytest.raises(wqcore.Discard, match=f"(?i)does not fit: .*{field}"):
        await index()


async def test_an_endpoint_that_nobody_configured_is_a_permanent_failure_that_names_the_table(app: Any) -> None:
    app(endpoints={})
    with pytest.raises(wqcore.Discard, match=r"\[app\.endpoints\.shop\]"):
        await index()


@pytest.mark.parametrize("table", [{"url": "ftp://a.example", "api_key": KEY}, {"url": "http://a.example"}])
async def test_a_wrong_table_is_an_error_of_the_configuration(app: Any, table: dict[str, str]) -> None:
    app(endpoints={"shop": table})
    with pytest.raises(wqcore.ConfigError, match=r"app\.endpoints"):
        await index()


async def test_a_url_that_cannot_be_called_is_a_permanent_failure(app: Any) -> None:
    app(endpoints={"shop": {"url": "http://[::1", "api_key": KEY}})
    with pytest.raises(wqcore.Discard, match="INDEX_ENDPOINT at"):
        await index()


async def test_the_environments_proxy_is_not_used(
    app: Any, endpoint: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    use(app, endpoint)
    endpoint.will_answer(INDEX)
    await index()


def test_the_settings_do_not_show_their_key() -> None:
    assert "canary" not in repr(Endpoint(url="http://a.example", api_key="canary"))
