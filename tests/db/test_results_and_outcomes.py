"""Waiting for jobs, and the stream of outcomes: none missed, none twice, whatever commits late or has expired."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.db.test_control_changes import finish
from tests.db.test_plans_pinned import plan
from tests.db.test_protocol_turns import NewShard, add, done, lanes_of, turn
from tests.fix_pg import Fresh
from wqcore.client import Client, SyncClient
from wqcore.control import outcomes
from wqcore.control.filters import JobFilter, parameters
from wqcore.control.outcomes import Gap, OutcomeEvent, Reader
from wqcore.db.connect import BigIntArray
from wqcore.errors import InvalidRequest, JobFailed, JobNotFound
from wqcore.upkeep.retire import retire, summarize

FILL = (
    "insert into {s}.history select n, 'default', 'k', 'completed', 1, 1, 3, 0, null, null, null, null, now(), now(), "
    "now(), now() + interval '24 hours', n, '{{}}', null, null, null from generate_series(1, %s) n"
)


@pytest_asyncio.fixture
async def client(database: Fresh) -> AsyncIterator[Client]:
    async with Client(database.settings) as client:
        yield client


def reader(since: str | None = None, **wanted: Any) -> Reader:
    return Reader(**({"kinds": None, "queues": None, "outcomes": None} | wanted), since=since)


async def read(client: Client, stream: Reader) -> list[Any]:
    """All that the stream has now: the ids of outcomes, and gaps."""
    found: list[Any] = []
    while events := await client._do(stream.read()):
        found += [event if isinstance(event, Gap) else event.id for event in events]
    return found


# --- waiting ------------------------------------------------------------------------------------------------------------


async def test_many_waiters_get_the_end_of_their_jobs_and_share_their_looks(
    database: Fresh, client: Client, new_shard: NewShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [add(database) for _ in range(40)]
    looks: list[int] = []
    fetch = client._fetch

    async def counted(query: Any, *where: Any) -> Any:
        if query.name == "jobs_ended":
            looks.append(len(query.params["ids"].items))
        return await fetch(query, *where)

    monkeypatch.setattr(client, "_fetch", counted)
    waits = [asyncio.create_task(client.wait(job, timeout_s=60)) for job in jobs * 3]
    while not looks or looks[-1] < 40:
        await asyncio.sleep(0.01)
    protocol, lanes = await new_shard(1), lanes_of()
    assert sorted(await turn(protocol, lanes, limit=100)) == jobs
    await turn(protocol, lanes, done(*((job, 0) for job in jobs)), changed=True, limit=0)
    found = await asyncio.gather(*waits)
    assert [info.id for info in found] == jobs * 3
    assert {info.state for info in found} == {"completed"}
    assert max(looks) == 40
    assert client._routes.home.waiters is not None
    assert client._routes.home.waiters._waiting == {}


async def test_a_result_is_the_output_or_says_why_there_is_none(database: Fresh, client: Client) -> None:
    completed, discarded = finish(database, "completed"), finish(database, "discarded")
    with SyncClient(database.settings) as sync:
        assert await client.result(completed, timeout_s=30) == sync.result(completed, timeout_s=30) == [1]
        for error in (JobFailed, JobFailed):
            with pytest.raises(error, match="discarded it is") as raised:
                await client.result(discarded)
            assert (raised.value.job_id, raised.value.state, raised.value.error) == (
                discarded, "discarded", "discarded it is",
            )  # fmt: skip
            with pytest.raises(error):
                sync.result(discarded)
        with pytest.raises(JobNotFound, match="never existed"):
            await client.wait(10**9, timeout_s=30)
        with pytest.raises(JobNotFound, match="retention"):
            sync.wait(10**9, timeout_s=30)


async def test_a_wait_that_is_over_first_says_so_and_leaves_nothing_behind(database: Fresh, client: Client) -> None:
    job = add(database)
    with pytest.raises(TimeoutError, match=f"job {job} has not finished within 0.05 s"):
        await client.wait(job, timeout_s=0.05)
    with pytest.raises(TimeoutError), SyncClient(database.settings) as sync:
        sync.wait(job, timeout_s=0.05)
    assert client._routes.home.waiters is not None
    assert client._routes.home.waiters._waiting == {}
    waiting = asyncio.create_task(client.wait(job))
    await asyncio.sleep(0.05)
    await client.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_look_that_fails_fails_those_who_wait_and_the_next_begins_anew(database: Fresh, client: Client) -> None:
    job = add(database)
    waiting = asyncio.create_task(client.wait(job, timeout_s=60))
    await asyncio.sleep(0.05)
    database.sql("alter table {s}.job rename to hidden")
    with pytest.raises(Exception, match="schema"):
        await waiting
    database.sql("alter table {s}.hidden rename to job")
    database.sql("delete from {s}.job")
    with pytest.raises(JobNotFound):
        await client.wait(job, timeout_s=60)


# --- the stream ---------------------------------------------------------------------------------------------------------


async def test_the_stream_begins_now_and_goes_on_at_any_position(database: Fresh, client: Client) -> None:
    finish(database, "completed")
    stream = reader()
    assert await read(client, stream) == []
    ids = [finish(database, "completed", kind=f"k{n}", serial_key="s") for n in range(5)]
    events: list[Any] = []
    while found := await client._do(stream.read()):
        events += found
    assert [event.id for event in events] == ids
    first = events[0]
    assert (first.kind, first.queue, first.outcome, first.attempt, first.serial_key, first.error, first.output) == (
        "k0", "default", "completed", 3, "s", "completed it is", [1],
    )  # fmt: skip
    assert await client._do(stream.read()) == []
    for n, event in enumerate(events):
        assert await read(client, reader(event.position)) == ids[n + 1 :]
    for text in ("", "7", "1-2-x"):
        with pytest.raises(InvalidRequest, match="position"):
            reader(text)


async def test_the_stream_is_chosen_by_kind_queue_and_outcome(database: Fresh, client: Client) -> None:
    since = await client.position()
    one = finish(database, "completed", kind="a")
    two = finish(database, "discarded", kind="b", queue="mail")
    three = finish(database, "cancelled", kind="a", queue="mail")
    assert await read(client, reader(since, kinds=["a"])) == [one, three]
    assert await read(client, reader(since, queues=["mail"])) == [two, three]
    assert await read(client, reader(since, outcomes=["discarded", "cancelled"], kinds=["b"])) == [two]
    with pytest.raises(InvalidRequest, match="available"):
        reader(outcomes=["available"])
    with pytest.raises(InvalidRequest, match="list"):
        reader(kinds="a")


@pytest.mark.parametrize("batch", [1, 3, 200])
async def test_a_transaction_with_many_outcomes_is_neither_cut_nor_repeated(
    database: Fresh, client: Client, new_shard: NewShard, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(outcomes, "BATCH_EVENTS", batch)
    since = await client.position()
    jobs = [add(database) for _ in range(10)]
    protocol, lanes = await new_shard(1), lanes_of()
    for _ in range(2):
        await turn(protocol, lanes, limit=5)
    await turn(protocol, lanes, done(*((job, 0) for job in jobs)), changed=True, limit=0)
    last = finish(database, "completed")
    stream = reader(since)
    assert await read(client, stream) == [*jobs, last]
    assert await read(client, stream) == []


async def test_a_transaction_that_commits_late_delays_the_stream_and_is_not_missed(
    database: Fresh, client: Client
) -> None:
    since = await client.position()
    job = add(database)
    with psycopg.connect(database.dsn) as late:
        late.execute(f'select "{database.schema}".cancel({job})'.encode())
        later = finish(database, "completed")
        stream = reader(since)
        assert await read(client, stream) == []
        late.commit()
    assert await read(client, stream) == [job, later]
    with psycopg.connect(database.dsn) as late:
        late.execute("select pg_current_xact_id()")
        finish(database, "completed")
        assert await read(client, stream) == []
        late.rollback()
    assert len(await read(client, stream)) == 1


async def test_what_expired_before_it_was_read_is_a_gap_and_the_rest_follows(
    database: Fresh, client: Client, aconn: Any
) -> None:
    since = await client.position()
    lost, kept = finish(database, "completed"), finish(database, "discarded")
    database.sql("update {s}.history set expires_at = now() - interval '1 day' where id = %s", lost)
    await retire(aconn, database.statements)
    late = reader(since)
    found = await read(client, late)
    assert [type(event) for event in found] == [Gap, int]
    assert found[1] == kept
    assert await read(client, late) == []
    assert await read(client, reader(found[0].position)) == [kept]  # the gap is told once
    assert await read(client, reader(await client.position())) == []


async def test_a_dropped_partition_is_a_gap_for_who_is_behind_it_only(
    database: Fresh, client: Client, aconn: Any
) -> None:
    behind = await client.position()
    finish(database, "completed")
    stream = reader(behind)
    await read(client, stream)
    database.sql(
        "create table {s}.history_20000101 partition of {s}.history for values from ('2000-01-01 00:00:00+00') "
        "to ('2000-01-02 00:00:00+00')"
    )
    database.sql("update {s}.history set expires_at = '2000-01-01 12:00:00+00'")
    assert any("dropped history_20000101" in line for line in await retire(aconn, database.statements))
    assert await read(client, stream) == []
    assert [type(event) for event in await read(client, reader(behind))] == [Gap]


async def test_outcomes_of_many_writers_are_all_seen_once_in_one_order_by_every_reader(
    database: Fresh, client: Client
) -> None:
    """Eight writers with transactions of any length, two readers of which one starts over at each event."""
    since = await client.position()
    seed = random.randrange(1 << 30)
    print("seed", seed)
    database.sql("insert into {s}.job (queue, slot, kind, args) select 'default', 0, 'k', '{{}}' from generate_series(1, 400)")
    ids = [job for (job,) in database.sql("select id from {s}.job order by id")]

    def write(number: int) -> None:
        chance = random.Random(seed + number)
        mine = ids[number::8]
        with psycopg.connect(database.dsn) as conn:
            while mine:
                for job in mine[: chance.randrange(1, 9)]:
                    conn.execute(f'select "{database.schema}".cancel({job})'.encode())
                    mine.remove(job)
                    threading.Event().wait(chance.random() / 200)
                conn.commit()

    async def follow(*, anew: bool) -> list[int]:
        found: list[int] = []
        position = since
        while len(found) < 400:
            stream = client.outcomes(since=position, poll_s=0.02)
            async for event in stream:
                assert isinstance(event, OutcomeEvent)
                found.append(event.id)
                position = event.position
                if len(found) == 400 or (anew and len(found) % 7 == 0):
                    break
        return found

    reading = [asyncio.create_task(follow(anew=anew)) for anew in (False, True)]
    writers = [asyncio.to_thread(write, number) for number in range(8)]
    await asyncio.gather(*writers)
    one, other = await asyncio.wait_for(asyncio.gather(*reading), 60)
    assert one == other
    assert sorted(one) == ids


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_no_look_at_jobs_or_outcomes_reads_a_whole_table(database: Fresh, mode: str) -> None:
    """As in the sessions of a client, which prefer indexes; the history is large and has no statistics."""
    database.sql(FILL, 20_000)
    database.conn.execute("set enable_seqscan = off")
    database.conn.execute(f"set plan_cache_mode = {mode}".encode())
    ids = BigIntArray([1, 2])
    wanted = parameters(JobFilter(kinds=["k"])) | {"after": 5, "scan": 100, "n": 10, "whole": True}
    for name, params in (
        ("outcomes", {"xid": 19_990, "id": 0, "upto": 20_000, "n": 10, "kinds": ["k"], "queues": None, "outcomes": None}),
        ("jobs_ended", {"ids": ids}),
        ("jobs_walk", wanted),
        ("jobs_walk", wanted | parameters(JobFilter(ids=[1]))),
        ("jobs_walk", wanted | parameters(JobFilter(states=["discarded"]))),
        ("control_delete", {"ids": ids, "revisions": ids}),
        ("control_retry", {"ids": ids, "revisions": ids}),
        ("control_cancel", {"ids": ids, "revisions": ids, "reason": "r", "running_too": True}),
    ):
        large = [scan for scan in plan(database, name, params) if scan[1].startswith(("history", "job"))]
        assert large
        assert [scan for scan in large if scan[0] == "Seq Scan"] == [], name


async def test_the_index_of_the_newest_outcomes_is_brought_up_to_date_unless_somebody_vacuums(
    database: Fresh, aconn: Any
) -> None:
    left = (
        "select sum(brin_summarize_new_values(inhrelid)) from pg_inherits "
        "where inhparent = '{s}.history_xid'::regclass"
    )
    database.sql(FILL, 20_000)
    with psycopg.connect(database.dsn) as conn:
        conn.execute(f'lock table "{database.schema}".history in share update exclusive mode'.encode())
        await summarize(aconn, database.statements)
    await summarize(aconn, database.statements)
    assert database.one(left) == 0
    database.sql(FILL, 20_000)
    with psycopg.connect(database.dsn) as conn:
        conn.execute(f'lock table "{database.schema}".history in share update exclusive mode'.encode())
        await summarize(aconn, database.statements)
    assert database.one(left) > 0


def test_the_plain_iterator_follows_too(database: Fresh) -> None:
    with SyncClient(database.settings) as sync:
        since = sync.position()
        ids = [finish(database, "completed") for _ in range(3)]
        events = list(itertools.islice(sync.outcomes(since=since, poll_s=0.01), 3))
        assert [event.id for event in events if isinstance(event, OutcomeEvent)] == ids
