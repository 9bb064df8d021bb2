"""The platform with the published SDK on the other side: events become runs, runs do their tasks, and each ends once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import Any

import pytest

from tests.fix_master import until
from tests.fix_pipeline import RUN_LIMIT_S, Running, running, upstream

__all__ = ["running", "upstream"]

pytestmark = pytest.mark.timeout(240)


def keys_of(tasks: list[Any]) -> list[str]:
    return [task.idempotency_key for task in tasks]


def test_a_run_without_tasks_gives_its_output(running: Running) -> None:
    run = running.run_of(running.send("plain", {"n": 1, "ü": [None, 2.5]}))
    assert (run.status, run.output) == ("SUCCESS", {"n": 1, "ü": [None, 2.5]})
    assert running.tasks(run.id) == []


def test_one_event_makes_one_run_however_often_it_is_sent(running: Running) -> None:
    event = running.send("plain", {"first": True})
    for _ in range(3):
        running.send("plain", {"first": False}, id=event)
    assert running.run_of(event).output == {"first": True}
    until(running.platform.is_quiet, "all has come to rest")
    assert (
        len(
            running.platform.rows(
                "select from {p}.job_run r join {p}.event_record e on e.id = r.event_id where e.event_id = %s", event
            )
        )
        == 1
    )


def test_a_wait_parts_a_run_in_two_and_what_came_before_is_not_done_again(running: Running) -> None:
    run = running.run_of(running.send("wait"))
    assert (run.status, run.output) == ("SUCCESS", {"waited": True})
    assert [(task.name, task.status) for task in running.tasks(run.id) if task.noop] == [("wait", "COMPLETED")]
    assert [line["key"] for line in running.endpoint.journal(run=run.id, what="task")] == ["before", "after"]
    executions = running.platform.rows("select status from {p}.job_run_execution where run_id = %s", run.id)
    assert [row.status for row in executions] == ["SUCCESS", "SUCCESS"]


def test_a_task_that_fails_twice_is_tried_a_third_time(running: Running) -> None:
    run = running.run_of(running.send("flaky"))
    assert (run.status, run.output) == ("SUCCESS", {"attempts": 3})
    [task] = running.tasks(run.id)
    attempts = running.platform.rows(
        "select number, status, error from {p}.task_attempt where task_id = %s order by 1", task.id
    )
    assert [(row.number, row.status) for row in attempts] == [(1, "ERRORED"), (2, "ERRORED"), (3, "COMPLETED")]
    assert "attempt 1 fails" in attempts[0].error


def test_the_platform_fetches_for_a_run_and_repeats_what_fails(running: Running) -> None:
    running.upstream.statuses["/fetch/a"] = [500, 503, 200]
    run = running.run_of(running.send("fetch", {"url": f"{running.upstream.url}/fetch/a", "body": {"x": 1}}))
    assert (run.status, run.output) == ("SUCCESS", {"fetched": {"asked": 3}})


def test_a_fetch_that_is_refused_for_good_fails_the_run(running: Running) -> None:
    running.upstream.statuses["/fetch/b"] = [404]
    run = running.run_of(running.send("fetch", {"url": f"{running.upstream.url}/fetch/b"}))
    assert run.status == "FAILURE"
    assert running.upstream.requests["/fetch/b"] == 1


def test_a_run_starts_another_job_by_an_event(running: Running) -> None:
    run = running.run_of(running.send("chain"))
    second = running.run_of(f"{run.id}-second")
    assert (run.status, second.status, second.output) == ("SUCCESS", "SUCCESS", {"from": run.id})


def test_a_run_that_throws_fails_with_its_error(running: Running) -> None:
    run = running.run_of(running.send("broken"))
    assert run.status == "FAILURE"
    assert run.output["message"] == "this job is broken"


def test_a_payload_that_does_not_fit_its_schema_is_told(running: Running) -> None:
    run = running.run_of(running.send("checked", {"n": "one"}))
    assert run.status == "INVALID_PAYLOAD"
    assert run.output[0]["path"] == ["n"]
    assert running.run_of(running.send("checked", {"n": 1})).status == "SUCCESS"


def test_preprocessing_gives_a_run_its_properties_and_can_refuse_it(running: Running) -> None:
    run = running.run_of(running.send("preprocess", {"label": "red"}))
    assert (run.status, [item["text"] for item in run.properties]) == ("SUCCESS", ["red"])


def test_a_run_yields_and_goes_on(running: Running) -> None:
    run = running.run_of(running.send("yield"))
    assert run.status == "SUCCESS"
    assert [line["key"] for line in running.endpoint.journal(run=run.id, what="task")] == ["before", "after"]


def test_parallel_tasks_wait_beside_each_other_and_each_is_done_once(running: Running) -> None:
    run = running.run_of(running.send("parallel"))
    assert run.status == "SUCCESS"
    done = Counter(line["key"] for line in running.endpoint.journal(run=run.id, what="task"))
    assert done == {"left before": 1, "right before": 1, "left after": 1, "right after": 1}


def test_no_more_runs_than_the_limit_are_executed_at_a_time(running: Running) -> None:
    events = [running.send("limited", {"hold_ms": 60}) for _ in range(6)]
    runs = [running.run_of(event) for event in events]
    assert {run.status for run in runs} == {"SUCCESS"}
    ids = {run.id for run in runs}
    held = 0
    for line in running.endpoint.journal(job="limited"):
        if line["run"] in ids and line["what"] in ("start", "end"):
            held += 1 if line["what"] == "start" else -1
            assert held <= 1, line
    [queue] = running.platform.rows("select max_jobs, job_count from {p}.job_queue where id = %s", runs[0].queue_id)
    assert (queue.max_jobs, queue.job_count) == (1, 0)


@pytest.mark.parametrize("job", ["interval", "cron"])
def test_schedules_start_runs_at_each_tick_and_go_on(running: Running, job: str) -> None:
    slug = "select 1 from {p}.job j where j.id = s.key and j.slug = %s"

    def ticks() -> list[Any]:
        return running.endpoint.journal(job=job, what="tick")

    for _ in range(2):
        before = len(ticks())
        running.bring_forward(f"exists ({slug})", job)
        until(lambda before=before: len(ticks()) > before, f"{job} ticks", RUN_LIMIT_S)
    assert [tick.get("lastTimestamp") for tick in ticks()][1:] == [tick["ts"] for tick in ticks()][:-1]
    until(
        lambda: running.platform.rows(
            "select from {p}.schedule_source s join {wq}.job j on j.job_key = 'scheduled:' || s.id "
            f"where j.run_at = s.next_tick and s.next_tick > now() and exists ({slug})",
            job,
        ),
        "the next tick waits for its time",
    )


def test_a_schedule_that_a_run_registers_ticks_until_it_is_unregistered(running: Running) -> None:
    assert running.run_of(running.send("register-interval", {"id": "user-7", "seconds": 20})).status == "SUCCESS"
    running.bring_forward("s.key like %s", "%:user-7")
    until(lambda: running.endpoint.journal(job="dynamic-interval", schedule="user-7"), "it ticks", RUN_LIMIT_S)
    assert running.run_of(running.send("unregister-interval", {"id": "user-7"})).status == "SUCCESS"
    left = running.platform.rows("select active from {p}.schedule_source where key like %s", "%:user-7")
    assert [row.active for row in left] == [False]


def test_an_external_source_is_registered_and_what_it_delivers_starts_runs(running: Running) -> None:
    hook = until(lambda: [hook for hook in running.upstream.hooks if hook["repo"] == "alpha"], "it is registered")[0]
    until(
        lambda: running.platform.rows("select from {p}.trigger_source where params ->> 'repo' = 'alpha' and active"),
        "it is active",
    )
    running.upstream.deliver(hook, {"event": "pushed", "repo": "alpha", "commit": "c0ffee"})
    [line] = until(lambda: running.endpoint.journal(job="on-push", commit="c0ffee"), "the delivery starts a run")
    assert line["repo"] == "alpha"
    running.upstream.deliver(hook, {"event": "pushed", "repo": "alpha", "commit": "forged"}, secret="another")
    running.upstream.deliver(hook, {"event": "pushed", "repo": "alpha", "commit": "after"})
    until(lambda: running.endpoint.journal(job="on-push", commit="after"), "the next delivery starts a run")
    assert running.endpoint.journal(commit="forged") == []


def test_a_trigger_that_a_run_registers_starts_runs(running: Running) -> None:
    assert running.run_of(running.send("register-trigger", {"id": "beta-hook", "repo": "beta"})).status == "SUCCESS"
    hook = until(lambda: [hook for hook in running.upstream.hooks if hook["repo"] == "beta"], "it is registered")[0]
    running.upstream.deliver(hook, {"event": "pushed", "repo": "beta", "commit": "b0b"})
    [line] = until(lambda: running.endpoint.journal(job="on-any-push", commit="b0b"), "it starts a run", RUN_LIMIT_S)
    assert line["registration"] == "beta-hook"


def test_200_runs_end_once_each_though_workers_are_killed(running: Running) -> None:
    chance = random.Random(7)
    events = [running.send("steps") for _ in range(100)]
    killed: list[int] = []
    while len(events) < 200 or len(killed) < 6:
        if len(events) < 200:
            events += [running.send("steps") for _ in range(20)]
        workers = [pid for pid in running.platform.master.working() if pid not in killed]
        if workers:
            victim = chance.choice(workers)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
        time.sleep(0.3)  # a kill that comes while the last one is being repaired, but lets some work through

    # what lost its worker is found by the sweep, which is asked for here instead of waited for
    def swept() -> bool:
        running.platform.wq("schedules", "trigger", "sweepExecutions")
        time.sleep(1.0)
        return len(running.ended_runs(events)) >= len(events)

    until(swept, "all runs end", 120)
    runs = running.ended_runs(events)
    assert Counter(run.status for run in runs) == {"SUCCESS": 200}
    effects = Counter((line["run"], line["key"]) for line in running.endpoint.journal(job="steps", what="task"))
    assert set(effects.values()) == {1}
    assert len(effects) == 5 * 200
    tasks = running.platform.rows(
        "select run_id, idempotency_key from {p}.task where run_id = any(%s)", [run.id for run in runs]
    )
    assert len(tasks) == len({(task.run_id, task.idempotency_key) for task in tasks}) == 5 * 200
    finished = running.platform.rows(
        "select args ->> 'id' as run, count(*) from {wq}.jobs where kind = 'runFinished' and args ->> 'id' = any(%s) group by 1",
        [run.id for run in runs],
    )
    assert Counter(row.count for row in finished) == {1: 200}
    until(running.platform.is_quiet, "all has come to rest")
    assert [
        row.job_count for row in running.platform.rows("select job_count from {p}.job_queue where job_count <> 0")
    ] == []
