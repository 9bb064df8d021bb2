"""Masters of several hosts share a database: after each change slots are shared evenly again, and no promise is broken meanwhile.

Each master has a host name of its own, in a UTS namespace. Where the kernel refuses that the test is skipped.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.fix_master import World, ready, send, until

SLOTS = 16
TOTAL = 3
"""`max_workers_total`: jobs that run at a time over all masters."""


@pytest.fixture(scope="module")
def unshare() -> list[str]:
    """What gives a program a host name: its name comes next, then the program."""
    command = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
    try:
        subprocess.run([*command, "probe", "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"MASTERS OF SEVERAL HOSTS ARE NOT TESTED: unshare --uts is refused here: {error}")
    return command


def start(world: World, config: Path, unshare: list[str], host: str) -> subprocess.Popen[bytes]:
    log = (world.folder / f"log{len(world.masters)}").open("wb")
    command = [*unshare, host, sys.executable, "-m", "wqcore", "--config", str(config)]
    master = subprocess.Popen(command, env=world.environ(), stderr=log, stdout=log)
    world.masters.append(master)
    return master


def shared(world: World) -> list[int]:
    """How many slots each shard has; empty while a slot belongs to nobody."""
    rows = world.conn.execute("select shard, count(*) from wqcore.slot where queue = 'default' group by 1").fetchall()
    return [] if None in dict(rows) else sorted(count for _, count in rows)


def shared_evenly(world: World, masters: int, why: str) -> None:
    """Waits until so many masters have the slots, and none has more than its share, which is rounded up."""
    fair = -(-SLOTS // masters)
    until(lambda: len(shared(world)) == masters and max(shared(world)) <= fair, f"{why}: {masters} share evenly", 30)


def overlapping(spans: list[tuple[float, float]]) -> int:
    """The most of these that were at one time."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(change for _, change in edges), default=0)


def test_hosts_come_and_go_and_the_rest_share_the_slots_while_keys_limits_and_ticks_hold(
    world: World, unshare: list[str]
) -> None:
    seed = int(os.environ.get("WQ_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"WQ_SEED={seed}")
    chance = random.Random(seed)
    config = world.configure(
        process={"dead_after_s": 2.0, "beat_interval_s": 0.4, "drain_timeout_s": 5.0},
        queues__default={"slots": SLOTS, "workers": 8, "max_workers_total": TOTAL, "poll_interval_s": 0.3},
        schedules__tick={"kind": "nap", "every_s": 1.0},
    )
    masters = {"ash": start(world, config, unshare, "ash")}
    ready(world, 1)
    for _ in range(120):  # enough for the whole time; the keys are few, so that each is always wanted
        world.insert("keyed", args={"group": chance.randrange(5), "s": 0.1}, serial_key=f"key-{chance.randrange(5)}")
    keys = dict(world.conn.execute("select id, serial_key from wqcore.job where kind = 'keyed'").fetchall())

    masters["elm"] = start(world, config, unshare, "elm")
    shared_evenly(world, 2, "elm came")
    masters["oak"] = start(world, config, unshare, "oak")
    shared_evenly(world, 3, "oak came")
    hosts = world.conn.execute("select host from wqcore.process order by 1").fetchall()
    assert hosts == [("ash",), ("elm",), ("oak",)]
    send(masters["elm"], signal.SIGTERM)
    shared_evenly(world, 2, "elm left")
    assert masters["elm"].wait(20) == 0
    masters["oak"].kill()
    shared_evenly(world, 1, "oak was killed")

    until(lambda: not world.scalar("select count(*) from wqcore.job where kind = 'keyed'"), "all have ended", 60)
    assert set(world.outcomes()) == {"completed"}
    began = {(id_, attempt): at for what, id_, attempt, _, at in world.notes() if what == "start"}
    ended = {(id_, attempt): at for what, id_, attempt, _, at in world.notes() if what == "end"}
    assert {id_ for id_, _ in ended} >= set(keys), "every job ended well once at least"
    killed = [run for run in began if run not in ended]  # those died with oak, long before others had their keys
    assert len(killed) <= TOTAL
    spans = {run: (began[run], ended[run]) for run in ended}
    for key in set(keys.values()):
        of_key = [span for (id_, _), span in spans.items() if keys.get(id_) == key]
        assert overlapping(of_key) <= 1, (seed, key)
    assert overlapping(list(spans.values())) <= TOTAL, seed
    ticks = [
        dt.datetime.fromisoformat(tick)
        for (tick,) in world.conn.execute(
            "select metadata ->> 'tick' from wqcore.jobs where metadata ->> 'schedule' = 'tick' order by id"
        )
    ]
    gaps = {(later - earlier).total_seconds() for earlier, later in itertools.pairwise(ticks)}
    assert gaps == {1.0}, (seed, ticks)


TWO = """
import msgspec
import wqcore
from world_handlers import Nap

@wqcore.kind("hop", queue="mail")
class Hop(msgspec.Struct):
    pass

@wqcore.handler
async def hop(args: Hop) -> None:
    there = await (await wqcore.current_client()).insert(Nap())
    assert there.database == "default", there.database

wqcore.recurring("hops", Hop(), every_s=1.0)
wqcore.recurring("naps", Nap(), every_s=1.0)
"""


def test_a_master_of_a_group_works_in_its_database_and_its_handlers_insert_into_the_others(world: World) -> None:
    (world.folder / "two_handlers.py").write_text(TWO)
    name = str(psycopg.conninfo.conninfo_to_dict(world.dsn)["dbname"])
    bulk = psycopg.conninfo.make_conninfo(world.dsn, dbname=f"{name}_bulk")
    world.conn.execute(f"create database {name}_bulk")  # type: ignore[arg-type]
    try:
        config = world.configure(
            database={"migrate": "explicit"},
            process={"handlers": ["world_handlers", "two_handlers"]},
            databases__bulk={"dsn": bulk},
            queues__mail={"database": "bulk"},
        )
        migrated = world.cli(config, "migrate")
        assert migrated.returncode == 0, migrated.stderr
        assert "database bulk:" in migrated.stderr
        refused = world.cli(config, "run")
        assert refused.returncode == 2
        assert "bulk has mail; default has default; choose one by --group" in refused.stderr.replace("\n", " ")
        for group in ("default", "mail"):
            log = (world.folder / f"log{len(world.masters)}").open("wb")
            command = [sys.executable, "-m", "wqcore", "--config", str(config), "--group", group]
            world.masters.append(subprocess.Popen(command, env=world.environ(), stderr=log, stdout=log))
        hopped = world.cli(config, "insert", "hop", "{}")
        assert hopped.returncode == 0, hopped.stderr
        with psycopg.connect(bulk, autocommit=True) as conn:
            ended = "select kind, outcome, metadata ->> 'schedule' from wqcore.history group by 1, 2, 3 order by 1, 3"
            rows = [("hop", "completed", "hops"), ("hop", "completed", None)]
            until(lambda: conn.execute(ended).fetchall() == rows, "both hops, and nothing else, ended in their database")
            assert conn.execute("select name from wqcore.schedule").fetchall() == [("hops",)]
        rows = [("nap", "completed", "naps"), ("nap", "completed", None)]
        until(lambda: world.conn.execute(ended).fetchall() == rows, "naps of the schedule and of the hops ended in theirs")
        assert world.scalar("select string_agg(name, ',') from wqcore.schedule") == "naps"
        shown = world.cli(config, "--database", "bulk", "status", "--json")
        assert [queue["queue"] for queue in json.loads(shown.stdout)["queues"]] == ["mail"], shown.stderr
    finally:
        for master in world.masters:
            send(master, signal.SIGTERM)
        assert [master.wait(20) for master in world.masters] == [0, 0]
        world.conn.execute(f"drop database {name}_bulk with (force)")  # type: ignore[arg-type]
