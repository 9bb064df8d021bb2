"""Looking at jobs by filter, and changing them: what was asked is done to those that wait, and to no others."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.db.test_protocol_turns import NewShard, add, done, lanes_of, turn
from tests.fix_pg import Fresh
from wqcore.client import Client, SyncClient
from wqcore.control import jobs
from wqcore.control.changes import Changed
from wqcore.control.filters import JobFilter
from wqcore.db import wake
from wqcore.errors import InvalidRequest
from wqcore.job import JobState
from wqcore.upkeep.cancels import cancel_unheld

HOUR = dt.timedelta(hours=1)


@pytest_asyncio.fixture
async def client(database: Fresh) -> AsyncIterator[Client]:
    async with Client(database.settings) as client:
        yield client


def finish(database: Fresh, outcome: str, **columns: Any) -> int:
    """A finished job."""
    job = add(database, **columns)
    database.sql(
        "with gone as (delete from {s}.job j where id = %s returning j) insert into {s}.history "
        "select e.* from gone cross join lateral {s}.ending(j, %s, 3, 9, now(), %s, %s, 10) as e",
        job, outcome, json.dumps({"error": f"{outcome} it is", "attempt": 3}), "[1]",
    )  # fmt: skip
    return job


def heard(database: Fresh, queue: str = "default") -> psycopg.Connection[Any]:
    """A connection that listens to the queue."""
    conn = psycopg.connect(database.dsn, autocommit=True)
    conn.execute(f'listen "{wake.channel(database.schema, queue)}"'.encode())
    return conn


def payloads(conn: psycopg.Connection[Any], count: int = 1) -> list[str]:
    """So many notifications, sorted; fewer when they do not come."""
    found: list[str] = []
    for _ in range(10 * count):
        found += [notification.payload for notification in conn.notifies(timeout=2, stop_after=1)]
        if len(found) >= count:
            break
    return sorted(found)


# --- looking ------------------------------------------------------------------------------------------------------------


async def test_a_job_is_shown_with_its_state_errors_output_and_progress(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    running = add(database, args='{"user": {"id": 7}}', metadata='{"m": [1]}')
    await turn(await new_shard(1), lanes_of())
    database.sql("insert into {s}.progress (job, fraction, note) values (%s, 0.25, 'a quarter')", running)
    later = add(database, run_at="now() + interval '1 hour'", errors='[{"attempt": 1, "error": "x", "class": "E"}]')
    ended = finish(database, "discarded", job_key="k")
    found = await client.job(running)
    assert found is not None
    assert (found.state, found.args, found.metadata) == (JobState.RUNNING, {"user": {"id": 7}}, {"m": [1]})
    assert (found.progress, found.progress_note, found.is_finished) == (0.25, "a quarter", False)
    found = await client.job(later)
    assert found is not None
    assert (found.state, found.errors[0].error_class, found.last_error) == ("retryable", "E", "x")
    found = await client.job(ended)
    assert found is not None
    assert found.is_finished
    assert (found.state, found.output, found.attempt, found.job_key) == ("discarded", [1], 3, "k")
    assert found.errors[-1].at is not None
    assert await client.job(10**9) is None


CASES: list[tuple[JobFilter, list[int]]] = [
    (JobFilter(), [0, 1, 2, 3, 4, 5]),
    (JobFilter(ids=[]), []),
    (JobFilter(kinds=["a"]), [0, 3]),
    (JobFilter(queues=["mail"]), [1]),
    (JobFilter(states=["available"]), [0, 1]),
    (JobFilter(states=["scheduled"]), [2]),
    (JobFilter(states=[JobState.DISCARDED, JobState.CANCELLED]), [3, 5]),
    (JobFilter(states=["completed", "available"]), [0, 1, 4]),
    (JobFilter(serial_key="s"), [1]),
    (JobFilter(job_key="j"), [2]),
    (JobFilter(args={"user.id": 7}), [0]),
    (JobFilter(args={"user": {"id": 7}}), [0]),
    (JobFilter(args={"user.id": 8}), []),
    (JobFilter(args={"nothing": None}), []),
    (JobFilter(metadata={"team": "red"}, kinds=["b"]), [1]),
    (JobFilter(error="carded it"), [3]),
    (JobFilter(older_than=HOUR), [2]),
    (JobFilter(newer_than=HOUR, kinds=["b"]), [1, 4, 5]),
    (JobFilter(older_than=dt.datetime(2001, 1, 1, tzinfo=dt.UTC)), [2]),
    (JobFilter(priority_min=2, priority_max=5), [1]),
]  # fmt: skip


@pytest.mark.parametrize("window", [1, 2, 5000])
async def test_a_filter_finds_what_matches_in_windows_of_any_size(
    database: Fresh, client: Client, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(jobs, "WINDOW_JOBS", window)
    ids = [
        add(database, kind="a", args='{"user": {"id": 7.0}}'),
        add(database, kind="b", queue="mail", serial_key="s", metadata='{"team": "red"}', priority=5),
        add(database, kind="b", job_key="j", run_at="now() + interval '1 hour'", created_at="2000-01-01"),
        finish(database, "discarded", kind="a"),
        finish(database, "completed", kind="b"),
        finish(database, "cancelled", kind="b"),
    ]
    for chosen, expected in CASES:
        found = [job.id for job in await client.jobs(chosen)]
        assert found == [ids[n] for n in expected], chosen
        assert await client.count(chosen) == len(expected), chosen
    assert [job.id for job in await client.jobs(limit=2, after=ids[1])] == ids[2:4]
    assert [job.id for job in await client.jobs(JobFilter(ids=ids), after=ids[3])] == ids[4:]
    with SyncClient(database.settings) as sync:
        assert [job.id for job in sync.jobs()] == ids
        assert sync.count() == 6


async def test_what_a_filter_cannot_mean_is_refused(client: Client) -> None:
    for chosen in (
        JobFilter(states=["asleep"]),
        JobFilter(kinds="mail"),
        JobFilter(older_than=dt.datetime(2026, 1, 1)),
        JobFilter(args={"a": object()}),
    ):
        with pytest.raises(InvalidRequest):
            await client.count(chosen)
    with pytest.raises(InvalidRequest, match="every job"):
        await client.delete(JobFilter())
    with pytest.raises(InvalidRequest, match="what to retry"):
        await client.retry(JobFilter(kinds=["a"]))
    with pytest.raises(InvalidRequest, match="1000"):
        await client.reprioritise(1, 1001)
    with pytest.raises(InvalidRequest, match="limit"):
        await client.jobs(limit=0)


# --- changing -----------------------------------------------------------------------------------------------------------


async def test_cancel_ends_what_waits_asks_for_what_runs_and_leaves_what_has_ended(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    running = add(database)
    await turn(await new_shard(1), lanes_of())
    ended, waiting = finish(database, "completed"), add(database, job_key="k")
    later = add(database, run_at="now() + interval '1 hour'")
    conn = heard(database)
    found = await client.cancel([running, ended, waiting, later, 10**9], reason="no more")
    assert found == Changed(changed=2, cancelling=1, finished=1, unknown=1)
    assert payloads(conn, 2) == ["cancel", f"gone:{waiting}"]
    assert database.sql("select job, reason from {s}.cancel_request") == [(running, "no more")]
    assert database.sql("select id from {s}.job") == [(running,)]
    assert database.one("select errors -> -1 ->> 'error' from {s}.history where id = %s", waiting) == "no more"
    again = await client.cancel(JobFilter(states=["running", "available"]))
    assert again == Changed(cancelling=1)
    assert database.one("select count(*) from {s}.cancel_request") == 1
    conn.close()


async def test_a_filter_of_waiting_jobs_never_cancels_one_that_runs(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    job = add(database)
    found = jobs.Window([(None, 1, job, 0)], 1)
    assert found.rows == [(job, 0)]
    await turn(await new_shard(1), lanes_of())
    assert await client.cancel(JobFilter(states=["available"], kinds=["k"])) == Changed()
    assert database.one("select count(*) from {s}.cancel_request") == 0


async def test_bites_are_transactions_of_their_own_and_say_how_far_they_are(database: Fresh, client: Client) -> None:
    for _ in range(25):
        add(database)
    finish(database, "cancelled")
    said: list[Changed] = []
    chosen = JobFilter(kinds=["k"], states=["available"])
    assert await client.count(chosen) == 25
    assert await client.delete(chosen, bite=10, progress=said.append) == Changed(changed=25)
    assert [found.changed for found in said] == [10, 20, 25]
    assert await client.count(chosen) == 0


async def test_a_notification_of_deleted_jobs_names_at_most_400_of_them(database: Fresh, client: Client) -> None:
    database.sql("alter sequence {s}.job_id_seq restart with 9000000000000000000")
    database.sql("insert into {s}.job (queue, slot, kind, args) select 'default', 0, 'k', '{{}}' from generate_series(1, 700)")
    conn = heard(database)
    assert await client.delete(JobFilter(kinds=["k"])) == Changed(changed=700)
    hints = [wake.parse(payload) for payload in payloads(conn, 3)]
    sizes = [len(hint.gone) for hint in hints if hint is not None]
    assert sorted(sizes) == [100, 300, 300]
    conn.close()


async def test_another_priority_or_time_is_found_behind_the_cursors_and_keeps_the_rest(
    database: Fresh, client: Client, new_shard: NewShard
) -> None:
    first, second, third = add(database), add(database), add(database)
    held = add(database, slot=1)
    protocol, lanes = await new_shard(1), lanes_of(1)
    assert await turn(protocol, lanes) == [held]
    conn = heard(database)
    assert await client.reprioritise([first, held], 7) == Changed(changed=1, running=1)
    assert payloads(conn) == ["due"]
    assert database.sql("select priority, revision, run_at = created_at from {s}.job where id = %s", first) == [(7, 0, True)]
    assert await client.reschedule(second, dt.timedelta(seconds=-1)) == Changed(changed=1)
    at = dt.datetime.now(dt.UTC) + HOUR
    assert await client.reschedule([third, held], at) == Changed(changed=1, running=1)
    assert database.sql("select run_at, revision from {s}.job where id = %s", third) == [(at, 1)]
    other = await new_shard(2)
    assert await turn(other, lanes_of(0, priorities=(1, 7))) == [first, second]
    conn.close()


@pytest.mark.parametrize("outcome", ["completed", "cancelled", "discarded"])
async def test_a_finished_job_comes_back_once_with_its_id_and_one_attempt_more(
    database: Fresh, client: Client, new_shard: NewShard, outcome: str
) -> None:
    job = finish(database, outcome, serial_key="s", job_key="k", max_attempts=3, deaths=2, metadata='{"m": 1}')
    database.sql("insert into {s}.cancel_request (job, queue, reason) values (%s, 'default', 'old')", job)
    conn = heard(database)
    assert await client.retry(JobFilter(states=[outcome])) == Changed(changed=1)
    assert payloads(conn) == [f"due back:{job}"]
    assert await client.retry(job) == Changed(changed=1)  # it waits, and its time has come
    found = await client.job(job)
    assert found is not None
    assert (found.state, found.attempt, found.max_attempts, found.deaths) == ("available", 3, 4, 0)
    assert (found.serial_key, found.job_key, found.last_error) == ("s", "k", f"{outcome} it is")
    assert database.one("select count(*) from {s}.history") == 0
    assert database.one("select count(*) from {s}.cancel_request") == 0
    protocol, lanes = await new_shard(1), lanes_of()
    # its former run's acknowledgement, sent again after a lost reply, ends nothing
    assert await turn(protocol, lanes, done((job, 0)), changed=True) == [job]
    assert await client.retry(job) == Changed(running=1)
    conn.close()


async def test_a_job_whose_key_another_has_by_now_does_not_come_back(database: Fresh, client: Client) -> None:
    job = finish(database, "discarded", job_key="k")
    add(database, job_key="k")
    assert await client.retry(job) == Changed(taken=1)
    assert database.sql("select id from {s}.history") == [(job,)]


async def test_two_that_retry_and_delete_the_same_jobs_never_lose_or_double_one(database: Fresh, client: Client) -> None:
    ids = [finish(database, "discarded") for _ in range(200)]
    async with Client(database.settings) as other:
        one, two, gone = await asyncio.gather(
            client.retry(ids, bite=20), other.retry(ids, bite=30), other.delete(ids[:50], bite=10)
        )
    left = database.one("select count(*) from {s}.job") + database.one("select count(*) from {s}.history")
    assert left == 200 - gone.changed
    assert one.changed + two.changed + one.unknown + two.unknown + one.running + two.running + one.taken + two.taken == 400
    assert database.one("select count(*) from {s}.job j join {s}.history h using (id)") == 0


async def test_a_waiting_job_is_retried_at_once(database: Fresh, client: Client) -> None:
    job = add(database, run_at="now() + interval '1 hour'", errors='[{"error": "x"}]')
    assert await client.retry(JobFilter(states=["retryable"])) == Changed(changed=1)
    assert database.sql("select run_at <= now(), revision from {s}.job where id = %s", job) == [(True, 0)]


async def test_delete_removes_finished_jobs_too_but_a_walk_only_what_it_saw(database: Fresh, client: Client) -> None:
    ended, waiting = finish(database, "discarded"), add(database)
    assert await client.delete([ended, waiting, 10**9]) == Changed(changed=2, unknown=1)
    assert database.one("select count(*) from {s}.history") == 0
    # what a walk saw at another revision, or unfinished, is left
    job, ended = add(database), finish(database, "completed")
    with database.conn.cursor() as cursor:
        cursor.execute(
            database.statements["control_delete"], {"ids": [job, ended], "revisions": [1, 0]}
        )
        assert cursor.fetchone() == (0, 0, 0, 1, 0, 0)


async def test_a_row_that_somebody_has_locked_is_not_waited_for(database: Fresh, client: Client) -> None:
    job = add(database)
    with psycopg.connect(database.dsn) as conn:
        conn.execute(f'select from "{database.schema}".job where id = {job} for update'.encode())
        assert await client.delete(job) == Changed(running=1)
        assert await client.reprioritise(job, 3) == Changed(running=1)
        assert await client.cancel(job) == Changed(cancelling=1)


# --- cancellations that nobody can carry out ----------------------------------------------------------------------------


async def test_a_cancellation_whose_job_was_given_back_is_carried_out(
    database: Fresh, client: Client, new_shard: NewShard, aconn: Any
) -> None:
    given_back, held = add(database), add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    assert await turn(protocol, lanes) == [given_back, held]
    assert await client.cancel([given_back, held], reason="no more") == Changed(cancelling=2)
    await turn(protocol, lanes, held=[held], limit=0, changed=True)
    assert await cancel_unheld(aconn, database.statements) == 0  # the owner has a second
    database.sql("update {s}.cancel_request set asked_at = now() - interval '2 seconds'")
    assert await cancel_unheld(aconn, database.statements) == 1
    assert database.sql("select job from {s}.cancel_request") == [(held,)]
    assert database.sql("select id, outcome, errors -> -1 ->> 'error' from {s}.history") == [
        (given_back, "cancelled", "no more")
    ]


# --- against a turn that began before -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["cancel", "delete", "reprioritise", "reschedule"])
async def test_a_turn_that_began_before_a_change_loses_nothing_and_writes_no_second_outcome(
    database: Fresh, client: Client, new_shard: NewShard, change: str
) -> None:
    """The change is committed between the snapshot of a turn and its claim: the turn waits for its shard's row there."""
    job = add(database)
    protocol, lanes = await new_shard(1), lanes_of()
    with psycopg.connect(database.dsn) as conn:
        conn.execute(f'select from "{database.schema}".shard for update'.encode())
        claiming = asyncio.create_task(turn(protocol, lanes))
        while not database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock'"):
            await asyncio.sleep(0.01)
        args = {"reprioritise": (3,), "reschedule": (HOUR,)}.get(change, ())
        assert await getattr(client, change)(job, *args) == Changed(changed=1)
    assert await claiming == [job]  # as it was
    await turn(protocol, lanes, done((job, 0)), changed=True, limit=0)
    history = database.sql("select outcome from {s}.history")
    left = database.sql("select priority, run_at > now() from {s}.job")
    assert (history, left) == {
        "cancel": ([("cancelled",)], []),
        "delete": ([], []),
        "reprioritise": ([("completed",)], []),
        "reschedule": ([], [(1, True)]),
    }[change]
