"""A DSN with several hosts leads to the one that answers, however the others are dead, and errors name all of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.fix_pg import Fresh
from wqcore import Client, SyncClient, launch
from wqcore.db.connect import connect, connect_for_turns, connect_sync, describe
from wqcore.errors import DatabaseUnavailable
from wqcore.settings import Database, Settings


@pytest.fixture
def refusing() -> str:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[str]:
    """A port at which connections are accepted by the kernel, and never answered."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        yield str(deaf.getsockname()[1])


def over(dsn: str, *ports: str, **more: str) -> str:
    """The DSN with dead hosts before its own."""
    to = conninfo_to_dict(dsn)
    hosts = [*("127.0.0.1" for _ in ports), str(to["host"])]
    return make_conninfo(dsn, host=",".join(hosts), port=",".join([*ports, str(to.get("port", 5432))]), **more)


async def test_clients_keepers_and_shards_find_the_host_that_lives(database: Fresh, refusing: str) -> None:
    dsn = over(database.dsn, refusing, load_balance_hosts="random")
    settings = Settings(database=Database(dsn=dsn, connect_timeout_s=1), queues=database.settings.queues)
    assert settings.check() == []
    launch.prepare(settings, dsn, lambda text: None)
    for _ in range(5):  # hosts are tried in another order each time
        async with Client(settings) as client:
            assert await client.count() == 0
    with SyncClient(settings) as client:
        assert client.count() == 0
    for open_one in (connect, connect_for_turns):
        async with await open_one(dsn, settings.database, name="x") as conn:
            assert conn.info.host == conninfo_to_dict(database.dsn)["host"]


async def test_hosts_that_do_not_answer_cost_their_time_out_each_and_no_more(database: Fresh, silent: str) -> None:
    dsn = over(database.dsn, silent, silent)
    settings = Settings(database=Database(dsn=dsn, connect_timeout_s=1))
    async with Client(settings) as client:
        assert await client.count() == 0


def test_a_host_that_cannot_be_written_to_is_passed_over(database: Fresh) -> None:
    name = str(conninfo_to_dict(database.dsn)["dbname"])
    to = conninfo_to_dict(database.dsn)
    twice = make_conninfo(database.dsn, host=f"{to['host']},{to['host']}", port="5432,5432")
    database.conn.execute(f"alter database {name} set default_transaction_read_only = on")  # type: ignore[arg-type]
    settings = Database(dsn=twice)
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        connect_sync(twice, settings, name="x")
    database.conn.execute("set default_transaction_read_only = off")
    database.conn.execute(f"alter database {name} reset default_transaction_read_only")  # type: ignore[arg-type]
    connect_sync(twice, settings, name="x").close()


def test_an_error_names_all_hosts_and_no_password(database: Fresh, refusing: str) -> None:
    dsn = make_conninfo(host="127.0.0.1,localhost", port=f"{refusing},{refusing}", dbname="shop", password="s3cret")
    assert describe(dsn) == f"host=127.0.0.1,localhost port={refusing},{refusing} dbname=shop"
    with pytest.raises(DatabaseUnavailable) as caught:
        connect_sync(dsn, Database(dsn=dsn), name="x")
    assert f"host=127.0.0.1,localhost port={refusing},{refusing} dbname=shop" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
