"""A run takes a place of its queue or waits for one, no place is given out twice, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import wqcore
from handlers import executions, ids, protocol, secrets
from handlers.runs import RunFinished, StartQueuedRuns, StartRun, runs_finished, start_queued_runs, start_runs
from tests.fix_endpoint import endpoint
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import platform
from tests.fix_shop import Shop, make_job, run_batch, shop

__all__ = ["empty_dsn", "endpoint", "pg", "platform", "shop"]


async def start(run: str) -> None:
    await run_batch(start_runs, StartRun(run))


async def start_queued(queue: str) -> None:
    await start_queued_runs(StartQueuedRuns(queue), make_job())


async def finished(run: str) -> None:
    await run_batch(runs_finished, RunFinished(run))


async def end(shop: Shop, run: str, status: str = "SUCCESS", output: str = "null") -> bool:
    return await executions.end(shop.platform.store, protocol.End(status=status, output=output), run=run)


def starts(shop: Shop) -> list[str]:
    return [args["id"] for args in shop.platform.jobs("startRun")]


def add_integration(shop: Shop, slug: str, *, auth: str = "HOSTED") -> str:
    """An integration that the job's version needs; its id."""
    integration = ids.new("int")
    shop.platform.sql(
        "insert into {s}.integration (id, organization_id, slug, title, auth_source) values (%s, %s, %s, %s, %s)",
        integration, shop.platform.organization, slug, slug, auth,
    )  # fmt: skip
    shop.platform.sql("insert into {s}.job_integration values (%s, %s, %s)", shop.version, slug, integration)
    return integration


def add_connection(shop: Shop, integration: str, token: str = "t", account: str | None = None) -> None:
    shop.platform.sql(
        "insert into {s}.connection (id, organization_id, integration_id, account_id, access_token_sealed, scopes) "
        "values (%s, %s, %s, %s, %s, '{{repo}}')",
        ids.new("con"), shop.platform.organization, integration, account, secrets.seal(token),
    )  # fmt: skip


async def test_a_run_takes_a_place_and_gets_an_execution(shop: Shop) -> None:
    run = await shop.add_run()
    await start(run)
    found, [execution] = shop.run(run), shop.executions(run)
    assert (found.status, found.has_place, shop.places_taken()) == ("STARTED", True, 1)
    assert (execution.reason, execution.status) == ("EXECUTE_JOB", "PENDING")
    assert shop.platform.sql("select id, args, serial_key from {wq}.job where kind = 'performRunExecution'") == [
        (execution.wq_job_id, {"id": execution.id}, f"runs-{run}")
    ]
    assert shop.platform.jobs("startQueuedRuns") == [{"id": shop.queue}]


async def test_a_version_that_preprocesses_is_preprocessed_first(shop: Shop) -> None:
    job, version = shop.add_job("pre", preprocess=True)
    run = await shop.add_run(job=job, version=version)
    await start(run)
    assert (shop.run(run).status, shop.executions(run)[0].reason) == ("PREPROCESSING", "PREPROCESS")


async def test_a_start_that_is_repeated_changes_nothing(shop: Shop) -> None:
    run = await shop.add_run()
    await start(run)
    await asyncio.gather(*(start(run) for _ in range(5)))
    assert (len(shop.executions(run)), shop.places_taken()) == (1, 1)
    assert len(shop.platform.jobs("performRunExecution")) == len(shop.platform.jobs("startQueuedRuns")) == 1


async def test_a_run_that_has_ended_is_not_started(shop: Shop) -> None:
    run = await shop.add_run()
    await end(shop, run, "CANCELED")
    await start(run)
    assert (shop.run(run).status, shop.executions(run), shop.places_taken()) == ("CANCELED", [], 0)


async def test_a_run_that_does_not_exist_is_a_permanent_failure(shop: Shop) -> None:
    with pytest.raises(wqcore.Discard, match="run_none"):
        await start("run_none")
    with pytest.raises(wqcore.Discard, match="run_none"):
        await finished("run_none")


async def test_runs_that_start_at_once_take_no_more_than_the_places_there_are(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 3")
    runs = [await shop.add_run() for _ in range(12)]
    await asyncio.gather(*(start(run) for run in runs))
    statuses = sorted(shop.run(run).status for run in runs)
    assert (shop.places_taken(), statuses) == (3, ["QUEUED"] * 9 + ["STARTED"] * 3)


async def test_a_place_given_back_while_a_run_queues_itself_is_found(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 1")
    first, second = await shop.add_run(), await shop.add_run()
    await start(first)
    # the second has found no place and has not committed: whoever gives one back waits for that, and wakes it then
    async with shop.platform.store.transaction() as tx:
        found = await tx.row("start_runs", runs=[second], executions=[ids.new("exe")])
        assert found is not None
        assert found.status == "QUEUED"
        ending = asyncio.create_task(end(shop, first))
        while not shop.platform.one("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)
        assert not ending.done()
    assert await ending
    await finished(first)
    await start_queued(shop.queue)
    assert starts(shop) == [second]
    await shop.platform.drain()
    assert shop.run(second).status == "SUCCESS"


async def test_a_startrun_that_has_just_found_no_place_does_not_swallow_the_next(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 1")
    first, second = await shop.add_run(), await shop.add_run()
    await start(first)
    await start(second)
    shop.platform.sql(
        "select {wq}.enqueue('startRun', json_build_object('id', %s::text), job_key => %s)", second, f"start-{second}"
    )
    # it is held by a shard, as it is between its statement and its acknowledgement
    [(held,)] = shop.platform.sql("select id from {wq}.job where kind = 'startRun'")
    shop.platform.sql("insert into {wq}.shard (id, process, queue) values (77, gen_random_uuid(), 'executions')")
    shop.platform.sql("insert into {wq}.claim (shard, turn, ids) values (77, 1, array[%s::bigint])", held)
    await end(shop, first)
    await start_queued(shop.queue)
    assert shop.platform.one("select count(*) from {wq}.job where kind = 'startRun' and id <> %s", held) == 1


async def test_queued_runs_start_oldest_first_as_many_as_there_are_places(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 2")
    runs = [await shop.add_run() for _ in range(6)]
    for run in runs:
        await start(run)
    await start_queued(shop.queue)
    assert starts(shop) == []
    await end(shop, runs[0])
    await end(shop, runs[1])
    await start_queued(shop.queue)
    await start_queued(shop.queue)
    assert starts(shop) == [runs[2], runs[3]]


async def test_all_runs_of_a_narrow_queue_end_and_it_is_empty_then(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 2")
    for _ in range(25):
        await shop.add_event(deliver=True)
    await shop.platform.drain()
    assert shop.platform.sql("select status, count(*) from {s}.job_run group by 1") == [("SUCCESS", 25)]
    assert shop.places_taken() == 0
    assert len(shop.endpoint.requests) == 25


async def test_a_run_ends_once_and_gives_its_place_back_once(shop: Shop) -> None:
    run, execution, _ = await shop.started_run()
    open_task, done = shop.add_task(run, "WAITING"), shop.add_task(run, "COMPLETED")
    ended = await asyncio.gather(*(end(shop, run, status) for status in ("CANCELED", "FAILURE", "CANCELED")))
    assert sorted(ended) == [False, False, True]
    assert (shop.places_taken(), shop.run(run).has_place) == (0, False)
    assert [shop.task(task).status for task in (open_task, done)] == ["CANCELED", "COMPLETED"]
    assert shop.platform.jobs("runFinished") == [{"id": run}]
    assert shop.executions(run)[0].id == execution


async def test_a_queued_run_that_is_canceled_gives_back_no_place(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 1")
    first, second = await shop.add_run(), await shop.add_run()
    await start(first)
    await start(second)
    await end(shop, second, "CANCELED")
    assert (shop.run(second).status, shop.places_taken()) == ("CANCELED", 1)


async def test_the_events_of_an_output_are_ingested_once(shop: Shop) -> None:
    run, _, _ = await shop.started_run()
    await end(
        shop,
        run,
        output='{"events": [{"name": "a", "payload": {"n": 1}}, 7, {"name": "b", "id": "mine", "source": "s"}]}',
    )
    await finished(run)
    await finished(run)
    found = shop.platform.sql(
        "select event_id, name, source, payload from {s}.event_record where name in ('a', 'b') order by 2"
    )
    assert found == [(f"{run}:0", "a", "trigger.dev", {"n": 1}), ("mine", "b", "s", None)]
    assert len(shop.platform.jobs("deliverEvent")) == 2


@pytest.mark.parametrize("output", ["null", "[1]", '"events"', '{"events": 1}', '{"events": []}'])
async def test_an_output_without_events_only_wakes_the_queue(shop: Shop, output: str) -> None:
    run, _, _ = await shop.started_run()
    await end(shop, run, output=output)
    before = len(shop.platform.jobs("startQueuedRuns"))
    await finished(run)
    assert shop.platform.jobs("deliverEvent") == []
    assert len(shop.platform.jobs("startQueuedRuns")) == before + 1


async def test_a_missing_connection_lets_the_run_wait_and_is_told_once(shop: Shop) -> None:
    github, slack = add_integration(shop, "github"), add_integration(shop, "slack")
    add_integration(shop, "own-key", auth="LOCAL")
    add_connection(shop, slack)
    first, second = await shop.add_run(), await shop.add_run()
    for run in (first, first, second):
        await start(run)
    assert [shop.run(run).status for run in (first, second)] == ["WAITING_ON_CONNECTIONS"] * 2
    [(missing, integration)] = shop.platform.sql("select id, integration_id from {s}.missing_connection")
    assert integration == github
    assert set(shop.platform.sql("select * from {s}.waiting_run")) == {(first, missing), (second, missing)}
    assert shop.platform.jobs("missingConnectionCreated") == [{"id": missing}]
    assert shop.places_taken() == 0


async def test_a_run_starts_when_its_connection_is_there(shop: Shop) -> None:
    github = add_integration(shop, "github")
    run = await shop.add_run(account_id="ada")
    add_connection(shop, github)  # of nobody in particular: not ada's
    await start(run)
    assert shop.run(run).status == "WAITING_ON_CONNECTIONS"
    add_connection(shop, github, "ada's token", "ada")
    await start(run)
    assert shop.run(run).status == "STARTED"
    await shop.platform.drain()
    assert shop.body()["connections"] == {
        "github": {"type": "oauth2", "accessToken": "ada's token", "scopes": ["repo"]}
    }
    assert shop.body()["account"] == {"id": "ada", "metadata": None}


async def test_a_connection_made_while_the_run_begins_to_wait_is_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    github, run = add_integration(shop, "github"), await shop.add_run()
    store, row = shop.platform.store, shop.platform.store.row

    async def then_connect(statement: str, /, **values: object) -> object:
        found = await row(statement, **values)
        if statement == "wait_for_connections":
            add_connection(shop, github)
        return found

    monkeypatch.setattr(store, "row", then_connect)
    await start(run)
    assert shop.run(run).status == "STARTED"


async def test_starts_and_ends_side_by_side_never_deadlock_and_lose_no_place(shop: Shop) -> None:
    shop.platform.sql("update {s}.job_queue set max_jobs = 4")
    runs = [await shop.add_run() for _ in range(40)]

    async def live(run: str) -> None:
        await start(run)
        await end(shop, run)

    await asyncio.gather(*(live(run) for run in runs for _ in range(2)))
    assert shop.places_taken() == 0
    assert {shop.run(run).status for run in runs} == {"SUCCESS"}


HOT = {
    "event_candidates": {"events": ["x"]},
    "deliver_events": {"events": ["x"], "pair_events": ["x"], "pair_dispatchers": ["x"]},
    "invoke_dispatchers": {"dispatchers": ["x"], "events": ["x"], "runs": ["x"]},
    "start_runs": {"runs": ["x"], "executions": ["x"]},
    "start_queued_runs": {"queue": "x"},
    "begin_execution": {"execution": "x", "job": 1, "tasks_bytes_max": 1},
    "end_run": {"run": "x", "execution": "x", "job": 1, "status": "SUCCESS", "output": "1", "error": None,
                "failed_task": None},
    "runs_finished": {"runs": ["x"]},
    "finish_execution": {"execution": "x", "job": 1},
    "add_execution": {"execution": "x", "run": "x", "task": None, "run_at": None, "is_retry": False, "executions_max": 1},
    "retry_execution": {"execution": "x", "job": 1, "error": "x", "retries_max": 1},
    "stale_executions": {"executions_max": 1000},
    "begin_operation": {"task": "x"},
    "settle_task": {"task": "x", "run": "x", "status": "COMPLETED", "output": "1", "error": None, "properties": None},
}  # fmt: skip
GROWING = ("job_run", "job_run_execution", "task", "task_attempt", "event_record")


@pytest.mark.parametrize("analyzed", [False, True])
async def test_no_hot_statement_walks_a_table_that_grows(shop: Shop, analyzed: bool) -> None:
    await shop.started_run()
    for text in (
        "insert into {s}.event_record (id, event_id, environment_id, name, source, payload) select 'e' || n, n, "
        "environment_id, 'a', 'b', '1' from {s}.event_record, generate_series(1, 5000) n",
        "insert into {s}.job_run (id, number, job_id, version_id, environment_id, endpoint_id, queue_id, event_id, status, "
        "completed_at, dispatcher_id) select 'r' || n, n + 1, job_id, version_id, environment_id, endpoint_id, queue_id, "
        "'e' || n, 'SUCCESS', now(), 'd' from {s}.job_run, generate_series(1, 5000) n",
        "insert into {s}.job_run_execution (id, run_id, reason, status, wq_job_id) select 'x' || n, 'r' || n, "
        "'EXECUTE_JOB', 'SUCCESS', n from generate_series(1, 5000) n",
        "insert into {s}.task (id, run_id, idempotency_key, name, status) select 't' || n, 'r' || n, 'k', 'n', "
        "'COMPLETED' from generate_series(1, 5000) n",
        "insert into {s}.task_attempt (id, task_id, number) select 'a' || n, 't' || n, 1 from generate_series(1, 5000) n",
        "insert into {wq}.job (queue, slot, kind, args) select 'default', 0, 'startRun', '{{}}' "
        "from generate_series(1, 5000) n",
    ):
        shop.platform.sql(text)
    if analyzed:
        shop.platform.sql("analyze")
    async with shop.platform.store.connection() as one:
        for name, values in HOT.items():
            cursor = await one.conn.execute(b"explain (format json) " + shop.platform.store._statements[name], values)
            [(found,)] = await cursor.fetchall()
            nodes = list(nodes_of(found[0]["Plan"]))
            bounded = ("Index Cond", "Recheck Cond", "TID Cond")
            walked = [
                node
                for node in nodes
                if node.get("Relation Name") in GROWING and not any(key in node for key in bounded)
            ]
            assert walked == [], f"{name}: {walked}"
            if name == "stale_executions":
                assert "job_pkey" in {node.get("Index Name") for node in nodes}  # wqcore's jobs


def nodes_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan without the nodes below it, and those; what changes a table is no scan."""
    if node["Node Type"] != "ModifyTable":
        yield {key: value for key, value in node.items() if key != "Plans"}
    for below in node.get("Plans", []):
        yield from nodes_of(below)
