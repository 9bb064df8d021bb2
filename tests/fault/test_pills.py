"""A job that kills its process is found out among a thousand good ones, which all finish."""

from __future__ import annotations

import pytest

from tests.fix_master import World, ready, until

PILLS = """
import asyncio, os, signal
import msgspec
import wqcore
from world_handlers import note

@wqcore.kind("deadly", max_attempts=10, timeout_s=60)
class Deadly(msgspec.Struct):
    number: int
    after_s: float

@wqcore.handler
async def deadly(args: Deadly, job: wqcore.Job) -> None:
    note("start", job)
    await asyncio.sleep(args.after_s)
    os.kill(os.getpid(), args.number)
"""


@pytest.mark.parametrize(("number", "after_s", "deaths_most"), [(11, 0.0, 1), (9, 0.1, 2)])
def test_a_pill_among_a_thousand_good_jobs_is_discarded_with_its_reason_and_they_finish(
    world: World, number: int, after_s: float, deaths_most: int
) -> None:
    (world.folder / "pill_handlers.py").write_text(PILLS)
    world.start(world.configure(process={"handlers": ["world_handlers", "pill_handlers"]}))
    ready(world)
    good = world.insert("nap", 500, {"s": 0.02})
    (pill,) = world.insert("deadly", 1, {"number": number, "after_s": after_s}, max_attempts=10)
    good += world.insert("nap", 500, {"s": 0.02})
    until(lambda: sum(world.outcomes().values()) == 1001, "all have their outcome", 60)
    assert world.outcomes() == {"completed": 1000, "discarded": 1}
    errors = world.scalar("select errors::text from wqcore.history where id = %s", pill)
    assert errors.count(f"signal {number}") == 3
    assert "poison" in errors
    rows = world.conn.execute("select attempt, deaths from wqcore.history where outcome = 'completed'").fetchall()
    # one that starts late takes those along that came in after its head start: a neighbour of its first death may be one
    assert max(deaths for _, deaths in rows) <= deaths_most
    assert all(attempt == deaths + 1 for attempt, deaths in rows)
    charged = sum(deaths > 0 for _, deaths in rows)
    print(f"a pill of {after_s * 1000:.0f} ms: {charged} of 1000 good jobs were charged a death")
    # 19 beside it, and those that had ended and were not acknowledged, at each of three deaths
    assert charged <= 150
    assert world.log().count("): worker died") == 3
    assert set(world.runs()) == {pill, *good}
