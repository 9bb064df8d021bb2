"""A client whose reply is lost is told that nobody knows whether it happened; repeating by a key or uniquely makes one job.

Each operation is tried once for each statement that it sends, with the reply of that statement lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
import pytest

import wqcore
from tests.fix_pg import Fresh
from tests.fix_proxy import Proxy
from wqcore import InsertOptions, Unique
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.errors import DatabaseUnavailable

UNKNOWN = "it may have happened or not"
"""What the error says when nobody can know; one without these words says that nothing was written."""
STATEMENTS_MAX = 12


class Note(msgspec.Struct):
    n: int


CATALOG = Catalog()
CATALOG.declare(
    Kind("note", Note, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
         planned=False)
)  # fmt: skip

Client = wqcore.SyncClient
Insert = Callable[[Client], Any]


@pytest.fixture
def road(new_proxy: Callable[[str], Proxy], database: Fresh) -> Proxy:
    return new_proxy(database.dsn)


@pytest.fixture
def client(database: Fresh, road: Proxy) -> Iterator[Client]:
    with Client(database.settings, dsn=road.dsn, catalog=CATALOG) as client:
        yield client


def in_a_transaction(client: Client) -> None:
    with psycopg.connect(client.dsn) as conn:
        client.insert_tx(conn, Note(1))


MANY: list[Any] = [Note(1), Note(2), (Note(3), InsertOptions(job_key="a")), (Note(4), InsertOptions(job_key="b"))]
INSERTS: dict[str, tuple[Insert, int]] = {
    "insert": (lambda client: client.insert(Note(1)), 1),
    "insert_many": (lambda client: client.insert_many(MANY), 4),
    "insert_tx": (in_a_transaction, 1),
    "by name": (lambda client: client.enqueue("note", {"n": 1}), 1),
    "with a job key": (lambda client: client.insert(Note(1), job_key="a"), 1),
    "unique": (lambda client: client.insert(Note(1), unique=Unique(args=("n",))), 1),
}


@pytest.mark.parametrize("how", INSERTS)
def test_whichever_reply_of_an_insert_is_lost_there_is_all_of_it_or_nothing_and_the_caller_is_told_that_nobody_knows(
    database: Fresh, client: Client, road: Proxy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wqcore.client.sync_client.IDLE_CHECK_S", math.inf)  # else its reply would be the one that is lost
    insert, size = INSERTS[how]
    seen = set()
    for nth in range(1, STATEMENTS_MAX):
        database.sql("truncate {s}.job")
        before = road.dropped
        road.drop_reply(nth)
        told = None
        try:
            insert(client)
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            told = error
        found = database.one("select count(*) from {s}.job")
        if told is not None:
            # an error of the caller's own connection, outside of any call of ours, is the caller's
            assert isinstance(told, psycopg.OperationalError) or UNKNOWN in str(told)
            assert road.dropped == before + 1
            assert found in (0, size)
            seen.add(found)
            continue
        assert found == size
        if road.dropped == before:  # it has fewer statements than that: all of them have had their turn
            road.heal()
            assert size in seen, "the reply of its commit was not among them"
            return
        # else a new connection of the pool has lost a reply of its own
    raise AssertionError(f"{how} sends more than {STATEMENTS_MAX} statements")


async def test_the_asyncio_client_says_the_same(database: Fresh, road: Proxy) -> None:
    async with wqcore.Client(database.settings, dsn=road.dsn, catalog=CATALOG) as client:
        road.drop_reply(1, containing='insert into "wqcore".job')
        with pytest.raises(DatabaseUnavailable, match=UNKNOWN):
            await client.insert(Note(1))
        road.drop_reply(1, containing="COMMIT")
        with pytest.raises(DatabaseUnavailable, match=UNKNOWN):
            await client.insert_many([Note(2), Note(3)])
    assert database.one("select count(*) from {s}.job") == 3


KEYS: dict[str, dict[str, Any]] = {
    "job_key, replace": {"job_key": "k"},
    "job_key, preserve_run_at": {"job_key": "k", "job_key_mode": "preserve_run_at"},
    "job_key, unsafe_dedupe": {"job_key": "k", "job_key_mode": "unsafe_dedupe"},
    "unique": {"unique": Unique(args=("n",))},
}


@pytest.mark.parametrize("options", KEYS.values(), ids=KEYS)
def test_an_insert_that_is_repeated_with_its_key_after_lost_replies_makes_one_job(
    database: Fresh, client: Client, road: Proxy, options: dict[str, Any]
) -> None:
    for _ in range(2):
        road.drop_reply(1, containing="insert_keyed")
        with pytest.raises(DatabaseUnavailable, match=UNKNOWN):
            client.insert(Note(1), **options)
    job = client.insert(Note(1), **options)
    assert job.skipped or job.replaced
    assert database.sql("select id from {s}.job") == [(int(job),)]


def test_a_cancellation_whose_reply_is_lost_is_repeated_without_harm(
    database: Fresh, client: Client, road: Proxy
) -> None:
    job = client.insert(Note(1))
    road.drop_reply(1, containing="cancel")
    with pytest.raises(DatabaseUnavailable, match=UNKNOWN):
        client.cancel(job)
    client.cancel(job)
    assert database.sql("select outcome from {s}.history") == [("cancelled",)]
