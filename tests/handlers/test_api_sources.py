"""Outside services deliver without a key; endpoints say what registrations came to, and register dynamic ones."""

from __future__ import annotations

from typing import Any

import pytest

from handlers import ids
from tests.fix_api import ApiServer, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["api", "empty_dsn", "pg", "platform"]

SECRET_KEY = "push.own/er?x=1"


def add_source(p: Platform, *, active: bool = True) -> str:
    source, endpoint = ids.new("src"), p.add_endpoint("http://127.0.0.1:1/")
    p.sql(
        "insert into {s}.trigger_source (id, environment_id, endpoint_id, key, channel, active) "
        "values (%s, %s, %s, %s, 'HTTP', %s)",
        source, p.environment, endpoint, SECRET_KEY, active,
    )  # fmt: skip
    return source


def add_dynamic(p: Platform, type_: str) -> None:
    p.sql(
        "insert into {s}.dynamic_trigger (id, endpoint_id, environment_id, slug, type) values (%s, %s, %s, 'dyn', %s)",
        ids.new("dyn"), p.add_endpoint("http://127.0.0.1:1/"), p.environment, type_,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "REPORT"])
async def test_any_request_to_a_source_is_stored_as_it_came_and_its_delivery_enqueued(
    api: ApiServer, method: str
) -> None:
    source = add_source(api.platform)
    path = f"/api/v1/sources/http/{source}"
    body = b"\x00\xff raw"
    answer = await api.call(method, f"{path}?a=1&b=%20", data=body, key=None, x_signature="s")
    assert (answer.status, answer.body) == (200, {"ok": True})
    [row] = api.platform.sql("select id, method, url, headers, body, source_id from {s}.http_source_delivery")
    assert row[1:3] == (method, f"http://127.0.0.1:3030{path}?a=1&b=%20")
    assert row[3]["x-signature"] == "s"
    assert row[4:] == (body, source)
    assert api.platform.jobs("deliverHttpSourceRequest") == [{"id": row[0]}]


async def test_a_source_that_is_not_there_or_takes_nothing_is_404_and_a_long_body_413(api: ApiServer) -> None:
    source = add_source(api.platform, active=False)
    for unknown in (source, "src_none"):
        assert (await api.call("POST", f"/api/v1/sources/http/{unknown}", data=b"x", key=None)).status == 404
    assert (await api.call("POST", f"/api/v1/sources/http/{source}", data=bytes(1 << 21), key=None)).status == 413
    assert api.platform.one("select count(*) from {s}.http_source_delivery") == 0


async def test_a_source_is_updated_under_a_key_that_has_slashes_and_a_question_mark(api: ApiServer) -> None:
    source = add_source(api.platform, active=False)
    path = f"/api/v2/shop/sources/{SECRET_KEY}"
    answer = await api.call("PUT", path, {"key": SECRET_KEY, "secret": "s", "options": {"event": ["push"]}})
    assert (answer.status, answer.body) == (200, {"id": source, "key": SECRET_KEY})
    assert api.platform.one("select active from {s}.trigger_source") is True
    wrong = await api.call("PUT", path, {"options": {"event": "push"}})
    assert (wrong.status, wrong.body["field"]) == (422, "options[...]")


async def test_a_dynamic_trigger_is_registered(api: ApiServer) -> None:
    add_dynamic(api.platform, "EVENT")
    body: dict[str, Any] = {
        "rule": {"event": "push", "source": "github.com", "payload": {}},
        "source": {
            "version": "2", "key": "k", "channel": "HTTP", "params": {}, "options": {"event": ["push"]},
            "integration": {"id": "github", "metadata": {"id": "github", "name": "GitHub"}, "authSource": "LOCAL"},
        },
    }  # fmt: skip
    path = "/api/v2/shop/triggers/dyn/registrations/a/b"
    answer = await api.call("PUT", path, body, idempotency_key="once")
    assert (answer.status, answer.body["options"]["event"]["desired"]) == (200, ["push"])
    await api.call("PUT", path, body, idempotency_key="once")
    assert len(api.platform.jobs("deliverEvent")) == 1
    assert (await api.call("PUT", path, {"rule": {}})).status == 422


async def test_a_schedule_is_registered_and_unregistered_under_an_encoded_key(api: ApiServer) -> None:
    add_dynamic(api.platform, "SCHEDULE")
    path = "/api/v1/shop/schedules/dyn/registrations"
    body = {"id": "a/b c", "type": "interval", "options": {"seconds": 60}}
    answer = await api.call("POST", path, body)
    assert (answer.status, answer.body["id"], answer.body["active"]) == (200, "a/b c", True)
    assert answer.body["schedule"] == {"type": "interval", "options": {"seconds": 60}}
    gone = await api.call("DELETE", f"{path}/a%2Fb%20c", content_type="application/json")
    assert (gone.status, gone.body) == (200, {"ok": True})
    assert (await api.call("DELETE", f"{path}/other")).status == 404
    wrong = await api.call("POST", path, {"id": "a", "type": "interval", "options": {"seconds": "soon"}})
    assert (wrong.status, wrong.body["field"]) == (422, "options.seconds")
