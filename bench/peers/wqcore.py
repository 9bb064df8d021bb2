"""wqcore itself, under the same program as its peers: a real master with its keeper, workers, time-outs and counters.

BENCH_KEEP=1 keeps completed jobs in the history, as wqcore does when nobody says otherwise; without it they are deleted
on completion, as Graphile Worker does.

Inserts use the client without an event loop: a producer that does nothing else is fastest with it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# In its own folder this file would hide the package of the same name: the repository takes that folder's place.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.bench_handlers import BenchNoop
from bench.peers.probe import job_id
from bench.peers.program import RUNTIME, Description, Options, main
from wqcore import launch
from wqcore.client import SyncClient
from wqcore.line.insert import InsertOptions
from wqcore.settings import Database, Process, Queue, Retention, Settings
from wqcore.version import VERSION

KEEP = bool(os.environ.get("BENCH_KEEP"))
PROCESSES = int(os.environ.get("BENCH_PROCESSES", "2"))

DESCRIPTION = Description(
    title="wqcore, history kept" if KEEP else "wqcore",
    version=VERSION,
    runtime=RUNTIME,
    settings=f"2 processes of 50 workers, completed jobs {'kept 24 h' if KEEP else 'deleted'}, all else as shipped",
    table="wqcore.job",
    unfinished="select count(*) from wqcore.job",
    # Looking for a live row in a table full of dead ones would cost more than the drain: the claims are asked first.
    any_unfinished="select coalesce((select sum(cardinality(ids)) from wqcore.claim), 0) > 0"
    " or exists (select from wqcore.job)",
    keeps_finished=KEEP,
    forks=True,
    processes=2,
    concurrency=100,
    jobs_scale=1.0,
    feed_options=["priorities", "keys", "delay_s"],
)


def settings(concurrency: int = 100) -> Settings:
    """The measured configuration."""
    return Settings(
        database=Database(migrate="auto"),
        process=Process(handlers=["bench.bench_handlers"]),
        retention=Retention() if KEEP else Retention(completed_hours=0, cancelled_hours=0),
        queues={"default": Queue(workers=concurrency, processes=PROCESSES)},
    )


async def setup(dsn: str) -> None:
    """Migrates and makes the queue known."""
    launch.prepare(settings(), dsn, lambda text: None)


class Producer:
    """One client."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    async def insert(self, number: int) -> None:
        self._client.insert(BenchNoop(job_id(number)))

    async def insert_many(self, first: int, count: int, options: Options) -> None:
        numbers = range(first, first + count)
        if options:
            self._client.insert_many((BenchNoop(job_id(number)), _options(number, options)) for number in numbers)
        else:
            self._client.insert_many(BenchNoop(job_id(number)) for number in numbers)


def _options(number: int, options: Options) -> InsertOptions:
    delay_s = options.get("delay_s")
    return InsertOptions(
        priority=1 + number % options["priorities"] if "priorities" in options else None,
        serial_key=f"key-{number % options['keys']}" if "keys" in options else None,
        run_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=delay_s) if delay_s else None,
    )


@asynccontextmanager
async def producer(dsn: str) -> AsyncIterator[Producer]:
    with SyncClient(settings(), dsn=dsn) as client:
        yield Producer(client)


async def work(dsn: str, concurrency: int) -> None:
    """A master, as `python -m wqcore --config` starts it, until SIGTERM."""
    found = settings(concurrency)
    queue = found.queues["default"]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(
            f"[database]\ndsn = {json.dumps(dsn)}\nmigrate = 'auto'\n"
            f"[process]\nhandlers = {json.dumps(found.process.handlers)}\n"
            "drain_timeout_s = 1.0\n"
            f"[retention]\ncompleted_hours = {found.retention.completed_hours}\n"
            f"[queues.default]\nworkers = {queue.workers}\nprocesses = {queue.processes}\n"
        )
        config.flush()
        master = await asyncio.create_subprocess_exec(sys.executable, "-m", "wqcore", "--config", config.name)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, master.terminate)
        if await master.wait() != 0:
            sys.exit(f"the master ended with {master.returncode}")


if __name__ == "__main__":
    main(DESCRIPTION, setup=setup, producer=producer, work=work)
