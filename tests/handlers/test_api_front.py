"""Every request is answered in JSON, with its id, and only who has a key gets further than the door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import psycopg
import pytest

from handlers import secrets
from handlers.api import keys
from tests.fix_api import ApiServer, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "pg", "platform"]

EVENT = {"event": {"name": "x"}}
NO_KEYS = {
    "none": None,
    "a wrong one": "tr_dev_" + "a" * 32,
    "no key at all": "hunter2",
    "one with more behind it": "tr_dev_abc def",
}


@pytest.mark.parametrize("key", NO_KEYS.values(), ids=NO_KEYS.keys())
async def test_without_a_valid_key_nothing_is_read_and_the_answer_is_401(api: ApiServer, key: str | None) -> None:
    answer = await api.call("POST", "/api/v1/events", EVENT, key=key)
    assert answer.status == 401
    assert "API key" in answer.body["error"]
    assert answer.headers["www-authenticate"] == "Bearer"
    assert api.platform.one("select count(*) from {s}.event_record") == 0


async def test_a_deleted_key_stops_working(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEY_TTL_S", 0.05)
    assert (await api.call("POST", "/api/v1/events", EVENT)).status == 200
    api.platform.sql("update {s}.environment set api_key_hash = 'none' where id = %s", api.platform.environment)
    async with asyncio.timeout(10):
        while (await api.call("POST", "/api/v1/events", EVENT)).status != 401:
            pass
    assert keys.KEY_TTL_S < 10


async def test_a_new_key_works_at_once_though_it_was_refused_before(api: ApiServer) -> None:
    key = secrets.new_api_key("dev")
    assert (await api.call("POST", "/api/v1/events", EVENT, key=key)).status == 401
    api.platform.sql(
        "update {s}.environment set api_key_hash = %s where id = %s",
        secrets.api_key_hash(key),
        api.platform.environment,
    )
    assert (await api.call("POST", "/api/v1/events", EVENT, key=key)).status == 200


async def test_an_event_for_an_environment_that_was_deleted_under_a_remembered_key_is_not_a_fault(
    api: ApiServer,
) -> None:
    assert (await api.call("POST", "/api/v1/events", EVENT)).status == 200
    api.platform.sql("delete from {s}.environment where id = %s", api.platform.environment)
    assert (await api.call("POST", "/api/v1/events", EVENT)).status == 404


async def test_a_request_id_is_taken_over_if_it_is_sane_and_made_if_not(api: ApiServer) -> None:
    assert (await api.call("GET", "/healthz", x_request_id="mine-1")).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "a" * 129, "ü"):
        assert (await api.call("GET", "/healthz", x_request_id=bad)).headers["x-request-id"].startswith("req_")
    for path, key in (("/nowhere", ""), ("/api/v1/events", None)):
        assert (await api.call("POST", path, EVENT, key=key)).headers["x-request-id"].startswith("req_")


async def test_a_request_is_one_line_in_the_log_without_its_key_body_and_path_values(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await api.call("POST", "/api/v1/events/my-secret/cancel", {"x": "my-secret"}, x_request_id="mine-2")
    [line] = [record.getMessage() for record in caplog.records if record.name == "handlers.api.front"]
    assert line.startswith("POST /api/v1/events/{event}/cancel 404 ")
    assert line.endswith(" mine-2")
    assert "my-secret" not in caplog.text
    assert api.platform.api_key not in caplog.text


async def test_what_is_no_route_is_404_and_what_is_no_method_405_both_in_json(api: ApiServer) -> None:
    assert (await api.call("GET", "/api/v1/nowhere")).body == {"error": "Not Found"}
    assert (await api.call("POST", "/api/v1/events/")).status == 404
    wrong = await api.call("PUT", "/api/v1/events", EVENT)
    assert (wrong.status, wrong.body, wrong.headers["allow"]) == (405, {"error": "Method Not Allowed"}, "POST")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "event"),
        ({"event": {}}, "event.name"),
        ({"event": {"name": 7}}, "event.name"),
        ({"event": {"name": "x", "timestamp": "yesterday"}}, "event.timestamp"),
        ({"event": {"name": "x", "timestamp": "2026-01-01T00:00:00"}}, "event.timestamp"),
        ({"event": {"name": "x"}, "options": {"deliverAfter": -1}}, "options.deliverAfter"),
        ({"event": {"name": "x", "id": "a" * 513}}, "event.id"),
        ({"event": {"name": "x", "payload": {"a": ["b", {"c": "d\0"}]}}}, "event.payload.a[1].c"),
        ({"event": {"name": "x", "payload": {"a\0": 1}}}, "event.payload"),
        ({"event": {"name": "x\0"}}, "event.name"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_field(api: ApiServer, body: object, field: str) -> None:
    answer = await api.call("POST", "/api/v1/events", body)
    assert (answer.status, answer.body.get("field")) == (422, field)
    assert answer.body["error"]
    assert api.platform.one("select count(*) from {s}.event_record") == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"event": {"name": "\xff"}}', b'{"event": {"name": "\\ud800"}}', b"[" * 100_000, b"null"],
    ids=["empty", "cut off", "not UTF-8", "not UTF-8 inside", "a lone surrogate", "deep", "null"],
)
async def test_what_is_not_json_is_refused(api: ApiServer, data: bytes) -> None:
    answer = await api.call("POST", "/api/v1/events", data=data)
    assert (answer.status, bool(answer.body["error"])) == (422, True)


async def test_an_escaped_backslash_before_u0000_is_no_nul(api: ApiServer) -> None:
    answer = await api.call("POST", "/api/v1/events", {"event": {"name": "x", "payload": "\\u0000"}})
    assert (answer.status, answer.body["payload"]) == (200, "\\u0000")


async def test_a_body_over_the_limit_is_413_by_its_length_and_while_it_streams(api: ApiServer) -> None:
    assert (await api.call("POST", "/api/v1/events", data=b" " * (1 << 20) + b" ")).status == 413
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 65536
            yield b" " * 65536
            await asyncio.sleep(0)

    answer = await api.call("POST", "/api/v1/events", data=endless())
    assert answer.status == 413
    assert read < 64 << 20
    assert (await api.call("POST", "/api/v1/events", EVENT)).status == 200


async def test_a_body_at_the_limit_is_taken(api: ApiServer) -> None:
    data = b'{"event": {"name": "x"}}'
    assert (await api.call("POST", "/api/v1/events", data=data.ljust(1 << 20))).status == 200


async def test_while_the_database_is_away_the_answer_is_503_and_afterwards_all_is_well(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.api.front.Open.timeout_s", 0.5)
    assert (await api.call("GET", "/healthz", key=None)).body == {"ok": True}
    name, own = api.platform.sql("select current_database(), pg_backend_pid()")[0]
    with psycopg.connect(api.platform.dsn, dbname="postgres", autocommit=True) as admin:
        admin.execute(f'alter database "{name}" allow_connections false')
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> %s", (name, own)
        )
        away = await api.call("GET", "/healthz", key=None)
        admin.execute(f'alter database "{name}" allow_connections true')
    assert (away.status, away.headers["retry-after"]) == (503, "1")
    async with asyncio.timeout(30):
        while (await api.call("GET", "/healthz", key=None)).status != 200:
            await asyncio.sleep(0.05)


async def test_a_fault_of_the_platform_is_500_in_json_with_the_id_that_its_log_has(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.platform.sql("drop table {s}.stored_value")
    answer = await api.call("GET", "/api/v1/store/a", x_request_id="mine-3")
    assert answer.status == 500
    assert "mine-3" in answer.body["error"]
    assert "UndefinedTable" in caplog.text
    assert "mine-3" in caplog.text
