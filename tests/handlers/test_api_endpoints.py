"""An endpoint is stored and indexed when it has answered as itself; where it was before does not matter."""

from __future__ import annotations

import pytest

from tests.fix_api import ApiServer, api
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "endpoint", "pg", "platform"]


async def test_an_endpoint_is_pinged_stored_and_its_index_enqueued(api: ApiServer, endpoint: EndpointServer) -> None:
    endpoint.will_answer({"ok": True})
    answer = await api.call("POST", "/api/v1/endpoints", {"url": endpoint.url, "id": "shop"})
    assert (answer.status, answer.body["slug"], answer.body["url"]) == (200, "shop", endpoint.url)
    [ping] = endpoint.requests
    assert (ping.headers["x-trigger-action"], ping.headers["x-trigger-endpoint-id"]) == ("PING", "shop")
    assert ping.headers["x-trigger-api-key"] == api.platform.api_key
    [job] = api.platform.jobs("indexEndpoint")
    assert (job["id"], job["source"]) == (answer.body["id"], "API")
    assert api.platform.one("select serial_key from {wq}.job") == f"endpoint-{answer.body['id']}"


async def test_registering_again_moves_the_endpoint_and_indexes_it_again(
    api: ApiServer, endpoint: EndpointServer
) -> None:
    endpoint.will_answer({"ok": True})
    first = await api.call("POST", "/api/v1/endpoints", {"url": endpoint.url, "id": "shop"})
    moved = await api.call("POST", "/api/v1/endpoints", {"url": endpoint.url + "?v=2", "name": "shop"})
    assert (moved.body["id"], moved.body["url"]) == (first.body["id"], endpoint.url + "?v=2")
    theirs = await api.call("POST", "/api/v1/endpoints", {"url": endpoint.url, "id": "shop"}, key=api.stranger)
    assert theirs.body["id"] != first.body["id"]
    assert len(api.platform.jobs("indexEndpoint")) == 3


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Answer(body=b'{"ok": false, "error": "Endpoint ID mismatch"}'), "Endpoint ID mismatch"),
        (Answer(status=401, body=b'{"message": "Unauthorized"}'), "401"),
        (Answer(status=500), "500"),
        (Answer(closes=True), "PING"),
        (Answer(body=b"<html>"), "does not fit"),
    ],
)
async def test_one_that_does_not_answer_as_itself_is_not_stored(
    api: ApiServer, endpoint: EndpointServer, said: Answer, text: str
) -> None:
    endpoint.will_answer(said)
    answer = await api.call("POST", "/api/v1/endpoints", {"url": endpoint.url, "id": "shop"})
    assert (answer.status, answer.body["field"]) == (422, "url")
    assert text in answer.body["error"]
    assert api.platform.one("select count(*) from {s}.endpoint") == 0
    assert api.platform.jobs("indexEndpoint") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "ftp://x", "id": "shop"}, "url"),
        ({"url": "http://127.0.0.1:1/"}, "id"),
        ({"url": "http://127.0.0.1:1/", "id": "a\r\nb"}, "id"),
        ({"id": "shop"}, "url"),
    ],
)
async def test_what_is_no_endpoint_is_refused(api: ApiServer, body: dict[str, str], field: str) -> None:
    answer = await api.call("POST", "/api/v1/endpoints", body)
    assert (answer.status, answer.body["field"]) == (422, field)
