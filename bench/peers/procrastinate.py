"""procrastinate: psycopg with a pool of its caller's, concurrency 30 as in its guide, finished jobs deleted.

What was chosen, and what it is worth here (2 processes, 3,000 jobs, medians of 3 rounds that took turns, on 2 cores shared
with others; a round spreads by a tenth):

- connections in autocommit, by the pool's `configure`, drain 1.36 times and insert single jobs 1.4 times (medians of 5) what
  psycopg's default does, which wraps each of its statements in BEGIN and COMMIT: 2 statements a job instead of 6. All that it
  does is one statement each. (`kwargs={"autocommit": …}` stops its listener, which passes that argument itself.)
- a pool that the program opens drains 1.1 times what the connector's own does: that one asks the server whether a
  connection lives before each statement.
- a worker fetches one job a statement, the next only when the last has come. Concurrency 4 to 30 drain the same, 1 drains
  0.8 times as much, 100 drain 0.9 times as much, and four processes no more than two.
- `delete_jobs` drains what keeping the jobs does, 1.1 times at the median, and its table does not grow.
- 500, 1,000 or 5,000 jobs a bulk insert are the same.

Its lock is a serial key: one job of a lock runs at a time, in the order of insertion.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# In its own folder this file would hide the library of the same name: the repository takes that folder's place.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found, unused-ignore]
from psycopg_pool import AsyncConnectionPool

from bench.peers import probe, program

CONCURRENCY = 30
POOL = 4
BULK = 1000

# It warns that tasks of a main module get other names in other programs; this task is named by hand.
logging.getLogger("procrastinate.blueprints").setLevel(logging.ERROR)


async def handle(id: str) -> None:
    """The job."""
    probe.count(id)
    if program.WAIT_S:
        await asyncio.sleep(program.WAIT_S)


async def _autocommit(conn: Any) -> None:
    await conn.set_autocommit(True)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[Any, Any]]:
    """The application and its task, connected."""
    app = App(connector=PsycopgConnector())
    task = app.task(name="bench")(handle)
    async with AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, configure=_autocommit, open=False) as pool:
        await pool.wait()
        async with app.open_async(pool):
            yield app, task


async def setup(dsn: str) -> None:
    """What `procrastinate schema --apply` does."""
    async with opened(dsn) as (app, _):
        await app.schema_manager.apply_schema_async()


class Producer:
    """Defers one job, or a batch of them."""

    def __init__(self, app: Any, task: Any) -> None:
        self._app = app
        self._task = task

    async def insert(self, number: int) -> None:
        """One job."""
        await self._task.defer_async(id=probe.job_id(number))

    async def insert_many(self, first: int, count: int, options: program.Options) -> None:
        """Batches of `BULK` jobs, each one statement."""
        later = {"schedule_in": {"seconds": options["delay_s"]}} if "delay_s" in options else {}
        priorities, keys = options.get("priorities"), options.get("keys")
        for numbers in program.chunks(first, count, BULK):
            if priorities is keys is None:
                await self._task.configure(**later).batch_defer_async(*({"id": probe.job_id(n)} for n in numbers))
                continue
            # batch_defer_async gives all its jobs the same lock and priority; what it calls does not.
            await self._app.job_manager.batch_defer_jobs_async(
                [
                    self._task.configure(
                        priority=n % priorities if priorities else None,
                        lock=f"key-{n % keys}" if keys else None,
                        **later,
                    ).make_new_job(id=probe.job_id(n))
                    for n in numbers
                ]
            )


@asynccontextmanager
async def producer(dsn: str) -> AsyncIterator[Producer]:
    """A producer with a pool of its own."""
    async with opened(dsn) as (app, task):
        yield Producer(app, task)


async def work(dsn: str, concurrency: int) -> None:
    """Works until SIGTERM, which the worker handles itself."""
    async with opened(dsn) as (app, _):
        await app.run_worker_async(concurrency=concurrency, delete_jobs="successful")


DESCRIPTION = program.Description(
    title="procrastinate",
    version=version("procrastinate"),
    runtime=program.RUNTIME,
    settings=f"2 processes, psycopg {version('psycopg')}, uvloop, concurrency {CONCURRENCY}, autocommit, "
    f"a pool of {POOL} without checks, delete_jobs successful",
    table="procrastinate_jobs",
    unfinished="select count(*) from procrastinate_jobs where status in ('todo', 'doing')",
    any_unfinished="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    keeps_finished=False,
    forks=False,
    processes=2,
    concurrency=CONCURRENCY,
    jobs_scale=0.01,
    feed_options=["priorities", "keys", "delay_s"],
)

if __name__ == "__main__":
    program.main(DESCRIPTION, setup=setup, producer=producer, work=work)
