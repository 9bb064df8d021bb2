"""In a rolling deploy, workers of the old release meet jobs of kinds that only the new one knows: they leave them alone."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.fix_master import World, ready, until

NEXT = """
import msgspec, wqcore
from world_handlers import note

@wqcore.kind("ofTheNextRelease", max_attempts=1)
class OfTheNextRelease(msgspec.Struct):
    pass

@wqcore.handler
async def run(args: OfTheNextRelease, job: wqcore.Job) -> None:
    note("start", job)
"""


def test_a_job_of_the_next_release_waits_for_it_and_loses_no_attempt(world: World) -> None:
    (world.folder / "next_release.py").write_text(NEXT)
    old = world.start(world.configure())
    ready(world)
    jobs = world.insert("ofTheNextRelease", 20, max_attempts=1)
    # inserted by the new release of the producers days ago, for now
    world.conn.execute("update wqcore.job set created_at = now() - interval '3 days', run_at = now() where id = %s", (jobs[0],))
    good = world.insert("nap", 20)
    given_back = "select count(*) from wqcore.job where run_at > now() and attempt = 0 and errors is null"
    until(lambda: world.scalar(given_back) == len(jobs), "all are given back")
    until(lambda: world.outcomes() == {"completed": len(good)}, "the good ones are not held up")
    delays = [row[0] for row in world.conn.execute("select run_at - now() from wqcore.job").fetchall()]
    assert max(delays).total_seconds() < 20  # soon, because the new release may be there soon
    assert len(set(delays)) > 10  # but not all at once
    new = Path(world.configure(process={"handlers": ["world_handlers", "next_release"]}))
    world.start(new)
    old.send_signal(signal.SIGTERM)
    assert old.wait(30) == 0
    world.conn.execute("update wqcore.job set run_at = now()")
    until(lambda: world.outcomes() == {"completed": len(good) + len(jobs)}, "the new release runs them")
    assert world.scalar("select max(attempt) from wqcore.history") == 1
    assert set(world.runs().values()) == {1}


def test_a_kind_that_nobody_comes_to_know_is_discarded_with_the_reason_when_its_grace_is_over(world: World) -> None:
    world.start(world.configure(process={"unknown_kind_grace_s": 0.0}))
    ready(world)
    world.insert("misspelt", 3)
    until(lambda: world.outcomes() == {"discarded": 3}, "they are discarded")
    reason = world.scalar("select distinct errors -> 0 ->> 'error' from wqcore.history")
    assert reason == "no handler for kind 'misspelt' in this program, which has met the kind for 0 s"
