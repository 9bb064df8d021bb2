"""Texts that PostgreSQL cannot store, in errors and in words of progress, cost their own job at most a character."""

from __future__ import annotations

import pytest

from tests.fix_master import World, ready, until

HANDLERS = """
import asyncio, os
import msgspec, wqcore
from world_handlers import note

@wqcore.kind("dirty", max_attempts=2, backoff=lambda attempt: 3600)
class Dirty(msgspec.Struct):
    n: int

@wqcore.handler
async def dirty(args: Dirty, job: wqcore.Job) -> None:
    note("start", job)
    raise ValueError("a\\x00b\\ud800c" + "x" * 1_000_000 if args.n == 7 else "plain")

@wqcore.kind("speaks")
class Speaks(msgspec.Struct):
    pass

@wqcore.handler
async def speaks(args: Speaks, job: wqcore.Job) -> None:
    job.progress(0.5, "a\\x00b\\ud800c" + "x" * 1_000_000)
    while not os.path.exists(os.environ["WQ_TEST_HEARD"]):
        await asyncio.sleep(0.02)
    job.output({"text": "a\\x00b"})
"""


def configured(world: World) -> None:
    (world.folder / "texts.py").write_text(HANDLERS)
    world.start(world.configure(process={"handlers": ["world_handlers", "texts"]}))
    ready(world)


def test_of_500_failures_499_land_as_they_are_and_the_offenders_text_is_cleaned(world: World) -> None:
    configured(world)
    world.conn.execute(
        "insert into wqcore.job (queue, slot, kind, args, max_attempts) "
        "select 'default', n %% 16, 'dirty', json_build_object('n', n), 2 from generate_series(1, 500) n",
        (),
    )
    until(lambda: world.scalar("select count(*) from wqcore.job where attempt = 1") == 500, "all 500 wait for their retry")
    texts = dict(world.conn.execute("select errors -> 0 ->> 'error', count(*) from wqcore.job group by 1").fetchall())
    assert texts.pop("plain") == 499
    [(offender, count)] = texts.items()
    assert (count, offender[:6]) == (1, "a\ufffdb\ufffdcx")
    assert offender.endswith("x… (1000005 characters)")
    assert len(offender) < 10_000
    assert set(world.runs().values()) == {1}
    assert "the database failed us" not in world.log()


def test_words_of_progress_that_postgresql_refuses_do_not_cost_the_shard_its_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ended the connection at each write, and the outcomes of every other job of the worker had to wait."""
    monkeypatch.setenv("WQ_TEST_HEARD", str(world.folder / "heard"))
    configured(world)
    (job,) = world.insert("speaks", 1)
    world.insert("nap", 50)
    said = until(lambda: world.scalar("select note from wqcore.progress where job = %s", job), "the words are written")
    assert said[:6] == "a\ufffdb\ufffdcx"
    assert len(said) < 10_000
    (world.folder / "heard").touch()
    until(lambda: world.outcomes() == {"completed": 51}, "all complete")
    # json keeps what it was given; only jsonb and text cannot hold a NUL
    assert world.scalar("select output::text from wqcore.history where id = %s", job) == '{"text":"a\\u0000b"}'
    assert "the database failed us" not in world.log()
    assert "Traceback" not in world.log()
