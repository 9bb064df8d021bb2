"""Through a real PgBouncer in transaction mode everything works, and nothing is left in a session of the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from tests.fix_master import World, ready, send, until
from tests.fix_pg import Server
from tests.fix_pooler import Bouncer
from wqcore import Client, JobFilter, SyncClient, launch
from wqcore.db import migrate
from wqcore.db.connect import connect, connect_for_turns, connect_sync
from wqcore.errors import ConfigError
from wqcore.settings import Database, Settings

LEFT = """
select (select count(*) from pg_prepared_statements), (select count(*) from pg_listening_channels()),
       (select count(*) from pg_locks where locktype = 'advisory'),
       (select count(*) from pg_class where relpersistence = 't'),
       (select string_agg(name, ', ') from pg_settings where source = 'session'
           and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings'))
"""
"""What a session of the server has kept: statements, channels, locks, temporary tables, settings. PgBouncer itself sets the
five that are left out."""


def left_behind(dsn: str, sessions: int) -> list[tuple[object, ...]]:
    """Looks into each of so many sessions at the same time."""
    conns = [psycopg.connect(dsn, prepare_threshold=None) for _ in range(sessions)]
    try:
        found = {}
        for conn in conns:  # each is in a transaction, so each has a session to itself
            pid = conn.execute("select pg_backend_pid()").fetchone()
            found[pid] = conn.execute(LEFT).fetchone() or ()
        assert len(found) == sessions
        return list(found.values())
    finally:
        for conn in conns:
            conn.close()


@pytest.fixture
def pooled_world(world: World, start_bouncer: Callable[..., Bouncer]) -> tuple[World, Path, Bouncer]:
    """A world whose masters and clients go through PgBouncer, over three sessions; its own looks go straight."""
    bouncer = start_bouncer(world.dsn, pool=3)
    name = str(conninfo_to_dict(world.dsn)["dbname"])
    config = world.configure(
        database={"dsn": bouncer.dsn(name), "pooler": "transaction"},
        queues__default={"processes": 2, "poll_interval_s": 0.1},
    )
    return world, config, bouncer


def test_masters_workers_clients_and_commands_work_and_leave_nothing_in_a_session(
    pooled_world: tuple[World, Path, Bouncer],
) -> None:
    world, config, bouncer = pooled_world
    dsn = bouncer.dsn(str(conninfo_to_dict(world.dsn)["dbname"]))
    migrated = world.cli(config, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    world.start(config)
    world.start(config)
    ready(world, 4)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config)], env=world.environ(), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert world.scalar("select count(*) from wqcore.job") == 0, "all of them have ended"
    assert world.outcomes() == {"completed": 1007, "cancelled": 1}
    shown = world.cli(config, "status", "--json")
    assert shown.returncode == 0, shown.stderr
    # a worker that is killed is rescued through the pooler too, and a drain gives everything back
    [job] = world.insert("nap", args={"s": 1.0})
    until(lambda: [note for note in world.notes() if note[0] == "start" and note[1] == job], "the job runs")
    victim = next(pid for what, id_, _, pid, _ in world.notes() if id_ == job and what == "start")
    subprocess.run(["kill", "-9", str(victim)], check=True)
    until(lambda: world.runs().get(job) == 2, "it runs again")
    for master in world.masters:
        send(master, 15)
    assert [master.wait(20) for master in world.masters] == [0, 0]
    assert world.scalar("select count(*) from wqcore.shard") == 0
    assert set(left_behind(dsn, 3)) == {(0, 0, 0, 0, None)}


PROGRAM = """
import asyncio, datetime, sys
import psycopg, wqcore
from world_handlers import Keyed, Nap

async def main():
    settings = wqcore.load(sys.argv[1])
    async with wqcore.Client(settings) as client:
        since = await client.position()
        first = await client.insert(Nap())
        for _ in range(2):
            await client.insert(Keyed(1))
        await client.insert(Nap(), job_key="k")
        many = [Nap() for _ in range(1000)] + [(Nap(), wqcore.InsertOptions(job_key=f"m{n}")) for n in range(2)]
        assert await client.insert_many(many) == 1002
        async with await psycopg.AsyncConnection.connect(settings.database.dsn, prepare_threshold=None) as conn:
            await client.insert_tx(conn, Nap())
        assert (await client.wait(first, timeout_s=20)).state == "completed"
        seen = 0
        async for event in client.outcomes(since=since):
            seen += 1
            if seen == 1007:
                break
        late = await client.insert(Nap(), run_at=datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC))
        assert (await client.cancel(late)).changed == 1
        assert await client.pause("default") == await client.resume("default") == 1
        await client.set_schedule("s", Nap(), cron="0 3 1 1 *")
        await client.delete_schedule("s")

asyncio.run(main())
"""


async def test_each_transaction_has_our_settings_and_none_is_left(bounced: Settings) -> None:
    database, dsn = bounced.database, str(bounced.database.dsn)
    launch.prepare(bounced, dsn, lambda text: None)
    shown = "select current_setting('statement_timeout'), current_setting('jit'), current_setting('plan_cache_mode')"
    turns = await connect_for_turns(dsn, database, name="x")
    plain = await connect(dsn, database, name="x")
    for _ in range(8):
        assert await (await turns.execute(shown)).fetchone() == ("20s", "off", "force_generic_plan")
        assert await (await plain.execute(shown, prepare=True)).fetchone() == ("20s", "off", "auto")
    async with plain.transaction():
        assert await (await plain.execute(shown)).fetchone() == ("20s", "off", "auto")
        async with plain.transaction():
            assert await (await plain.execute("select %s::int", [7])).fetchone() == (7,)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await plain.execute("select * from nowhere where x = %s", [1])
    assert await (await plain.execute("select 1")).fetchone() == (1,), "an error leaves the connection usable"
    await turns.close()
    await plain.close()
    short = msgspec.structs.replace(database, statement_timeout_s=0.2)
    with connect_sync(dsn, short, name="x") as conn, pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("select pg_sleep(20)")
    assert set(left_behind(dsn, 4)) == {(0, 0, 0, 0, None)}


async def test_both_clients_insert_control_and_wait_through_it(bounced: Settings) -> None:
    dsn = str(bounced.database.dsn)
    launch.prepare(bounced, dsn, lambda text: None)
    with SyncClient(bounced) as client:
        assert client.count(JobFilter(queues=["mail"])) == 0
        assert client.pause("mail") == 1
    async with Client(bounced) as aclient:
        assert await aclient.resume("mail") == 1
        assert await asyncio.gather(*(aclient.count() for _ in range(20))) == [0] * 20
    assert set(left_behind(dsn, 4)) == {(0, 0, 0, 0, None)}


async def test_a_program_s_own_pools_have_their_settings_through_it_and_leave_none(bounced: Settings) -> None:
    """`handlers/` could not run behind one: its own pool asked for settings that a pooler refuses."""
    dsn = str(bounced.database.dsn)
    launch.prepare(bounced, dsn, lambda text: None)
    shown = "select current_setting('statement_timeout'), current_setting('search_path'), %s::int"
    own: dict[str, Any] = {"statement_timeout_s": 7.5, "settings": {"search_path": "shop"}}
    async with Client(bounced) as aclient, aclient.pool(**own, autocommit=True, prepare_threshold=0) as apool:
        for number in range(6):
            async with apool.connection() as conn:
                assert await (await conn.execute(shown, [number])).fetchone() == ("7500ms", "shop", number)
                async with conn.transaction():
                    assert await (await conn.execute(shown, [number])).fetchone() == ("7500ms", "shop", number)
    with SyncClient(bounced) as client, client.pool(**own) as pool:
        for number in range(6):
            with pool.connection() as conn:
                assert conn.execute(shown, [number]).fetchone() == ("7500ms", "shop", number)
                assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert set(left_behind(dsn, 4)) == {(0, 0, 0, 0, None)}


def test_two_migrators_at_once_get_on_through_it(bounced: Settings) -> None:
    dsn = str(bounced.database.dsn)
    conns = [connect_sync(dsn, bounced.database, name="x") for _ in range(2)]

    async def both() -> list[list[migrate.Step]]:
        line = migrate.queue_line("wqcore")
        return await asyncio.gather(*(asyncio.to_thread(migrate.migrate, conn, line) for conn in conns))

    applied = [step.version for steps in asyncio.run(both()) for step in steps]
    assert sorted(applied) == [step.version for step in migrate.queue_line("wqcore").steps()]
    for conn in conns:
        conn.close()
    assert set(left_behind(dsn, 4)) == {(0, 0, 0, 0, None)}


@pytest.mark.parametrize(
    ("mode", "more", "pooler", "told"),
    [
        ("transaction", "", "none", 'refuses settings of a session: write database.pooler = "transaction"'),
        ("transaction", "ignore_startup_parameters = options", "none", 'has not got the settings.*"transaction"'),
        ("statement", "", "transaction", "statement mode.*pool_mode = transaction"),
    ],
)
async def test_a_pooler_that_cannot_work_is_refused_and_the_error_says_what_to_write(
    start_bouncer: Callable[..., Bouncer], pg: Server, empty_dsn: str, mode: str, more: str, pooler: str, told: str
) -> None:
    name = str(conninfo_to_dict(empty_dsn)["dbname"])
    launch.prepare(Settings(database=Database(dsn=empty_dsn, migrate="auto")), empty_dsn, lambda text: None)
    dsn = start_bouncer(empty_dsn, mode=mode, more=more).dsn(name)
    settings = Settings(database=Database(dsn=dsn, pooler=pooler, migrate="auto"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=told):
        launch.prepare(settings, dsn, lambda text: None)
    with pytest.raises(ConfigError, match=told), SyncClient(settings):
        pass
    with pytest.raises(ConfigError, match=told):
        async with Client(settings):
            pass
