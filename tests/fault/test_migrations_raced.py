"""Two that migrate at once, and one that dies in the middle: each step is applied once and whole, and the next run finishes.

What one migrator does, and that a newer schema is refused with both versions named, is in tests/db/test_migration.py.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.db.test_migration import shape
from tests.fix_master import World, ready, until
from tests.fix_proxy import Proxy
from wqcore import launch
from wqcore.db import migrate
from wqcore.db.migrate import queue_line
from wqcore.errors import DatabaseUnavailable
from wqcore.settings import Database, Queue, Settings

LINE = queue_line("wqcore")
STEPS = [step.version for step in LINE.steps()]
LOCK = "hashtextextended('wqcore migration of wqcore', 0)"
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'wqcore%%' "
    "and wait_event_type = 'Lock'"
)


def applied(conn: psycopg.Connection[Any]) -> list[int]:
    return [version for (version,) in conn.execute("select version from wqcore.migration order by applied_at, version")]


@pytest.fixture
def fresh(world: World) -> Callable[[], None]:
    """Asserts that the schema is what one undisturbed migration makes of an empty database."""

    def check() -> None:
        found = shape_without_days(world)
        world.conn.execute("drop schema wqcore cascade")
        migrate.migrate(world.conn, LINE)
        assert found == shape_without_days(world)

    return check


def shape_without_days(world: World) -> list[tuple[Any, ...]]:
    """The schema but for the partitions of history, which are not made by a migration."""
    return [row for row in shape(world.conn, "wqcore") if not re.search(r"history_\d{8}", " ".join(map(str, row)))]


def test_two_masters_that_migrate_an_empty_database_at_once_both_work(world: World) -> None:
    config = world.configure()
    world.conn.execute(f"select pg_advisory_lock({LOCK})")
    world.start(config)
    world.start(config)
    until(lambda: world.scalar(WAITING) == 2, "both want to migrate")
    world.conn.execute(f"select pg_advisory_unlock({LOCK})")
    ready(world, shards=2)
    assert applied(world.conn) == STEPS
    world.insert("nap", 20)
    until(lambda: world.outcomes() == {"completed": 20}, "they work")
    assert [master.poll() for master in world.masters] == [None, None]
    assert "Traceback" not in world.log(0) + world.log(1)


def test_a_migration_that_is_killed_in_the_middle_of_a_step_leaves_whole_steps_and_the_next_run_finishes(
    world: World, fresh: Callable[[], None]
) -> None:
    config = world.configure()
    migrate._apply(world.conn, LINE, LINE.steps()[0])
    with psycopg.connect(world.dsn) as reader:
        reader.execute("select count(*) from wqcore.job")  # the second step alters this table, after it has made others
        killed = start_migrating(world, config)
        until(lambda: world.scalar(WAITING), "it is in the middle of the second step")
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert applied(world.conn) == STEPS[:1]
    again = world.cli(config, "migrate")
    assert again.returncode == 0, again.stderr
    assert applied(world.conn) == STEPS
    fresh()


def start_migrating(world: World, config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "wqcore", "--config", str(config), "migrate"]
    return subprocess.Popen(
        command, env=world.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_a_migrator_whose_connection_is_ended_in_each_step_in_turn_gets_to_the_end(
    world: World, new_proxy: Callable[[str], Proxy], fresh: Callable[[], None]
) -> None:
    road = new_proxy(world.dsn)
    settings = Settings(database=Database(dsn=road.dsn, migrate="auto"), queues={"default": Queue()})
    ended: list[int] = []

    def end_it() -> None:
        """Before a step is recorded, the first time."""
        done = len(applied(world.conn)) if world.scalar("select to_regclass('wqcore.migration')") else 0
        if done not in ended:
            ended.append(done)
            world.conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and application_name = 'wqcore launch'"
            )

    road.watch('insert into "wqcore".migration', end_it)
    for step in range(len(STEPS)):
        with pytest.raises(DatabaseUnavailable):
            launch.prepare(settings, road.dsn, lambda text: None)
        assert ended == list(range(step + 1))
        if step:
            assert applied(world.conn) == STEPS[:step]
    launch.prepare(settings, road.dsn, lambda text: None)
    assert applied(world.conn) == STEPS
    fresh()
