"""What an endpoint answers becomes the state of the run, once, whoever dies on the way."""

from __future__ import annotations

import asyncio
import datetime as dt
from itertools import pairwise
from typing import Any

import pytest

from handlers import executions, protocol
from handlers.runs import PerformRunExecution, SweepExecutions, perform_run_execution, sweep_executions
from tests.fix_endpoint import Answer, endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform
from tests.fix_shop import Shop, make_job, shop
from wqcore import testing

__all__ = ["empty_dsn", "endpoint", "pg", "platform", "shop"]

SOON = dt.timedelta(seconds=5)


async def perform(shop: Shop, *answers: Answer | dict[str, Any], **more: Any) -> str:
    """Starts a run and performs its execution with this answer; the run."""
    shop.endpoint.will_answer(*answers)
    run, execution, job = await shop.started_run(**more)
    await perform_run_execution(PerformRunExecution(execution), make_job(job))
    return run


async def perform_next(shop: Shop, run: str, *answers: dict[str, Any]) -> None:
    """Performs the newest execution of the run."""
    if answers:
        shop.endpoint.will_answer(*answers)
    execution = shop.executions(run)[-1]
    await perform_run_execution(PerformRunExecution(execution.id), make_job(execution.wq_job_id))


async def running_task(shop: Shop, answer: Any, status: str = "RUNNING", **columns: Any) -> tuple[str, str]:
    """A run with a task that the endpoint's answer, `answer(task)`, is about; run and task after the execution."""
    run, execution, job = await shop.started_run()
    task = shop.add_task(run, status, **columns)
    shop.endpoint.will_answer(answer(task))
    await perform_run_execution(PerformRunExecution(execution), make_job(job))
    return run, task


def next_job(shop: Shop, run: str) -> tuple[Any, Any]:
    """The newest execution of the run, and (run_at, serial_key) of its job."""
    execution = shop.executions(run)[-1]
    return execution, shop.platform.sql(
        "select run_at, serial_key from {wq}.job where id = %s", execution.wq_job_id
    )[0]  # fmt: skip


def in_a_while() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)


async def test_the_endpoint_is_told_all_about_the_run(shop: Shop) -> None:
    run = await perform(
        shop, {"status": "SUCCESS"}, payload={"a": None}, id="order-1", context={"c": 1},
        source_context={"id": "s", "metadata": None},
    )  # fmt: skip
    [request], body = shop.endpoint.requests, shop.body()
    assert request.headers["x-trigger-api-key"] == shop.platform.api_key
    assert request.headers["x-trigger-action"] == "EXECUTE_JOB"
    assert body["event"]["id"] == "order-1"
    assert (body["event"]["payload"], body["event"]["context"]) == ({"a": None}, {"c": 1})
    assert body["run"] | {"startedAt": None} == {"id": run, "isTest": False, "isRetry": False, "startedAt": None}
    assert body["job"] == {"id": "ship", "version": "1.0.0"}
    assert body["environment"] == {"id": shop.platform.environment, "slug": "dev", "type": "DEVELOPMENT"}
    assert body["organization"] == {"id": shop.platform.organization, "title": "Acme", "slug": "acme"}
    assert body["project"] == {"id": shop.platform.project, "name": "Shop", "slug": "shop"}
    assert body["source"] == {"id": "s", "metadata": None}
    assert not body.keys() & {"account", "tasks", "connections", "yieldedExecutions"}  # the SDK refuses null there


async def test_success_ends_the_run_with_its_output_as_it_was_written(shop: Shop) -> None:
    run = await perform(shop, Answer(body=b'{"status": "SUCCESS", "output": {"n": 12345678901234567890.50}}'))
    assert shop.run(run).status == "SUCCESS"
    assert shop.platform.one("select output::text from {s}.job_run") == '{"n": 12345678901234567890.50}'
    assert (shop.executions(run)[0].status, shop.places_taken()) == ("SUCCESS", 0)
    assert shop.platform.jobs("runFinished") == [{"id": run}]


async def test_an_error_fails_the_run_and_the_task_that_it_names(shop: Shop) -> None:
    error = {"message": "no stock", "name": "Error"}
    run, task = await running_task(shop, lambda task: {"status": "ERROR", "error": error, "task": {"id": task}})
    assert (shop.run(run).status, shop.run(run).output) == ("FAILURE", error)
    assert (shop.task(task).status, shop.task(task).output, shop.task(task).error) == ("ERRORED", error, "no stock")
    assert (shop.executions(run)[0].status, shop.executions(run)[0].error) == ("FAILURE", "no stock")


@pytest.mark.parametrize(
    ("answer", "status", "output"),
    [
        ({"status": "CANCELED", "task": {"id": "t"}}, "CANCELED", None),
        ({"status": "INVALID_PAYLOAD", "errors": [{"path": ["a"], "message": "m"}]}, "INVALID_PAYLOAD",
         [{"path": ["a"], "message": "m"}]),
        ({"status": "UNRESOLVED_AUTH_ERROR", "issues": {"k": {"id": "i"}}}, "UNRESOLVED_AUTH", {"k": {"id": "i"}}),
    ],
)  # fmt: skip
async def test_other_answers_that_end_the_run(shop: Shop, answer: dict[str, Any], status: str, output: Any) -> None:
    run = await perform(shop, answer)
    assert (shop.run(run).status, shop.run(run).output, shop.places_taken()) == (status, output, 0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": "DANCE"}, "DANCE"),
        ({"status": "ERROR"}, "`error`"),
        (Answer(body=b"<html>"), "does not fit"),
        (Answer(status=404, body=b'{"message": "Job not found"}'), "404"),
        (Answer(status=429), "429"),
        (Answer(body=b'{"status": "SUCCESS", "output": "\\u0000"}'), "cannot be stored"),
        (Answer(body=b'{"status": "YIELD_EXECUTION", "key": "\\u0000"}'), "cannot be stored"),
    ],
)
async def test_an_answer_that_is_none_fails_the_run_at_once(
    shop: Shop, answer: Answer | dict[str, Any], message: str
) -> None:
    run = await perform(shop, answer)
    assert (shop.run(run).status, shop.places_taken()) == ("FAILURE", 0)
    assert message in shop.run(run).output["message"]


async def test_a_wait_goes_on_at_its_time_with_its_task_completed(shop: Shop) -> None:
    at = in_a_while()
    run, task = await running_task(
        shop, lambda task: {"status": "RESUME_WITH_TASK", "task": {"id": task, "noop": True, "operation": None}},
        "WAITING", noop=True, delay_until=at,
    )  # fmt: skip
    assert next_job(shop, run)[1] == (at, f"runs-{run}")
    assert (shop.run(run).status, shop.run(run).has_place, shop.task(task).status) == ("STARTED", True, "WAITING")
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert shop.task(task).status == "COMPLETED"
    assert shop.body()["tasks"] == [
        {
            "id": task,
            "idempotencyKey": f"key-{task}",
            "status": "COMPLETED",
            "noop": True,
            "output": None,
            "parentId": None,
        }
    ]
    assert shop.run(run).status == "SUCCESS"


async def test_a_wait_that_is_over_goes_on_at_once(shop: Shop) -> None:
    run, _ = await running_task(shop, lambda task: {"status": "RESUME_WITH_TASK", "task": {"id": task}}, "WAITING")
    assert next_job(shop, run)[1] == (None, f"runs-{run}")


@pytest.mark.parametrize("columns", [{"operation": "fetch"}, {}])
async def test_an_operation_or_a_callback_lets_the_run_go_on_by_itself(shop: Shop, columns: dict[str, Any]) -> None:
    url = None if columns else "https://example.com/callback"
    run, _ = await running_task(
        shop, lambda task: {"status": "RESUME_WITH_TASK", "task": {"id": task, "callbackUrl": url}}, **columns
    )
    assert [x.status for x in shop.executions(run)] == ["SUCCESS"]
    assert shop.run(run).status == "STARTED"


async def test_a_task_of_another_run_fails_the_run_that_names_it(shop: Shop) -> None:
    other, _, _ = await shop.started_run()
    task = shop.add_task(other, "WAITING")
    run = await perform(shop, {"status": "RESUME_WITH_TASK", "task": {"id": task}})
    assert (shop.run(run).status, shop.task(task).status) == ("FAILURE", "WAITING")


async def test_a_task_is_retried_at_its_time_as_a_new_attempt(shop: Shop) -> None:
    at = in_a_while()
    run, task = await running_task(
        shop,
        lambda task: {
            "status": "RETRY_WITH_TASK", "task": {"id": task}, "error": {"message": "busy"}, "retryAt": at.isoformat(),
        },
    )  # fmt: skip
    assert shop.attempts(task) == [(1, "ERRORED", "busy"), (2, "PENDING", None)]
    assert shop.task(task).status == "WAITING"
    execution, job = next_job(shop, run)
    assert (execution.resume_task_id, execution.is_retry, job) == (task, True, (at, f"runs-{run}"))
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert shop.body()["run"]["isRetry"]
    assert "tasks" not in shop.body()
    assert shop.task(task).status == "CANCELED"  # it was RUNNING when the run ended


async def test_a_yield_is_remembered_and_goes_on_at_once(shop: Shop) -> None:
    run = await perform(shop, {"status": "YIELD_EXECUTION", "key": "a"})
    await perform_next(shop, run, {"status": "YIELD_EXECUTION", "key": "b"})
    await perform_next(shop, run, {"status": "AUTO_YIELD_EXECUTION", "location": "x", "timeRemaining": 1})
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert shop.body()["yieldedExecutions"] == ["a", "b"]
    assert [x.status for x in shop.executions(run)] == ["SUCCESS"] * 4


async def test_a_run_that_yields_for_ever_fails(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "EXECUTIONS_MAX", 3)
    run = await perform(shop, {"status": "YIELD_EXECUTION", "key": "a"})
    await shop.platform.drain()
    assert (shop.run(run).status, len(shop.executions(run)), shop.places_taken()) == ("FAILURE", 3, 0)
    assert "3 times" in shop.run(run).output["message"]


async def test_a_rate_limit_goes_on_at_its_reset(shop: Shop) -> None:
    at = in_a_while()
    run = await perform(shop, {"status": "AUTO_YIELD_RATE_LIMIT", "reset": at.timestamp() * 1000})
    assert next_job(shop, run)[1] == (at, f"runs-{run}")


async def test_a_task_completed_with_a_yield_is_in_the_next_body(shop: Shop) -> None:
    run, task = await running_task(
        shop,
        lambda task: {
            "status": "AUTO_YIELD_EXECUTION_WITH_COMPLETED_TASK", "id": task, "output": '{"n": 1}', "data": {},
            "properties": [{"label": "l", "text": "t"}],
        },
    )  # fmt: skip
    found = shop.task(task)
    assert (found.status, found.output, found.output_properties) == (
        "COMPLETED",
        {"n": 1},
        [{"label": "l", "text": "t"}],
    )
    assert shop.attempts(task) == [(1, "COMPLETED", None)]
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert [(item["id"], item["output"]) for item in shop.body()["tasks"]] == [(task, {"n": 1})]


async def test_children_of_a_parallel_task_each_go_on(shop: Shop) -> None:
    at = in_a_while()
    run, execution, job = await shop.started_run()
    wait, retried = shop.add_task(run, "WAITING", noop=True, delay_until=at), shop.add_task(run)
    parent = {"id": shop.add_task(run)}
    shop.endpoint.will_answer({"status": "RESUME_WITH_PARALLEL_TASK", "task": parent, "childErrors": [
        {"status": "RESUME_WITH_TASK", "task": {"id": wait}},
        {"status": "RETRY_WITH_TASK", "task": {"id": retried}, "error": {"message": "m"}, "retryAt": at.isoformat()},
    ]})  # fmt: skip
    await perform_run_execution(PerformRunExecution(execution), make_job(job))
    assert [x.resume_task_id for x in shop.executions(run)[1:]] == [wait, retried]
    assert (
        shop.platform.one("select count(*) from {wq}.job where serial_key = %s and run_at = %s", f"runs-{run}", at) == 2
    )


async def test_a_child_that_failed_fails_the_run(shop: Shop) -> None:
    run = await perform(shop, {"status": "RESUME_WITH_PARALLEL_TASK", "task": {"id": "t"}, "childErrors": [
        {"status": "YIELD_EXECUTION", "key": "k"}, {"status": "ERROR", "error": {"message": "m"}},
    ]})  # fmt: skip
    assert (shop.run(run).status, shop.places_taken()) == ("FAILURE", 0)
    await shop.platform.drain()
    assert len(shop.endpoint.requests) == 1


async def test_completed_tasks_beyond_the_limit_are_left_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "TASKS_BYTES_MAX", 10)
    run, execution, job = await shop.started_run()
    first, _ = shop.add_task(run, "COMPLETED", output=[1]), shop.add_task(run, "COMPLETED", output=["long enough"])
    await perform_run_execution(PerformRunExecution(execution), make_job(job))
    assert [task["id"] for task in shop.body()["tasks"]] == [first]


async def test_preprocessing_sets_the_properties_and_then_executes(shop: Shop) -> None:
    job, version = shop.add_job("pre", preprocess=True)
    properties = [{"label": "Order", "text": "7"}]
    run = await perform(shop, {"abort": False, "properties": properties}, job=job, version=version)
    assert shop.endpoint.requests[0].headers["x-trigger-action"] == "PREPROCESS_RUN"
    assert (shop.run(run).status, shop.run(run).properties) == ("STARTED", properties)
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert [x.reason for x in shop.executions(run)] == ["PREPROCESS", "EXECUTE_JOB"]
    assert shop.run(run).status == "SUCCESS"


async def test_preprocessing_can_abort_the_run(shop: Shop) -> None:
    job, version = shop.add_job("pre", preprocess=True)
    run = await perform(shop, {"abort": True}, job=job, version=version)
    assert (shop.run(run).status, shop.places_taken(), len(shop.executions(run))) == ("ABORTED", 0, 1)


@pytest.mark.parametrize("answer", [Answer(status=500), Answer(status=408), Answer(closes=True)])
async def test_an_endpoint_that_does_not_answer_is_called_again_later(shop: Shop, answer: Answer) -> None:
    run = await perform(shop, answer)
    execution, (run_at, serial_key) = next_job(shop, run)
    assert (execution.status, execution.retry_count, serial_key) == ("PENDING", 1, f"runs-{run}")
    assert run_at > shop.platform.one("select now()") - dt.timedelta(seconds=1)
    assert (shop.run(run).status, shop.places_taken()) == ("STARTED", 1)
    await perform_next(shop, run, {"status": "SUCCESS"})
    assert shop.body()["run"]["isRetry"]
    assert shop.run(run).status == "SUCCESS"


async def test_the_calls_are_spaced_and_after_the_tenth_retry_the_run_fails(shop: Shop) -> None:
    run = await perform(shop, Answer(status=503, body=b"down"))
    spaces = []
    while (found := shop.executions(run)[0]).status == "PENDING":
        spaces.append(
            shop.platform.one(
                "select round(extract(epoch from j.run_at - j.created_at) * 1000) from {wq}.job j where id = %s",
                found.wq_job_id,
            )
        )
        await perform_next(shop, run)
    assert found.status == "FAILURE"
    assert spaces == [round(500 * 1.5**n) for n in range(10)]
    assert len(shop.endpoint.requests) == 11
    assert (shop.run(run).status, shop.places_taken()) == ("FAILURE", 0)
    assert "503: down" in shop.run(run).output["message"]


async def test_a_repetition_after_the_end_calls_nobody_and_changes_nothing(shop: Shop) -> None:
    run, execution, job = await shop.started_run()
    shop.endpoint.will_answer({"status": "YIELD_EXECUTION", "key": "a"})
    for _ in range(3):
        await perform_run_execution(PerformRunExecution(execution), make_job(job))
    assert (len(shop.endpoint.requests), len(shop.executions(run))) == (1, 2)


@pytest.mark.parametrize(
    "answer", [{"status": "SUCCESS"}, {"status": "YIELD_EXECUTION", "key": "a"}, Answer(status=500)]
)
async def test_a_worker_that_was_given_up_writes_nothing(shop: Shop, answer: Any) -> None:
    run, execution, job = await shop.started_run()
    shop.endpoint.will_answer(answer, {"status": "SUCCESS"})
    shop.endpoint.answers[0].delay_s = 0.5
    zombie = asyncio.create_task(perform_run_execution(PerformRunExecution(execution), make_job(job)))
    while not shop.endpoint.requests:
        await asyncio.sleep(0.01)
    await executions.again(shop.platform.store, execution, job, "its worker died")
    await zombie
    [found] = shop.executions(run)
    assert (found.status, found.retry_count) == ("PENDING", 1)
    assert (shop.run(run).status, shop.places_taken()) == ("STARTED", 1)
    await perform_next(shop, run)
    assert (shop.run(run).status, shop.places_taken()) == ("SUCCESS", 0)


async def test_a_run_that_is_canceled_during_the_call_stays_canceled(shop: Shop) -> None:
    for answer in ({"status": "SUCCESS"}, {"status": "YIELD_EXECUTION", "key": "a"}):
        run, execution, job = await shop.started_run()
        shop.endpoint.requests.clear()
        shop.endpoint.will_answer(answer)
        shop.endpoint.answers[0].delay_s = 0.3
        call = asyncio.create_task(perform_run_execution(PerformRunExecution(execution), make_job(job)))
        while not shop.endpoint.requests:
            await asyncio.sleep(0.01)
        await executions.end(shop.platform.store, protocol.End(status="CANCELED"), run=run)
        await call
        assert (shop.run(run).status, shop.places_taken()) == ("CANCELED", 0)
    assert len(shop.platform.jobs("runFinished")) == 2
    await shop.platform.drain()
    assert len(shop.endpoint.requests) == 1


async def test_executions_of_one_run_never_overlap(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    waiting = {"id": shop.add_task(run, "WAITING"), "callbackUrl": "https://example.com"}
    shop.endpoint.will_answer({"status": "RESUME_WITH_TASK", "task": waiting})
    shop.endpoint.answers[0].delay_s = 0.1
    async with shop.platform.store.transaction() as tx:
        for _ in range(4):
            await executions.add(tx, run)
    await shop.platform.drain()
    assert len(shop.endpoint.requests) == 5
    spans = shop.platform.sql("select started_at, completed_at from {s}.job_run_execution order by 1")
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def lose_job(shop: Shop, job: int) -> None:
    """Makes the job be gone, and time pass, as after the death of its worker."""
    shop.platform.sql("delete from {wq}.job where id = %s", job)
    shop.platform.sql("update {s}.job_run_execution set due_at = due_at - interval '6 s'")


async def sweep() -> None:
    await sweep_executions(SweepExecutions(), make_job())


@pytest.mark.parametrize("begun", [True, False])
async def test_the_sweep_finds_an_execution_whose_job_is_gone(shop: Shop, begun: bool) -> None:
    run, execution, job = await shop.started_run()
    if begun:
        await shop.platform.store.row("begin_execution", execution=execution, job=job, tasks_bytes_max=0)
    await sweep()
    assert shop.executions(run)[0].wq_job_id == job  # it is not due for long, and its job lives
    shop.platform.sql("update {s}.job_run_execution set due_at = due_at - interval '6 s'")
    await sweep()
    assert shop.executions(run)[0].wq_job_id == job  # its job lives
    await lose_job(shop, job)
    await sweep()
    await sweep()
    [found] = shop.executions(run)
    assert (found.status, found.retry_count) == ("PENDING", 1)
    testing.travel(shop.platform.conn, by=SOON)
    await shop.platform.drain()
    assert (shop.run(run).status, shop.places_taken(), len(shop.endpoint.requests)) == ("SUCCESS", 0, 1)


async def test_an_execution_that_always_dies_fails_its_run(shop: Shop) -> None:
    for begun in (True, False):
        run, execution, job = await shop.started_run()
        shop.platform.sql("update {s}.job_run_execution set retry_count = 10 where id = %s", execution)
        if begun:
            await shop.platform.store.row("begin_execution", execution=execution, job=job, tasks_bytes_max=0)
        await lose_job(shop, job)
        await sweep()
        assert (shop.run(run).status, shop.executions(run)[0].status) == ("FAILURE", "FAILURE")
    assert shop.places_taken() == 0


async def test_the_sweep_closes_what_a_canceled_run_left_open(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    await executions.end(shop.platform.store, protocol.End(status="CANCELED"), run=run)
    await shop.platform.drain()
    assert shop.executions(run)[0].status == "PENDING"
    shop.platform.sql("update {s}.job_run_execution set due_at = due_at - interval '6 s'")
    await sweep()
    assert (shop.executions(run)[0].status, shop.run(run).status, shop.places_taken()) == ("FAILURE", "CANCELED", 0)
    assert shop.endpoint.requests == []


async def test_the_sweep_wakes_a_queue_that_nobody_wakes(shop: Shop) -> None:
    run = await shop.add_run()
    shop.platform.sql("update {s}.job_run set status = 'QUEUED', queued_at = now()")
    await sweep()
    await sweep()
    assert shop.platform.jobs("startQueuedRuns") == [{"id": shop.queue}]
    await shop.platform.drain()
    assert shop.run(run).status == "SUCCESS"


async def test_what_waits_for_later_is_not_swept(shop: Shop) -> None:
    run, _ = await running_task(
        shop, lambda task: {"status": "RESUME_WITH_TASK", "task": {"id": task}}, "WAITING", delay_until=in_a_while()
    )
    shop.platform.sql("delete from {wq}.job")
    await sweep()
    assert shop.executions(run)[-1].retry_count == 0
