"""10,000 jobs whose dependency is down: each fails once, and their retries do not come back as one wave."""

from __future__ import annotations

import pytest

from tests.fix_master import World, ready, until

JOBS = 10_000
HANDLERS = """
import asyncio, os
import msgspec, wqcore

@wqcore.kind("calls", max_attempts=10)
class Calls(msgspec.Struct):
    pass

@wqcore.handler
async def calls(args: Calls, job: wqcore.Job) -> None:
    _, writer = await asyncio.open_unix_connection(os.environ["WQ_TEST_DEPENDENCY"])
    writer.close()
"""


def test_ten_thousand_jobs_against_a_dependency_that_is_down_retry_spread_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WQ_TEST_DEPENDENCY", str(world.folder / "down"))
    (world.folder / "storm.py").write_text(HANDLERS)
    world.start(world.configure(process={"handlers": ["world_handlers", "storm"]}))
    ready(world)
    # the outage has lasted for a while: their second attempt fails now, and the default policy waits 16 s ± 10 %
    world.conn.execute(
        "insert into wqcore.job (queue, slot, kind, args, attempt, max_attempts) "
        "select 'default', n %% 16, 'calls', '{}', 1, 10 from generate_series(1, %s) n",
        (JOBS,),
    )
    until(lambda: world.scalar("select count(*) from wqcore.job where attempt = 2") == JOBS, "each has failed once", 60)
    delays = [
        float(row[0])
        for row in world.conn.execute(
            "select extract(epoch from run_at - (errors -> -1 ->> 'at')::timestamptz) from wqcore.job"
        ).fetchall()
    ]
    assert min(delays) >= 14.3
    assert max(delays) <= 17.7
    buckets = [0] * 8
    for delay in delays:
        buckets[min(7, int((delay - 14.4) / 0.4))] += 1
    # even: 1,250 in each; a bucket of another size by chance is as likely as 10 standard deviations
    assert min(buckets) > 900, buckets
    assert max(buckets) < 1600, buckets
    # at no moment does more than a part come back at once: the busiest half second of the next wave
    busiest = world.scalar(
        "select max(n) from (select count(*) over (order by run_at range between current row and '0.5 s' following) as n "
        "from wqcore.job) w"
    )
    assert busiest < JOBS / 3, busiest
    # and nobody tried more than once meanwhile
    assert world.scalar("select count(*) from wqcore.job where jsonb_array_length(errors) <> 1") == 0
    assert "Traceback" not in world.log()
