"""PostgreSQL restarts, goes away, or ends our connections while jobs run: nothing is lost and nothing is stranded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fix_master import World, ready, until
from wqcore.db import embedded


@pytest.fixture
def own_server() -> Iterator[embedded.Embedded]:
    """A server that the test may restart."""
    folder = Path(tempfile.mkdtemp(prefix="wq-fault-"))
    found = embedded.start(folder / "pg", version=18)
    yield found
    # the library knows only the postmaster that it started, not the one after a restart
    pg_ctl(found, "stop", "immediate")
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


def restart(server: embedded.Embedded, mode: str) -> None:
    pg_ctl(server, "restart", mode, "-l", str(server.pgdata / "log"), "-o", f'-h "" -k {server.pgdata}')


def pg_ctl(server: embedded.Embedded, action: str, mode: str, *options: str) -> None:
    """Runs pg_ctl as the user that owns the server."""
    owner = server.pgdata.stat().st_uid
    subprocess.run(
        [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", mode, "-w", *options, action],
        check=True,
        capture_output=True,
        user=owner if os.geteuid() == 0 else None,
        cwd="/",
    )


def test_a_polite_restart_of_postgresql_under_load_loses_nothing(own_server: embedded.Embedded, tmp_path: Path) -> None:
    """Impolite ones: test_net_server.py."""
    world = World(tmp_path, own_server.dsn)
    try:
        master = world.start(world.configure())
        ready(world)
        jobs = world.insert("nap", 3000, {"s": 0.02})
        for _ in range(2):
            until(lambda: len(world.notes()) > 100, "jobs run")
            restart(own_server, "fast")
            world.conn.close()
            world.conn = psycopg.connect(own_server.dsn, autocommit=True)
            inserted = world.insert("nap", 100)
            jobs += inserted
        until(lambda: world.outcomes().get("completed") == len(jobs), "all jobs are completed", 60)
        assert world.scalar("select count(*) from wqcore.job") == 0
        assert world.scalar("select count(*) - count(distinct id) from wqcore.history") == 0
        assert world.scalar("select max(attempt) from wqcore.history") == 1
        assert master.poll() is None
        assert "Traceback" not in world.log()
    finally:
        world.stop()


def test_garbage_that_comes_by_sql_gets_an_outcome_and_blocks_nothing(world: World) -> None:
    world.start(world.configure())
    ready(world)
    (bad_type,) = world.insert("nap", 1, {"s": "not a number"})
    (not_object,) = world.insert("nap", 1, [1, 2, 3])  # type: ignore[arg-type]
    deep = world.scalar(
        "insert into wqcore.job (queue, slot, kind, args) values ('default', 0, 'nap', "
        "(repeat('[', 3000) || repeat(']', 3000))::json) returning id"
    )
    good = world.insert("nap", 50)
    until(lambda: world.outcomes().get("completed") == len(good), "the good jobs finish")
    until(lambda: world.outcomes().get("discarded") == 3, "each offender has its outcome")
    for job in (bad_type, not_object, deep):
        assert "args do not fit Nap" in world.scalar("select errors::text from wqcore.history where id = %s", job)


def test_an_unknown_kind_is_given_back_without_costing_an_attempt(world: World) -> None:
    world.start(world.configure())
    ready(world)
    (job,) = world.insert("ofTheNextRelease", 1)
    until(lambda: world.scalar("select run_at > now() from wqcore.job where id = %s", job), "it is given back")
    assert world.scalar("select attempt from wqcore.job where id = %s", job) == 0


def test_an_error_text_with_nul_and_surrogates_lands_cleaned_with_its_batch(world: World) -> None:
    (world.folder / "world_handlers.py").write_text(
        "import msgspec, wqcore\n"
        "@wqcore.kind('dirty', max_attempts=1)\nclass Dirty(msgspec.Struct):\n    n: int\n"
        "@wqcore.handler\nasync def dirty(args: Dirty) -> None:\n"
        "    raise ValueError('a\\x00b\\ud800c' + 'x' * 1_000_000 if args.n == 7 else 'plain')\n"
    )
    world.start(world.configure())
    ready(world)
    world.conn.execute(
        "insert into wqcore.job (queue, slot, kind, args, max_attempts) "
        "select 'default', n %% 16, 'dirty', json_build_object('n', n), 1 from generate_series(1, 500) n",
        (),
    )
    until(lambda: world.outcomes().get("discarded") == 500, "all 500 have their outcome")
    size = world.scalar("select max(length(errors::text)) from wqcore.history")
    assert 1000 < size < 20_000
