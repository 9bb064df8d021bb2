"""A task is made once for each key and ends once, however often and by how many it is asked for."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest

from handlers.records import RUN_STATUSES
from tests.fix_api import ApiServer, Reply, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "pg", "platform"]

LATER = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
EARLIER = "2023-09-29T12:00:00.000Z"


async def make(api: ApiServer, run: str, key: str = "k", **body: Any) -> Reply:
    """Asks for a task as the SDK does."""
    return await api.call(
        "POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": key, "noop": False} | body, idempotency_key=key
    )


def attempts(api: ApiServer, task: str) -> list[tuple[Any, ...]]:
    return api.platform.sql("select number, status from {s}.task_attempt where task_id = %s order by number", task)


async def test_a_task_runs_with_its_first_attempt_and_comes_back_as_the_sdk_reads_it(api: ApiServer) -> None:
    sent = {
        "name": "Charge", "displayKey": "charge", "icon": "card", "description": "Charges the card",
        "params": {"amount": 7}, "properties": [{"label": "Amount", "text": "7"}, {"label": "no text"}],
        "style": {"style": "minimal"}, "parentId": "task_1", "retry": {"limit": 3}, "connectionKey": "stripe",
    }  # fmt: skip
    answer = await make(api, api.add_run(), **sent)
    task = answer.body
    assert answer.status == 200
    assert "trigger-version" not in answer.headers
    assert (task["status"], task["noop"], task["attempts"], task["idempotencyKey"]) == ("RUNNING", False, 1, "k")
    shown = ("name", "displayKey", "icon", "description", "params", "style", "parentId")
    assert {name: task[name] for name in shown} == {name: sent[name] for name in shown}
    assert task["properties"] == [{"label": "Amount", "text": "7"}]
    assert attempts(api, task["id"]) == [(1, "PENDING")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"noop": True, "delayUntil": LATER}, "WAITING"),
        ({"noop": True, "delayUntil": EARLIER}, "COMPLETED"),
        ({"noop": True}, "COMPLETED"),
        ({"delayUntil": LATER}, "WAITING"),
        ({}, "RUNNING"),
    ],
)
async def test_the_status_follows_from_the_delay_and_from_whether_there_is_anything_to_do(
    api: ApiServer, body: dict[str, Any], status: str
) -> None:
    task = (await make(api, api.add_run(), **body)).body
    assert task["status"] == status
    assert (task["completedAt"] is not None) == (status == "COMPLETED")
    assert api.platform.jobs("performTaskOperation") == []


async def test_an_operation_runs_and_its_job_exists_once(api: ApiServer) -> None:
    run = api.add_run()
    task = (await make(api, run, operation="fetch", params={"url": "http://example.com"})).body
    assert (task["status"], task["operation"]) == ("RUNNING", "fetch")
    assert (await make(api, run, operation="fetch")).body == task
    assert api.platform.jobs("performTaskOperation") == [{"id": task["id"]}]
    assert (
        api.platform.one("select serial_key from {wq}.job where kind = 'performTaskOperation'") == f"tasks-{task['id']}"
    )


async def test_an_operation_for_later_is_performed_later(api: ApiServer) -> None:
    task = (await make(api, api.add_run(), operation="fetch", delayUntil=LATER)).body
    assert task["status"] == "RUNNING"
    run_at = api.platform.one("select run_at from {wq}.job where kind = 'performTaskOperation'")
    assert run_at == dt.datetime.fromisoformat(LATER)


async def test_the_task_of_a_key_is_returned_unchanged(api: ApiServer) -> None:
    run = api.add_run()
    first = await make(api, run, noop=True, delayUntil=LATER, name="wait")
    again = await make(api, run, noop=True, delayUntil=EARLIER, name="other")
    assert again.body == first.body
    assert (await make(api, run, "other")).body["id"] != first.body["id"]
    assert (await make(api, api.add_run())).body["id"] != first.body["id"]


async def test_twenty_posts_of_one_key_at_once_make_one_task(api: ApiServer) -> None:
    run = api.add_run()
    answers = await asyncio.gather(*(make(api, run, operation="fetch", name=str(n)) for n in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({(answer.body["id"], answer.body["name"]) for answer in answers}) == 1
    assert api.platform.one("select count(*) from {s}.task") == 1
    assert len(attempts(api, answers[0].body["id"])) == 1
    assert len(api.platform.jobs("performTaskOperation")) == 1


async def test_the_header_is_the_key_before_the_body_and_one_of_them_is_needed(api: ApiServer) -> None:
    path = f"/api/v1/runs/{api.add_run()}/tasks"
    by_header = await api.call("POST", path, {"idempotencyKey": "body"}, idempotency_key="header")
    assert by_header.body["idempotencyKey"] == "header"
    assert (await api.call("POST", path, {"idempotencyKey": "body"})).body["idempotencyKey"] == "body"
    assert (await api.call("POST", path, {})).body["field"] == "idempotencyKey"


async def test_a_callback_is_refused(api: ApiServer) -> None:
    answer = await make(api, api.add_run(), callback={"enabled": True, "timeoutInSeconds": 60})
    assert (answer.status, answer.body["field"]) == (422, "callback.enabled")
    assert (await make(api, api.add_run(), callback={"enabled": False})).status == 200


@pytest.mark.parametrize("status", RUN_STATUSES[5:])
async def test_a_run_that_has_ended_takes_no_task_but_shows_those_it_has(api: ApiServer, status: str) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    api.platform.sql("update {s}.job_run set status = %s, completed_at = now() where id = %s", status, run)
    assert (await make(api, run)).body == task
    answer = await make(api, run, "new")
    assert (answer.status, status in answer.body["error"]) == (409, True)


async def test_a_task_completes_once_with_the_json_in_the_string(api: ApiServer) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    path = f"/api/v1/runs/{run}/tasks/{task['id']}/complete"
    body = {"output": '{"a": [1.5, null]}', "properties": [{"label": "A", "text": "1.5"}]}
    answer = await api.call("POST", path, body, trigger_version="2023-11-01")
    assert (answer.status, answer.body["status"], answer.body["output"]) == (200, "COMPLETED", {"a": [1.5, None]})
    assert answer.body["outputProperties"] == body["properties"]
    assert answer.body["completedAt"]
    assert attempts(api, task["id"]) == [(1, "COMPLETED")]
    again = await api.call("POST", path, {"output": '"other"'}, trigger_version="2023-11-01")
    assert again.body == answer.body
    assert (await make(api, run)).body == answer.body


@pytest.mark.parametrize(
    ("body", "version", "output"),
    [
        ({"output": {"a": 1}}, "", {"a": 1}),
        ({"output": "7"}, "", "7"),
        ({"output": "7"}, "2023-11-01", 7),
        ({"output": {"a": 1}}, "2023-11-01", {"a": 1}),
        ({"output": "null"}, "2023-11-01", None),
        ({}, "2023-11-01", None),
    ],
)
async def test_older_sdks_send_the_output_itself(
    api: ApiServer, body: dict[str, Any], version: str, output: Any
) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    path = f"/api/v1/runs/{run}/tasks/{task['id']}/complete"
    assert (await api.call("POST", path, body, trigger_version=version)).body["output"] == output


@pytest.mark.parametrize("output", ["{", '"a\\u0000b"', '"\\ud800"'], ids=["cut off", "NUL", "a lone surrogate"])
async def test_an_output_that_cannot_be_stored_is_refused_with_its_field(api: ApiServer, output: str) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    path = f"/api/v1/runs/{run}/tasks/{task['id']}/complete"
    answer = await api.call("POST", path, {"output": output}, trigger_version="2023-11-01")
    assert (answer.status, answer.body["field"]) == (422, "output")
    assert (await make(api, run)).body["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("error", "text"),
    [({"message": "no money", "name": "Error", "stack": "…"}, "no money"), ({"code": 7}, '{"code":7}'), ("so", "so")],
)
async def test_a_task_fails_once_and_its_error_is_its_output(api: ApiServer, error: Any, text: str) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    path = f"/api/v1/runs/{run}/tasks/{task['id']}"
    answer = await api.call("POST", f"{path}/fail", {"error": error})
    assert (answer.status, answer.body["status"]) == (200, "ERRORED")
    assert (answer.body["output"], answer.body["error"]) == (error, text)
    assert attempts(api, task["id"]) == [(1, "ERRORED")]
    assert (await api.call("POST", f"{path}/complete", {"output": 1})).body == answer.body
    assert (await api.call("POST", f"{path}/fail", {})).body["field"] == "error"


async def test_ends_of_one_task_at_once_agree_on_one_of_them(api: ApiServer) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    path = f"/api/v1/runs/{run}/tasks/{task['id']}"
    answers = await asyncio.gather(
        *(
            api.call("POST", f"{path}/complete", {"output": n})
            if n % 2
            else api.call("POST", f"{path}/fail", {"error": n})
            for n in range(20)
        )
    )
    assert {answer.status for answer in answers} == {200}
    assert len({(answer.body["status"], answer.body["output"]) for answer in answers}) == 1


async def test_attempts_are_counted_as_the_platform_records_them(api: ApiServer) -> None:
    run = api.add_run()
    task = (await make(api, run)).body
    api.platform.sql("insert into {s}.task_attempt (id, task_id, number) values ('a2', %s, 2)", task["id"])
    assert (await make(api, run)).body["attempts"] == 2
    done = await api.call("POST", f"/api/v1/runs/{run}/tasks/{task['id']}/complete", {})
    assert done.body["attempts"] == 2
