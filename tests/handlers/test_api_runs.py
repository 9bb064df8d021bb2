"""Runs are shown with their tasks page by page, say of themselves what they like, and share a store."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fix_api import ApiServer, api
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform

__all__ = ["api", "empty_dsn", "pg", "platform"]


async def add_task(api: ApiServer, run: str, key: str, **body: Any) -> str:
    answer = await api.call("POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": key, "displayKey": key} | body)
    return str(answer.body["id"])


def keys(tasks: list[dict[str, Any]]) -> list[Any]:
    """The keys of tasks, with those of their subtasks in a list behind."""
    found: list[Any] = []
    for task in tasks:
        found.append(task["displayKey"])
        if "subtasks" in task:
            found.append(keys(task["subtasks"]))
    return found


async def test_a_run_shows_its_tasks_at_the_top_or_all_as_a_tree(api: ApiServer) -> None:
    run = api.add_run()
    a = await add_task(api, run, "a")
    await add_task(api, run, "a1", parentId=a)
    await add_task(api, run, "b")
    plain = await api.call("GET", f"/api/v2/runs/{run}")
    assert (plain.body["id"], plain.body["status"], plain.body["statuses"]) == (run, "STARTED", [])
    assert (plain.body["startedAt"], plain.body["completedAt"], plain.body["output"]) == (None, None, None)
    assert keys(plain.body["tasks"]) == ["a", "b"]
    assert "params" not in plain.body["tasks"][0]
    deep = await api.call("GET", f"/api/v2/runs/{run}?subtasks=true")
    assert keys(deep.body["tasks"]) == ["a", ["a1"], "b"]


async def test_details_hide_what_the_task_wants_hidden(api: ApiServer) -> None:
    run = api.add_run()
    params = {"secret": "s", "list": [{"token": "t", "n": 1}], "open": 1}
    await add_task(api, run, "a", params=params, redact={"paths": ["secret", "list.token", "open.nothing", "no.where"]})
    answer = await api.call("GET", f"/api/v2/runs/{run}?taskdetails=true")
    assert answer.body["tasks"][0]["params"] == {
        "secret": "[REDACTED]", "list": [{"token": "[REDACTED]", "n": 1}], "open": 1,
    }  # fmt: skip


async def test_tasks_come_page_by_page(api: ApiServer) -> None:
    run = api.add_run()
    for n in range(5):
        await add_task(api, run, str(n))
    seen, cursor = [], ""
    for size in (2, 2, 1):
        page = (await api.call("GET", f"/api/v2/runs/{run}?take=2&cursor={cursor}")).body
        assert len(page["tasks"]) == size
        seen += keys(page["tasks"])
        cursor = page.get("nextCursor", "")
    assert (seen, cursor) == (["0", "1", "2", "3", "4"], "")


async def test_take_is_bounded_and_a_number(api: ApiServer) -> None:
    run = api.add_run()
    for bad in ("0", "-1", "x", "٣", "1e3"):
        assert (await api.call("GET", f"/api/v2/runs/{run}?take={bad}")).body["field"] == "take"
    assert (await api.call("GET", f"/api/v2/runs/{run}?take=999")).status == 200


async def test_the_runs_of_a_job_come_newest_first_page_by_page(api: ApiServer) -> None:
    runs = [api.add_run() for _ in range(3)]
    api.add_run(job="other")
    first = (await api.call("GET", "/api/v1/jobs/hello/runs?take=2")).body
    assert [run["id"] for run in first["runs"]] == [runs[2], runs[1]]
    rest = (await api.call("GET", f"/api/v1/jobs/hello/runs?take=2&cursor={first['nextCursor']}")).body
    assert [run["id"] for run in rest["runs"]] == [runs[0]]
    assert "nextCursor" not in rest
    assert (await api.call("GET", "/api/v1/jobs/none/runs")).status == 404


async def test_a_run_is_canceled_once_with_its_open_tasks_and_its_place_is_given_back(api: ApiServer) -> None:
    run = api.add_run()
    await add_task(api, run, "open")
    api.platform.sql("update {s}.job_run set has_place = true where id = %s", run)
    api.platform.sql(
        "update {s}.job_queue set job_count = 1 where id = (select queue_id from {s}.job_run where id = %s)", run
    )
    answer = await api.call("POST", f"/api/v1/runs/{run}/cancel")
    assert (answer.status, answer.body["status"], answer.body["tasks"][0]["status"]) == (200, "CANCELED", "CANCELED")
    assert (await api.call("POST", f"/api/v1/runs/{run}/cancel")).body == answer.body
    assert api.platform.one("select sum(job_count) from {s}.job_queue") == 0
    assert api.platform.jobs("runFinished") == [{"id": run}]
    assert (await api.call("POST", f"/api/v1/runs/{run}/tasks", {"idempotencyKey": "open"})).body[
        "status"
    ] == "CANCELED"


async def test_the_open_runs_of_an_event_or_a_job_are_canceled(api: ApiServer) -> None:
    runs = [api.add_run() for _ in range(3)]
    other = api.add_run(job="other")
    event = api.platform.one("select event_id from {s}.job_run where id = %s", runs[0])
    by_event = await api.call("POST", f"/api/v1/events/{event}/cancel-runs")
    assert by_event.body == {"cancelledRunIds": [runs[0]], "failedToCancelRunIds": []}
    assert (await api.call("POST", f"/api/v1/events/{event}/cancel-runs")).body["cancelledRunIds"] == []
    by_job = await api.call("POST", "/api/v1/jobs/hello/cancel-runs")
    assert by_job.body == {"cancelledRunIds": [runs[2], runs[1]], "failedToCancelRunIds": []}
    assert (await api.call("GET", f"/api/v2/runs/{other}")).body["status"] == "STARTED"


async def test_a_job_is_invoked_once_for_each_key(api: ApiServer) -> None:
    api.add_run(job="hello")
    api.platform.sql(
        "insert into {s}.job_alias (job_id, environment_id, name, version_id) "
        "select job_id, environment_id, 'latest', id from {s}.job_version"
    )
    api.platform.sql("insert into {s}.run_counter (job_id, last_number) select id, 1 from {s}.job")
    body = {"payload": {"a": 1}, "context": {}, "options": {"accountId": "ada"}}
    answers = await asyncio.gather(
        *(api.call("POST", "/api/v1/jobs/hello/invoke", body, idempotency_key="once") for _ in range(20))
    )
    [run] = {answer.body["id"] for answer in answers}
    assert api.platform.jobs("startRun") == [{"id": run}]
    assert api.platform.jobs("deliverEvent") == []
    [row] = api.platform.sql(
        "select r.number, r.account_id, e.name, e.payload, e.event_id from {s}.job_run r "
        "join {s}.event_record e on e.id = r.event_id where r.id = %s", run
    )  # fmt: skip
    assert row[:4] == (2, "ada", "invoke", {"a": 1})
    assert [shown["id"] for shown in (await api.call("GET", f"/api/v2/events/{row[4]}")).body["runs"]] == [run]
    assert (await api.call("POST", "/api/v1/jobs/hello/invoke", body)).body["id"] != run
    with_callback = await api.call("POST", "/api/v1/jobs/hello/invoke", {"options": {"callbackUrl": "http://x"}})
    assert with_callback.body["field"] == "options.callbackUrl"


async def test_a_job_without_an_enabled_version_is_not_invoked_and_leaves_no_event(api: ApiServer) -> None:
    api.add_run(job="hello")
    before = api.platform.one("select count(*) from {s}.event_record")
    assert (await api.call("POST", "/api/v1/jobs/hello/invoke", {})).status == 409
    assert api.platform.one("select count(*) from {s}.event_record") == before


async def test_a_run_says_of_itself_what_it_likes_and_its_words_before_are_kept(api: ApiServer) -> None:
    run = api.add_run()
    path = f"/api/v1/runs/{run}/statuses/progress"
    first = await api.call("PUT", path, {"label": "Loading", "state": "loading"})
    assert first.body == {"key": "progress", "label": "Loading", "state": "loading", "history": []}
    second = await api.call("PUT", path, {"state": "success", "data": {"url": "x"}})
    assert second.body == {
        "key": "progress", "label": "Loading", "state": "success", "data": {"url": "x"},
        "history": [{"label": "Loading", "state": "loading"}],
    }  # fmt: skip
    told = await api.call("GET", f"/api/v2/runs/{run}/statuses")
    assert told.body == {"run": {"id": run, "status": "STARTED", "output": None}, "statuses": [second.body]}
    assert (await api.call("GET", f"/api/v2/runs/{run}")).body["statuses"] == [second.body]
    assert (await api.call("PUT", path, {"state": "done"})).body["field"] == "state"


async def test_an_environment_stores_text_under_keys(api: ApiServer) -> None:
    path = "/api/v1/store/run%3A1%2Fname"
    assert (await api.call("HEAD", path)).status == 404
    assert (await api.call("GET", path)).body == {"action": "GET", "key": "run:1/name"}
    put = await api.call("PUT", path, data="Grüße".encode(), content_type="text/plain")
    assert put.body == {"action": "SET", "key": "run:1/name", "value": "Grüße"}
    assert (await api.call("GET", path)).body["value"] == "Grüße"
    assert (await api.call("HEAD", path)).status == 200
    assert (await api.call("GET", path, key=api.stranger)).body == {"action": "GET", "key": "run:1/name"}
    assert [(await api.call("DELETE", path)).body["deleted"] for _ in range(2)] == [True, False]
    assert (await api.call("PUT", path, data=b"\xff")).status == 422
    assert (await api.call("PUT", path, data=b"a\0")).status == 422
