"""Calls to a real HTTP endpoint: answered, refused, no answer, and an answer that does not fit."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
import pytest

import wqcore
from handlers import calls
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import app

__all__ = ["app", "endpoint"]

KEY = "tr_dev_abc123"
HELD: dict[str, Any] = {"jobs": [{"enabled": True}, {"enabled": False}], "somethingNew": {"that": "a later SDK sends"}}


class Part(msgspec.Struct):
    enabled: bool


class Held(msgspec.Struct):
    jobs: list[Part]


async def call(url: str, **headers: str) -> Held:
    caller = await calls.caller()
    return await caller.call(calls.Endpoint(url=url, api_key=KEY), "INDEX_ENDPOINT", b"{}", Held, headers=headers)


async def test_an_endpoint_is_asked_with_its_key_and_its_answer_is_read(app: Any, endpoint: EndpointServer) -> None:
    app(http={})
    endpoint.will_answer(HELD)
    held = await call(endpoint.url, **{"content-type": "application/octet-stream", "x-ts-key": "k"})
    assert [part.enabled for part in held.jobs] == [True, False]
    [request] = endpoint.requests
    assert (request.method, request.path, request.body) == ("POST", "/api/trigger", b"{}")
    wanted = {
        "content-type": "application/octet-stream",
        "x-ts-key": "k",
        "x-trigger-action": "INDEX_ENDPOINT",
        "x-trigger-api-key": KEY,
        "x-trigger-version": "2023-09-29",
    }
    assert {name: request.headers.get(name) for name in wanted} == wanted


async def test_calls_one_after_the_other_share_a_connection(app: Any, endpoint: EndpointServer) -> None:
    app(http={})
    endpoint.will_answer(HELD)
    for _ in range(5):
        await call(endpoint.url)
    assert (len(endpoint.requests), endpoint.connections) == (5, 1)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599, 408])
async def test_an_endpoint_that_cannot_answer_now_is_retried(app: Any, endpoint: EndpointServer, status: int) -> None:
    app(http={})
    endpoint.will_answer(Answer(status, b"out of order"), HELD)
    with pytest.raises(wqcore.Retry, match=f"answered {status}: out of order"):
        await call(endpoint.url)
    await call(endpoint.url)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 429, 301, 307])
async def test_an_endpoint_that_refuses_is_a_permanent_failure_with_its_words(
    app: Any, endpoint: EndpointServer, status: int
) -> None:
    app(http={})
    endpoint.will_answer(Answer(status, b'{"message": "no"}', {"location": "http://127.0.0.1:1/"}))
    with pytest.raises(wqcore.Discard, match=f'answered {status}: {{"message": "no"}}'):
        await call(endpoint.url)
    assert len(endpoint.requests) == 1


async def test_the_reason_holds_only_the_beginning_of_a_long_answer(app: Any, endpoint: EndpointServer) -> None:
    app(http={})
    endpoint.will_answer(Answer(404, b"<html>" + b"x" * 1_000_000))
    with pytest.raises(wqcore.Discard) as raised:
        await call(endpoint.url)
    assert len(str(raised.value)) < 500


async def test_no_endpoint_at_the_url_is_retried(app: Any, endpoint: EndpointServer) -> None:
    app(http={})
    await endpoint.stop()
    with pytest.raises(wqcore.Retry, match="ConnectError"):
        await call(endpoint.url)


async def test_a_connection_closed_in_the_middle_is_retried(app: Any, endpoint: EndpointServer) -> None:
    app(http={})
    endpoint.will_answer(Answer(closes=True), HELD)
    with pytest.raises(wqcore.Retry, match="INDEX_ENDPOINT at http"):
        await call(endpoint.url)
    await call(endpoint.url)


async def test_an_answer_that_takes_too_long_is_retried(app: Any, endpoint: EndpointServer) -> None:
    app(http={"total_timeout_s": 0.2})
    endpoint.will_answer(Answer(delay_s=30.0))
    with pytest.raises(wqcore.Retry, match=r"no full answer within 0\.2 s"):
        await call(endpoint.url)


async def test_an_answer_over_the_limit_is_a_permanent_failure(app: Any, endpoint: EndpointServer) -> None:
    app(http={"response_bytes_max": 2_000})
    endpoint.will_answer({"jobs": [], "padding": "x" * 3_000})
    with pytest.raises(wqcore.Discard, match="response_bytes_max = 2000"):
        await call(endpoint.url)


async def test_a_compressed_answer_that_was_not_asked_for_is_a_permanent_failure(
    app: Any, endpoint: EndpointServer
) -> None:
    app(http={})
    packed = gzip.compress(msgspec.json.encode(HELD))
    endpoint.will_answer(Answer(body=packed, headers={"content-encoding": "gzip"}))
    with pytest.raises(wqcore.Discard, match="encoded as 'gzip'"):
        await call(endpoint.url)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"<html>hello</html>", "malformed"),
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "expected `object`"),
        (b"{}", "`jobs`"),
        (b'{"jobs": null}', r"`\$\.jobs`"),
        (msgspec.json.encode({"jobs": [{"enabled": True}, {"enabled": "yes"}]}), r"`\$\.jobs\[1\]\.enabled`"),
        (b'{"jobs": [{}]}', "`enabled`"),
        (b'{"deep": ' + b"[" * 100_000, "recursion"),
    ],
)
async def test_an_answer_that_does_not_fit_is_a_permanent_failure_that_names_the_field(
    app: Any, endpoint: EndpointServer, body: bytes, field: str
) -> None:
    app(http={})
    endpoint.will_answer(Answer(body=body))
    with pytest.raises(wqcore.Discard, match=f"(?i)does not fit: .*{field}"):
        await call(endpoint.url)


async def test_a_url_that_cannot_be_called_is_a_permanent_failure(app: Any) -> None:
    app(http={})
    with pytest.raises(wqcore.Discard, match="INDEX_ENDPOINT at"):
        await call("http://[::1")


async def test_the_environments_proxy_is_not_used(
    app: Any, endpoint: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    app(http={})
    endpoint.will_answer(HELD)
    await call(endpoint.url)


def test_an_address_does_not_show_its_key() -> None:
    assert "canary" not in repr(calls.Endpoint(url="http://a.example", api_key="canary"))
