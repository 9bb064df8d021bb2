"""Recurring jobs: each tick makes its job once, whoever races, dies, changes a schedule or sets a clock."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import wqcore
from tests.fix_pg import ODD_SCHEMAS, PROCESS, Fresh
from wqcore import clock, launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import Client, SyncClient
from wqcore.control.schedules import ScheduleInfo
from wqcore.db import wake
from wqcore.db.connect import connect
from wqcore.errors import InsertError, InvalidArgs, InvalidSchedule, UnknownKind, UnknownQueue, UnknownSchedule
from wqcore.settings import Schedule
from wqcore.upkeep.beat import beat
from wqcore.upkeep.cron import TICKS_MAX, Cron

NewKeeper = Callable[..., Awaitable["Keeper"]]


class Note(msgspec.Struct):
    n: int = 0


class Other(msgspec.Struct):
    must: str


def _catalog() -> Catalog:
    catalog = Catalog()
    for name, args_type in (("note", Note), ("other", Other)):
        catalog.declare(
            Kind(
                name,
                args_type,
                queue="default",
                serial_key=None,
                priority=1,
                max_attempts=3,
                timeout_s=60,
                backoff=river,
                planned=False,
            )
        )
    return catalog


CATALOG = _catalog()


class Keeper:
    """A keeper's cron with a connection of its own."""

    def __init__(self, conn: Any, cron: Cron) -> None:
        self.conn = conn
        self.cron = cron

    async def run(self) -> float:
        return await self.cron.run(self.conn)


@pytest_asyncio.fixture
async def new_keeper(database: Fresh) -> AsyncIterator[NewKeeper]:
    """`await new_keeper()` gives another keeper; `declared` names what its program declares."""
    opened = []

    async def make(*declared: str) -> Keeper:
        conn = await connect(database.dsn, database.settings.database, name="test keeper")
        opened.append(conn)
        return Keeper(conn, Cron(database.statements, declared=declared, process=PROCESS))

    yield make
    for conn in opened:
        await conn.close()


@pytest.fixture
def client(database: Fresh) -> Iterator[SyncClient]:
    launch.sync_kinds(database.conn, database.settings, CATALOG)
    with SyncClient(database.settings, catalog=CATALOG) as client:
        yield client


def fired(database: Fresh, name: str) -> list[dt.datetime]:
    """The ticks that have made a job, in order of their jobs."""
    rows = database.sql("select metadata ->> 'tick' from {s}.job where metadata ->> 'schedule' = %s order by id", name)
    return [dt.datetime.fromisoformat(tick) for (tick,) in rows if tick]


def since(database: Fresh, name: str, seconds: float) -> None:
    """Lets the schedule tick from so many seconds ago."""
    database.sql(
        "update {s}.schedule set next_tick = null, updated_at = now() - %s * interval '1 second' where name = %s",
        seconds, name,
    )  # fmt: skip


def info(client: SyncClient, name: str) -> ScheduleInfo:
    return next(found for found in client.schedules() if found.name == name)


def are_every(ticks: list[dt.datetime], seconds: float) -> bool:
    """No tick is doubled, lost or out of order."""
    step = dt.timedelta(seconds=seconds)
    return all(later - earlier == step for earlier, later in itertools.pairwise(ticks))


# --- exactly once


async def test_many_racing_keepers_fire_each_tick_once(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    for name in ("a", "b"):
        client.set_schedule(name, Note(1), every_s=1)
        since(database, name, 40)
    keepers = [await new_keeper() for _ in range(8)]
    for _ in range(3):
        await asyncio.gather(*(keeper.run() for keeper in keepers))
    for name in ("a", "b"):
        ticks = fired(database, name)
        assert len(ticks) >= 40
        assert are_every(ticks, 1)
        assert info(client, name).last_tick == ticks[-1]
        assert info(client, name).last_job == database.one(
            "select max(id) from {s}.job where metadata ->> 'schedule' = %s", name
        )


async def test_keepers_that_race_tick_by_tick_agree(database: Fresh, client: SyncClient, new_keeper: NewKeeper) -> None:
    client.set_schedule("a", Note(1), every_s=1)
    keepers = [await new_keeper() for _ in range(4)]

    async def keep(keeper: Keeper) -> None:
        while len(fired(database, "a")) < 3:
            await asyncio.sleep(await keeper.run())

    async with asyncio.timeout(60):
        await asyncio.gather(*map(keep, keepers))
    assert are_every(fired(database, "a"), 1)


async def test_a_keeper_that_dies_between_taking_a_tick_and_its_job_leaves_it_to_others(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    client.set_schedule("a", Note(1), every_s=20)
    since(database, "a", 21)
    dying, other = await new_keeper(), await new_keeper()
    [(version, seen)] = database.sql("select updated_at, next_tick from {s}.schedule")
    await dying.conn.execute("begin")
    taken = await dying.conn.execute(
        database.statements["schedule_claim"],
        {"name": "a", "version": version, "seen": seen, "tick": version, "next": version + dt.timedelta(hours=1)},
    )
    assert await taken.fetchone()
    dying.conn.pgconn.finish()
    await until(lambda: other.run(), lambda: len(fired(database, "a")) >= 1)
    await other.run()
    assert are_every(fired(database, "a"), 20)


async def until(step: Callable[[], Awaitable[Any]], condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await step()
            await asyncio.sleep(0.02)


# --- missed ticks and clocks


async def test_missed_ticks_are_made_up_for_within_the_backfill_period_and_the_rest_is_left_out_aloud(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    client.set_schedule("some", Note(), every_s=60, backfill_s=1800)
    client.set_schedule("few", Note(), every_s=30)
    since(database, "some", 7200)
    since(database, "few", 7200)
    keeper = await new_keeper()
    with caplog.at_level(logging.WARNING, logger="wqcore.schedules"):
        await keeper.run()
        await keeper.run()
    assert len(fired(database, "some")) in (30, 31)
    assert len(fired(database, "few")) in (2, 3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert any("some" in line and ("90 missed" in line or "89 missed" in line) for line in said), said
    assert database.one("select now() - last_tick < interval '61 s' from {s}.schedule where name = 'some'")


async def test_a_long_backlog_is_fired_in_bounded_bites_and_starves_nobody(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    for name in ("a", "b"):
        client.set_schedule(name, Note(), every_s=1, backfill_s=86_400)
        since(database, name, 900)
    client.set_schedule("z", Note(), every_s=60)
    since(database, "z", 61)
    keeper = await new_keeper()
    assert await keeper.run() == 0.0
    assert database.one("select count(*) from {s}.job") <= TICKS_MAX
    assert len(fired(database, "a")) == len(fired(database, "b")) > 0
    assert fired(database, "z")
    await until(keeper.run, lambda: len(fired(database, "a")) >= 900 and len(fired(database, "b")) >= 900)
    assert are_every(fired(database, "a"), 1)
    assert are_every(fired(database, "b"), 1)


async def test_what_a_forward_step_of_the_clock_jumps_over_is_fired(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    client.set_schedule("a", Note(), every_s=600)
    since(database, "a", 3600)
    keeper = await new_keeper()
    # as if the pass a moment ago had seen the clock an hour back
    keeper.cron._seen = (database.one("select now() - interval '1 hour'"), clock.monotonic())
    await keeper.run()
    assert len(fired(database, "a")) in (6, 7)
    assert are_every(fired(database, "a"), 600)


async def test_a_backward_step_of_the_clock_doubles_nothing_and_loses_nothing(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    client.set_schedule("a", Note(), every_s=1)
    keeper = await new_keeper()
    await keeper.run()
    before = len(fired(database, "a"))  # a second may have begun since it was set
    # the last tick was made when the clock was four seconds ahead
    ahead = database.one("select date_trunc('second', now()) + interval '4 s'")
    database.sql("update {s}.schedule set last_tick = %s, next_tick = %s + interval '1 s'", ahead, ahead)
    await keeper.run()
    assert len(fired(database, "a")) == before
    client.pause_schedule("a")
    client.resume_schedule("a")  # forgets next_tick, and must not go back behind last_tick
    assert all(tick > ahead for tick in info(client, "a").next_ticks)
    await until(keeper.run, lambda: len(fired(database, "a")) >= before + 2)
    after = fired(database, "a")[before:]
    assert after[0] == ahead + dt.timedelta(seconds=1)
    assert are_every(after, 1)


# --- what cannot fire


async def test_a_bad_schedule_is_noted_stops_no_other_and_fires_when_it_is_mended(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("args", "cron", "good", "kind"):
        client.set_schedule(name, Note(), every_s=20)
        since(database, name, 45)
    database.sql("""update {s}.schedule set args = '[1]' where name = 'args'""")
    database.sql("update {s}.schedule set every_s = null, cron = 'every day' where name = 'cron'")
    database.sql("update {s}.schedule set kind = 'gone' where name = 'kind'")
    keeper = await new_keeper()
    with caplog.at_level(logging.WARNING, logger="wqcore.schedules"):
        for _ in range(3):
            keeper.cron.changed()
            await keeper.run()
    assert len(fired(database, "good")) in (2, 3)
    assert len(caplog.records) == 3
    assert "must be a JSON object" in str(info(client, "args").last_error)
    assert "'every day'" in str(info(client, "cron").last_error)
    assert "unknown kind 'gone'" in str(info(client, "kind").last_error)
    assert {found.name: found.state for found in client.schedules()} == {
        "args": "failing", "cron": "failing", "good": "on", "kind": "failing"
    }  # fmt: skip
    database.sql("update {s}.schedule set kind = 'note' where name = 'kind'")
    keeper.cron.changed()
    await keeper.run()
    assert len(fired(database, "kind")) in (2, 3)
    assert info(client, "kind").last_error is None


async def test_an_open_transaction_of_somebody_else_holds_up_only_its_own_schedule(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    client.set_schedule("locked", Note(), every_s=20)
    client.set_schedule("open", Note(), every_s=20)
    since(database, "locked", 21)
    since(database, "open", 21)
    keeper, other = await new_keeper(), await new_keeper()
    async with other.conn.transaction():
        await other.conn.execute(f"select from \"{database.schema}\".schedule where name = 'locked' for update")
        await keeper.run()
        assert fired(database, "open")
        assert not fired(database, "locked")
    keeper.cron.changed()
    await keeper.run()
    assert fired(database, "locked")


# --- who fires what


async def test_what_code_declares_is_fired_only_by_keepers_of_that_program(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    launch.sync_schedules(database.conn, database.settings, {"c": ("code", Schedule(kind="note", every_s=20))}, print)
    since(database, "c", 21)
    stranger, own = await new_keeper("other"), await new_keeper("c")
    await stranger.run()
    assert fired(database, "c") == []
    assert info(client, "c").state == "unclaimed"
    assert info(client, "c").next_ticks == []
    await beat(
        own.conn, database.statements, process=PROCESS, host="h", pid=7, group=None, version="1", report={"shards": {}}
    )
    await own.cron.note_declared(own.conn)
    await own.cron.note_declared(own.conn)
    await own.run()
    assert len(fired(database, "c")) in (1, 2)
    assert (info(client, "c").state, info(client, "c").declared_by) == ("on", ["h:7"])
    database.sql("delete from {s}.process")
    assert info(client, "c").declared_by == []


async def test_a_new_start_with_the_same_declaration_loses_no_missed_tick(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    same = Schedule(kind="note", args={"n": 1}, cron="0 3 * * *", timezone="Europe/Berlin", metadata={"b": 1, "a": 2})
    launch.sync_schedules(database.conn, database.settings, {"c": ("code", same)}, print)
    before = database.sql("select * from {s}.schedule")
    launch.sync_schedules(database.conn, database.settings, {"c": ("code", same)}, print)
    assert database.sql("select * from {s}.schedule") == before
    database.sql("update {s}.schedule set next_tick = '2026-01-01T02:00:00Z'")
    other_args = msgspec.structs.replace(same, args={"n": 2})
    launch.sync_schedules(database.conn, database.settings, {"c": ("conf", other_args)}, print)
    assert database.sql("select source, args, next_tick is null from {s}.schedule") == [("conf", {"n": 2}, False)]
    other_time = msgspec.structs.replace(other_args, cron="0 4 * * *")
    launch.sync_schedules(database.conn, database.settings, {"c": ("conf", other_time)}, print)
    assert database.one("select next_tick is null from {s}.schedule")


async def test_what_a_client_sets_counts_more_than_a_declaration_until_it_is_deleted(
    database: Fresh, client: SyncClient
) -> None:
    declared = {"c": ("code", Schedule(kind="note", every_s=20))}
    said: list[str] = []
    launch.sync_schedules(database.conn, database.settings, declared, said.append)
    client.set_schedule("c", Note(9), every_s=30)
    launch.sync_schedules(database.conn, database.settings, declared, said.append)
    assert (info(client, "c").source, info(client, "c").every_s) == ("api", 30)
    assert len(said) == 1
    assert "wqcore schedules delete c" in said[0]
    client.delete_schedule("c")
    launch.sync_schedules(database.conn, database.settings, declared, said.append)
    assert (info(client, "c").source, info(client, "c").every_s) == ("code", 20)


# --- changes at run time


async def test_pause_resume_trigger_and_delete(database: Fresh, client: SyncClient, new_keeper: NewKeeper) -> None:
    client.set_schedule("a", Note(3), every_s=1)
    keeper = await new_keeper()
    await keeper.run()
    assert client.pause_schedule("a")
    assert not client.pause_schedule("a")
    since(database, "a", 30)
    await keeper.run()
    assert fired(database, "a") == []
    assert (info(client, "a").state, info(client, "a").next_ticks) == ("paused", [])
    id_ = client.trigger_schedule("a")
    assert database.sql("select id, kind, args, metadata from {s}.job") == [
        (id_, "note", {"n": 3}, {"schedule": "a", "triggered": True})
    ]
    assert info(client, "a").last_job == id_
    resumed_at = database.one("select now()")
    assert client.resume_schedule("a")
    assert not client.resume_schedule("a")
    await until(keeper.run, lambda: bool(fired(database, "a")))
    assert fired(database, "a")[0] > resumed_at
    client.delete_schedule("a")
    assert client.schedules() == []
    assert database.one("select count(*) from {s}.job") >= 2


@pytest.mark.parametrize("what", ["pause_schedule", "resume_schedule", "trigger_schedule", "delete_schedule"])
def test_a_schedule_that_does_not_exist_is_named(client: SyncClient, what: str) -> None:
    with pytest.raises(UnknownSchedule, match="'nope'"):
        getattr(client, what)("nope")


async def test_both_clients_set_and_list(database: Fresh, client: SyncClient) -> None:
    async with Client(database.settings, catalog=CATALOG) as other:
        await other.set_schedule(
            "nightly", {"n": 4}, kind="note", cron="30 2 * * *", timezone="Europe/Berlin", backfill_s=3600,
            queue="mail", priority=7, max_attempts=1, serial_key="s", job_key="k", job_key_mode="unsafe_dedupe",
            metadata={"team": "x"},
        )  # fmt: skip
        [found] = await other.schedules(next_ticks=5)
        first = await other.trigger_schedule("nightly")
        assert await other.trigger_schedule("nightly") == first  # unsafe_dedupe
        assert await other.pause_schedule("nightly")
        assert await other.resume_schedule("nightly")
    assert len(found.next_ticks) == 5
    assert found.next_ticks[0].astimezone(dt.UTC).hour in (0, 1)
    assert (found.kind, found.args, found.backfill_s, found.source) == ("note", {"n": 4}, 3600, "api")
    assert database.sql(
        "select queue, priority, max_attempts, serial_key, job_key, metadata ->> 'team' from {s}.job"
    ) == [("mail", 7, 1, "s", "k", "x")]
    assert isinstance(found, wqcore.ScheduleInfo)


def test_what_cannot_work_is_refused_and_nothing_is_written(database: Fresh, client: SyncClient) -> None:
    with pytest.raises(InvalidSchedule, match="Bad minute"):
        client.set_schedule("a", Note(), cron="61 * * * *")
    with pytest.raises(InvalidSchedule, match="either cron or every_s"):
        client.set_schedule("a", Note())
    with pytest.raises(InvalidSchedule, match="priority|1000"):
        client.set_schedule("a", Note(), every_s=5, priority=5000)
    with pytest.raises(InvalidSchedule, match="empty"):
        client.set_schedule("", Note(), every_s=5)
    with pytest.raises(InvalidSchedule, match="kind"):
        client.set_schedule("a", {}, every_s=5)
    with pytest.raises(InvalidArgs, match="n"):
        client.set_schedule("a", {"n": "x"}, kind="note", every_s=5)
    with pytest.raises(UnknownKind):
        client.set_schedule("a", {}, kind="nope", every_s=5)
    with pytest.raises(UnknownQueue, match="'nowhere'"):
        client.set_schedule("a", Note(), every_s=5, queue="nowhere")
    assert client.schedules() == []


def test_a_program_without_the_types_sets_schedules_too(database: Fresh, client: SyncClient) -> None:
    with SyncClient(database.settings, catalog=Catalog()) as stranger:
        with pytest.raises(InvalidArgs, match="lack must"):
            stranger.set_schedule("a", {}, kind="other", every_s=5)
        stranger.set_schedule("a", {"must": "x"}, kind="other", every_s=5)
        database.sql("""update {s}.schedule set args = '{{}}'""")
        with pytest.raises(InsertError, match="lack must"):
            stranger.trigger_schedule("a")


@pytest.mark.parametrize("schema", ["wqcore", *ODD_SCHEMAS], indirect=True)
async def test_every_change_wakes_the_keepers_and_a_tick_does_not(
    database: Fresh, client: SyncClient, new_keeper: NewKeeper
) -> None:
    client.set_schedule("a", Note(), every_s=20)
    since(database, "a", 21)
    database.conn.execute(f'listen "{wake.schedules_channel(database.schema)}"')
    keeper = await new_keeper()
    await keeper.run()
    assert fired(database, "a")
    assert list(database.conn.notifies(timeout=0.1)) == []
    for change in (
        lambda: client.set_schedule("a", Note(), every_s=40), lambda: client.pause_schedule("a"),
        lambda: client.resume_schedule("a"), lambda: client.delete_schedule("a"),
    ):  # fmt: skip
        change()
        assert [note.payload for note in database.conn.notifies(timeout=10, stop_after=1)] == ["schedules"]
