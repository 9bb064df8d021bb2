"""A fetch that the platform performs for a run ends its task once, and the run goes on."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wqcore
from handlers import executions, fetching, protocol
from handlers.tasks import PerformTaskOperation, perform_task_operation
from tests.fix_endpoint import Answer, endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform
from tests.fix_shop import Shop, make_job, shop
from wqcore import testing

__all__ = ["empty_dsn", "endpoint", "pg", "platform", "shop"]

NOW = dt.datetime(2023, 7, 1, tzinfo=dt.UTC)


async def fetch(
    shop: Shop, *answers: Answer | dict[str, Any], operation: str = "fetch", **params: Any
) -> tuple[str, str]:
    """A run that waits for a fetch with these params, performed once; run and task."""
    run, _, _ = await shop.started_run()
    shop.endpoint.will_answer(*answers)
    task = shop.add_task(run, operation=operation, params={"url": shop.endpoint.url} | params)
    await perform(task)
    return run, task


async def perform(task: str, attempt: int = 1) -> None:
    await perform_task_operation(PerformTaskOperation(task), make_job(attempt=attempt))


async def test_the_request_is_made_as_it_was_described(shop: Shop) -> None:
    await fetch(shop, {}, requestInit={
        "method": "put", "body": "ü",
        "headers": {
            "content-type": "text/plain",
            "authorization": {"__redactedString": True, "strings": ["Bearer ", "!"], "interpolations": ["secret"]},
        },
    })  # fmt: skip
    [request] = shop.endpoint.requests
    assert (request.method, request.body.decode()) == ("PUT", "ü")
    assert (request.headers["content-type"], request.headers["authorization"]) == ("text/plain", "Bearer secret!")


async def test_the_parsed_body_completes_the_task_and_the_run_goes_on(shop: Shop) -> None:
    run, task = await fetch(shop, {"stock": 7})
    assert (shop.task(task).status, shop.task(task).output) == ("COMPLETED", {"stock": 7})
    assert shop.attempts(task) == [(1, "COMPLETED", None)]
    shop.endpoint.will_answer({"status": "SUCCESS"})
    await shop.platform.drain()
    assert shop.run(run).status == "SUCCESS"
    assert [(item["id"], item["output"]) for item in shop.body()["tasks"]] == [(task, {"stock": 7})]


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff"])
async def test_a_body_that_is_no_json_is_null(shop: Shop, body: bytes) -> None:
    _, task = await fetch(shop, Answer(body=body))
    assert (shop.task(task).status, shop.task(task).output) == ("COMPLETED", None)


async def test_the_whole_response_is_the_output_of_fetch_response(shop: Shop) -> None:
    answer = Answer(status=201, body=b"[1]", headers={"X-Stock": "7"})
    _, task = await fetch(shop, answer, operation="fetch-response")
    output = shop.task(task).output
    assert (output["status"], output["data"], output["headers"]["x-stock"]) == (201, [1], "7")


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (Answer(status=404, body=b'{"error": "none"}'), {"error": "none"}),
        (Answer(status=500, body=b"oops"), {"message": "Fetch failed with status 500"}),
    ],
)
async def test_another_status_fails_the_task_and_the_run_goes_on(shop: Shop, answer: Answer, output: Any) -> None:
    run, task = await fetch(shop, answer)
    assert (shop.task(task).status, shop.task(task).output) == ("ERRORED", output)
    assert shop.attempts(task) == [(1, "ERRORED", f"Fetch failed with status {answer.status}")]
    assert len(shop.executions(run)) == 2


@pytest.mark.parametrize(
    ("params", "operation", "message"),
    [
        ({"url": "no url"}, "fetch", "InvalidUrl"),
        ({"requestInit": {"headers": {"a": "b\nc"}}}, "fetch", "ValueError"),
        ({"url": 7}, "fetch", "$.url"),
        ({"retry": {"500": {"strategy": "prayer"}}}, "fetch", "prayer"),
        ({}, "fetch-poll", "fetch-poll"),
    ],
)
async def test_a_request_that_cannot_be_made_fails_the_task(
    shop: Shop, params: dict[str, Any], operation: str, message: str
) -> None:
    run, task = await fetch(shop, {}, operation=operation, **params)
    found = shop.task(task)
    assert found.status == "ERRORED"
    assert message in found.output["message"]
    assert len(shop.executions(run)) == 2


async def test_a_body_that_cannot_be_stored_fails_the_task(shop: Shop) -> None:
    _, task = await fetch(shop, Answer(body=b'["\\u0000"]'))
    assert shop.task(task).status == "ERRORED"
    assert "cannot be stored" in shop.task(task).output["message"]


async def test_a_backoff_tries_again_later_and_then_gives_up(shop: Shop) -> None:
    strategy = {"strategy": "backoff", "limit": 2, "minTimeoutInMs": 60_000, "randomize": False}
    run, task = await fetch(shop, Answer(status=503), retry={"400-499": {"strategy": "backoff"}, "5xx": strategy})
    assert shop.attempts(task) == [(1, "ERRORED", "Fetch failed with status 503"), (2, "PENDING", None)]
    assert (shop.task(task).status, len(shop.executions(run))) == ("WAITING", 1)
    [(run_at, planned)] = shop.platform.sql(
        "select run_at, (select run_at from {s}.task_attempt where number = 2) from {wq}.job "
        "where kind = 'performTaskOperation' and serial_key = %s",
        f"tasks-{task}",
    )
    assert run_at == planned > shop.platform.one("select now() + interval '50 s'")
    await perform(task)  # a repetition of the first attempt: its successor has a job already
    assert len(shop.endpoint.requests) == 1
    shop.platform.sql("update {s}.task_attempt set run_at = now()")
    await perform(task)
    assert shop.attempts(task)[1] == (2, "ERRORED", "Fetch failed with status 503")
    assert (shop.task(task).status, len(shop.executions(run))) == ("ERRORED", 2)


async def test_a_rate_limit_tries_again_at_its_reset(shop: Shop) -> None:
    at = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)
    headers = {"x-limit": "10", "x-remaining": "0", "x-reset": str(int(at.timestamp()))}
    strategy = {
        "strategy": "headers", "limitHeader": "x-limit", "remainingHeader": "x-remaining", "resetHeader": "x-reset",
    }  # fmt: skip
    _, task = await fetch(shop, Answer(status=429, headers=headers), retry={"429": strategy})
    run_at = shop.platform.one("select run_at from {wq}.job where kind = 'performTaskOperation'")
    assert dt.timedelta(0) <= run_at - at <= dt.timedelta(seconds=fetching.RESET_JITTER_S)
    _, task = await fetch(shop, Answer(status=429, headers=headers | {"x-remaining": "3"}), retry={"429": strategy})
    assert shop.task(task).status == "ERRORED"


async def test_a_body_filter_decides_which_policy_counts(shop: Shop) -> None:
    policy = {"all": {"strategy": "backoff", "bodyFilter": {"code": ["busy"]}}}
    _, task = await fetch(shop, Answer(status=400, body=b'{"code": "busy"}'), retry=policy)
    assert shop.task(task).status == "WAITING"
    _, task = await fetch(shop, Answer(status=400, body=b'{"code": "gone"}'), retry=policy)
    assert shop.task(task).status == "ERRORED"


async def test_a_timeout_fails_the_task_or_tries_again_as_it_says(shop: Shop) -> None:
    slow = Answer(delay_s=30)
    _, task = await fetch(shop, slow, timeout={"durationInMs": 50})
    assert shop.task(task).output == {"message": "Fetch timed out after 50 ms"}
    _, task = await fetch(shop, slow, timeout={"durationInMs": 50, "retry": {"limit": 3}})
    assert shop.task(task).status == "WAITING"


async def test_no_answer_is_retried_and_fails_the_task_at_the_last_attempt(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    shop.endpoint.will_answer(Answer(closes=True))
    task = shop.add_task(run, operation="fetch", params={"url": shop.endpoint.url})
    with pytest.raises(wqcore.Retry):
        await perform(task)
    assert (shop.task(task).status, len(shop.executions(run))) == ("RUNNING", 1)
    await perform(task, attempt=3)
    assert (shop.task(task).status, len(shop.executions(run))) == ("ERRORED", 2)


async def test_a_repetition_after_the_end_fetches_nothing_and_changes_nothing(shop: Shop) -> None:
    run, task = await fetch(shop, {"n": 1}, {"n": 2})
    await perform(task)
    assert (len(shop.endpoint.requests), shop.task(task).output, len(shop.executions(run))) == (1, {"n": 1}, 2)


async def test_two_at_once_complete_the_task_once(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    shop.endpoint.will_answer({"n": 1})
    task = shop.add_task(run, operation="fetch", params={"url": shop.endpoint.url})
    await asyncio.gather(*(perform(task) for _ in range(4)))
    assert (shop.task(task).status, len(shop.executions(run))) == ("COMPLETED", 2)


async def test_a_run_that_has_ended_fetches_nothing(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    task = shop.add_task(run, operation="fetch", params={"url": shop.endpoint.url})
    await executions.end(shop.platform.store, protocol.End(status="CANCELED"), run=run)
    await perform(task)
    assert (shop.endpoint.requests, shop.task(task).status) == ([], "CANCELED")


async def test_a_task_that_does_not_exist_is_a_permanent_failure(shop: Shop) -> None:
    with pytest.raises(wqcore.Discard, match="task_none"):
        await perform("task_none")


async def test_a_run_with_a_fetch_goes_through_all_queues(shop: Shop) -> None:
    """The endpoint waits for a fetch; it fails once, and its second attempt completes it."""
    run, execution, job = await shop.started_run()
    task = shop.add_task(run, operation="fetch", params={
        "url": shop.endpoint.url, "retry": {"5xx": {"strategy": "backoff", "minTimeoutInMs": 60_000}},
    })  # fmt: skip
    shop.platform.sql("select {wq}.enqueue('performTaskOperation', json_build_object('id', %s::text))", task)
    waiting = {"status": "RESUME_WITH_TASK", "task": {"id": task, "operation": "fetch"}}
    shop.endpoint.will_answer(waiting)
    await executions.perform(execution, job)
    shop.endpoint.will_answer(Answer(status=500), {"stock": 7}, {"status": "SUCCESS"})
    await shop.platform.drain()
    assert shop.task(task).status == "WAITING"
    testing.travel(shop.platform.conn, by=dt.timedelta(minutes=3))
    shop.platform.sql("update {s}.task_attempt set run_at = now()")
    await shop.platform.drain()
    assert (shop.task(task).status, shop.task(task).output, shop.run(run).status) == (
        "COMPLETED",
        {"stock": 7},
        "SUCCESS",
    )


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("429", [429], [428, 500]),
        ("500-599", [500, 599], [499, 600]),
        ("5xx", [500, 599], [499, 600]),
        ("50x", [500, 509], [510]),
        ("401, 403", [401, 403], [402]),
        ("all", [200, 599], []),
        ("", [], [200]),
        ("5**", [], [500]),
        ("(", [], [500]),
    ],
)
def test_patterns_of_a_retry_policy(pattern: str, fitting: list[int], other: list[int]) -> None:
    assert all(fetching.fits(pattern, status) for status in fitting)
    assert not any(fetching.fits(pattern, status) for status in other)


def test_the_backoff_is_that_of_the_sdk() -> None:
    plain = fetching.Backoff(randomize=False)
    waits = [fetching.backoff_at(plain, attempts, NOW) for attempts in range(1, 6)]
    assert [round((at - NOW).total_seconds(), 3) for at in waits if at] == [1, 1, 1.8, 3.24]


@given(st.builds(fetching.Backoff, *(st.floats(0, 1e9) for _ in range(4))), st.integers(1, 10**6))
def test_a_backoff_is_never_in_the_past_nor_beyond_its_limits(strategy: fetching.Backoff, attempts: int) -> None:
    at = fetching.backoff_at(strategy, attempts, NOW)
    assert (at is None) == (attempts >= strategy.limit)
    if at is not None:
        assert NOW <= at <= NOW + min(fetching.WAIT_MAX, dt.timedelta(milliseconds=strategy.max_timeout_in_ms + 1))


@pytest.mark.parametrize(
    ("value", "form", "seconds"),
    [
        ("1688169630", "unix_timestamp", 30),
        ("1688169630500", "unix_timestamp_in_ms", 30.5),
        ("2023-07-01T00:00:30Z", "iso_8601", 30),
        ("1h2m3.5s", "iso_8601_duration_openai_variant", 3723.5),
        ("6m0s", "iso_8601_duration_openai_variant", 360),
        ("20ms", "iso_8601_duration_openai_variant", 0.02),
        ("soon", "iso_8601_duration_openai_variant", None),
        ("", "unix_timestamp", None),
        ("9" * 30, "unix_timestamp", None),
        ("9" * 30 + "d", "iso_8601_duration_openai_variant", None),
        ("soon", "iso_8601", None),
    ],
)
def test_the_reset_of_a_rate_limit(value: str, form: str, seconds: float | None) -> None:
    at = fetching.reset_at(value, form, NOW)
    assert (None if at is None else (at - NOW).total_seconds()) == seconds
