"""pgqueuer: asyncpg, its default durability of jobs, batches of 500, woken by LISTEN as it is by default.

Its guide to performance says: batches larger than the default 10 for short jobs, `pgq autovac` after the installation, one
connection for the worker, durability `balanced`. What that is worth here (2 processes, 50,000 jobs, medians of 5 rounds
that took turns, on 2 cores shared with others):

- batches of 500 drain 1.02 times what those of 1,000 and 1.1 times what those of 100 do; the bulk insert does not care.
- `max_concurrent_tasks` is at least two batches. 2,000, four of them, drain what no limit does, and 1.04 times what 1,000 do.
- one connection a worker drains 1.08 times what a pool does, and is as quick to wake.
- `balanced` drains 1.1 times and inserts 1.1 times what `durable` does. The guide warns that a crash of PostgreSQL loses jobs
  under it, but the table of the jobs stays logged: what a crash loses are the log of finished jobs and the statistics.

Serial keys are left out: its `concurrency_limit` is one for each entrypoint, not for each key of a job.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

# In its own folder this file would hide the library of the same name: the repository takes that folder's place.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

import asyncpg  # type: ignore[import-not-found, import-untyped, unused-ignore]
from pgqueuer import PgQueuer  # type: ignore[import-not-found, unused-ignore]
from pgqueuer.adapters.persistence.qb import (  # type: ignore[import-not-found, unused-ignore]
    DBSettings,
    Durability,
    QueryBuilderEnvironment,
)
from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found, unused-ignore]
from pgqueuer.queries import Queries  # type: ignore[import-not-found, unused-ignore]

from bench.peers import probe, program

ENTRYPOINT = "bench"
CONCURRENCY = 2000
BATCH = 500
BULK = 1000


async def setup(dsn: str) -> None:
    """What `pgq install --durability balanced` and `pgq autovac` do."""
    conn = await asyncpg.connect(dsn)
    installer = Queries(AsyncpgDriver(conn), QueryBuilderEnvironment(DBSettings(durability=Durability.balanced)))
    await installer.install()
    await installer.optimize_autovacuum()
    await conn.close()


class Producer:
    """Enqueues one job, or lists of them."""

    def __init__(self, queries: Any) -> None:
        self._queries = queries

    async def insert(self, number: int) -> None:
        """One job."""
        await self._queries.enqueue(ENTRYPOINT, _payload(number))

    async def insert_many(self, first: int, count: int, options: program.Options) -> None:
        """Lists of `BULK` jobs, each one statement."""
        priorities = options.get("priorities", 1)
        delay = timedelta(seconds=options["delay_s"]) if "delay_s" in options else None
        for numbers in program.chunks(first, count, BULK):
            await self._queries.enqueue(
                [ENTRYPOINT] * len(numbers),
                [_payload(number) for number in numbers],
                [number % priorities for number in numbers],
                [delay] * len(numbers),
            )


@asynccontextmanager
async def producer(dsn: str) -> AsyncIterator[Producer]:
    """A producer with a connection of its own."""
    conn = await asyncpg.connect(dsn)
    try:
        yield Producer(Queries(AsyncpgDriver(conn)))
    finally:
        await conn.close()


async def handle(job: Any) -> None:
    """The job."""
    probe.count(json.loads(job.payload)["id"])
    if program.WAIT_S:
        await asyncio.sleep(program.WAIT_S)


async def work(dsn: str, concurrency: int) -> None:
    """Works until SIGTERM; pgqueuer refuses a concurrency of less than two batches, the smallest of which has one job."""
    conn = await asyncpg.connect(dsn)
    queue = PgQueuer(AsyncpgDriver(conn))
    queue.entrypoint(ENTRYPOINT)(handle)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
    await queue.run(batch_size=min(BATCH, max(1, concurrency // 2)), max_concurrent_tasks=concurrency)
    await conn.close()


def _payload(number: int) -> bytes:
    return json.dumps({"id": probe.job_id(number)}).encode()


DESCRIPTION = program.Description(
    title="pgqueuer",
    version=version("pgqueuer"),
    runtime=program.RUNTIME,
    settings=f"2 processes, asyncpg {version('asyncpg')}, uvloop, batch_size {BATCH}, max_concurrent_tasks {CONCURRENCY}, "
    "pgq autovac, durability balanced (jobs logged; the log of finished jobs, three rows a job, unlogged)",
    table="pgqueuer",
    unfinished="select count(*) from pgqueuer where status in ('queued', 'picked')",
    any_unfinished="select exists (select from pgqueuer where status = 'queued') "
    "or exists (select from pgqueuer where status = 'picked')",
    keeps_finished=True,
    forks=False,
    processes=2,
    concurrency=CONCURRENCY,
    jobs_scale=1.0,
    feed_options=["priorities", "delay_s"],
)

if __name__ == "__main__":
    program.main(DESCRIPTION, setup=setup, producer=producer, work=work)
