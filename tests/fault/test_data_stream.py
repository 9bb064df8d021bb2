"""An insert by an iterator streams: its memory does not grow with the number of its jobs.

`python -m tests.fault.test_data_stream 10000000` with WQ_TEST_DSN does it with any number, on a database that
`wqcore migrate` has made.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

import wqcore
from tests.fix_pg import Fresh
from wqcore import launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind

ROOT = Path(__file__).parents[2]
JOBS = 300_000
GROWTH_BYTES_MAX = 24 * 1024 * 1024
"""A list of 300,000 rows would take more than 200 MB."""


class Note(msgspec.Struct):
    n: int
    text: str


def notes(count: int) -> Iterator[Note]:
    for n in range(count):
        yield Note(n, f"a text of some length for job {n}")


async def notes_async(count: int) -> AsyncIterator[Note]:
    for note in notes(count):
        yield note


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def insert(count: int, way: str) -> None:
    """Inserts a little, then the rest; prints how many, how often it was told of progress, and the growth in between."""
    wqcore.kind("note")(Note)
    told: list[int] = []
    dsn = os.environ["WQ_TEST_DSN"]

    async def with_asyncio() -> tuple[int, int]:
        async with wqcore.Client(dsn=dsn) as client:
            await client.insert_many(notes_async(5000))
            before = peak_bytes()
            return before, await client.insert_many(notes_async(count), progress=told.append)

    began = time.monotonic()
    if way == "async":
        before, added = asyncio.run(with_asyncio())
    else:
        with wqcore.SyncClient(dsn=dsn) as client:
            client.insert_many(notes(5000))
            before = peak_bytes()
            added = client.insert_many(notes(count), progress=told.append)
    assert told == sorted(told)
    print(added, len(told), told[-1], peak_bytes() - before, peak_bytes(), round(time.monotonic() - began, 1))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_insert_of_300_000_jobs_by_an_iterator_takes_bounded_memory_and_tells_how_far_it_is(
    database: Fresh, way: str
) -> None:
    count = JOBS if way == "sync" else JOBS // 3
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fault.test_data_stream", str(count), way],
        env=os.environ | {"PYTHONPATH": str(ROOT), "WQ_TEST_DSN": database.dsn}, cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    added, told, last, growth = map(int, ran.stdout.split()[:4])
    assert (added, last) == (count, count)
    assert told >= count / 5000
    assert growth < GROWTH_BYTES_MAX, ran.stdout
    assert database.one("select count(*) from {s}.job") == count + 5000


def declared(database: Fresh) -> Catalog:
    catalog = Catalog()
    catalog.declare(
        Kind(
            "note", Note, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )
    )  # fmt: skip
    launch.sync_kinds(database.conn, database.settings, catalog)
    return catalog


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_iterator_may_take_longer_than_the_limit_of_a_statement(database: Fresh, way: str) -> None:
    """It was cancelled after statement_timeout_s, which 10,000,000 jobs exceed."""
    catalog = declared(database)
    limits = msgspec.structs.replace(database.settings.database, statement_timeout_s=0.2)
    settings = msgspec.structs.replace(database.settings, database=limits)

    def slowly() -> Iterator[Note]:
        for note in notes(4):
            time.sleep(0.1)  # the length of the fault: twice the limit in all
            yield note

    async def with_asyncio() -> int:
        async with wqcore.Client(settings, catalog=catalog) as client:
            return await client.insert_many(slowly())

    if way == "async":
        assert asyncio.run(with_asyncio()) == 4
        return
    with wqcore.SyncClient(settings, catalog=catalog) as client:
        assert client.insert_many(slowly()) == 4
        # locks are waited for no longer than that, and the limit is back afterwards
        with psycopg.connect(database.dsn) as other:
            other.execute("select wqcore.enqueue('note', '{\"n\": 1, \"text\": \"\"}', job_key => 'k')")
            with pytest.raises(wqcore.DatabaseUnavailable, match="lock timeout"):
                client.insert_many([(Note(1, ""), wqcore.InsertOptions(job_key="k"))])
        with client._connection(client._routes.home) as conn:
            assert conn.execute("show statement_timeout").fetchone() == ("200ms",)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_insert_that_is_broken_off_says_so_without_quoting_args(database: Fresh, way: str) -> None:
    """PostgreSQL tells the line of the COPY at which it stopped, and that line is a job."""
    catalog = declared(database)

    def broken_off() -> Iterator[Note]:
        yield from notes(2000)
        database.sql("select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'wqcore client'")
        yield from notes(2000)

    async def with_asyncio() -> None:
        async with wqcore.Client(database.settings, catalog=catalog) as client:
            await client.insert_many(broken_off())

    with pytest.raises(wqcore.DatabaseUnavailable, match="canceling statement") as caught:
        if way == "async":
            asyncio.run(with_asyncio())
        else:
            with wqcore.SyncClient(database.settings, catalog=catalog) as client:
                client.insert_many(broken_off())
    assert "a text of some length" not in str(caught.value)
    assert database.one("select count(*) from {s}.job") == 0


if __name__ == "__main__":
    insert(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "sync")
