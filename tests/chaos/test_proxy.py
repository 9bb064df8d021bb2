"""The proxy does to a connection what it says, and nothing else: shown with psycopg on both of its ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.fix_proxy import Messages, Proxy

NewProxy = Callable[[str], Proxy]


@pytest.fixture
def proxy(new_proxy: NewProxy, empty_dsn: str) -> Proxy:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("create table t (n integer)")
    return new_proxy(empty_dsn)


def connect(proxy: Proxy) -> psycopg.Connection:
    return psycopg.connect(proxy.dsn, autocommit=True, connect_timeout=5)


def count(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        return conn.execute("select count(*) from t").fetchone()[0]  # type: ignore[index]


def test_what_passes_is_not_changed_and_statements_are_counted(proxy: Proxy) -> None:
    with connect(proxy) as conn:
        before = proxy.statements
        assert conn.execute("select repeat('x', 300000)").fetchone() == ("x" * 300_000,)
        conn.execute("insert into t select generate_series(1, 3)", prepare=True)
        with conn.cursor().copy("copy t from stdin") as copy:
            copy.write_row((4,))
        assert conn.execute("select count(*) from t where n < %s", (100,)).fetchone() == (4,)
        assert proxy.statements == before + 4


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_the_reply_of_the_nth_statement_is_lost_and_its_work_is_not(proxy: Proxy, empty_dsn: str, nth: int) -> None:
    with connect(proxy) as conn:
        proxy.drop_reply(nth, containing="insert into t")
        done = 0
        with pytest.raises(psycopg.OperationalError):
            for number in range(5):
                conn.execute("select 1")
                conn.execute("insert into t values (%s)", (number,), prepare=True)
                done += 1
        assert done == nth - 1
    assert count(empty_dsn) == nth
    assert proxy.dropped == 1


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_ends_every_connection_and_new_ones_pass(proxy: Proxy, reset: bool) -> None:
    conns = [connect(proxy) for _ in range(3)]
    proxy.cut(reset=reset)
    for conn in conns:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
    with connect(proxy) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_silence_holds_everything_back_until_it_ends(proxy: Proxy, empty_dsn: str) -> None:
    with connect(proxy) as conn:
        proxy.silence()
        asking = threading.Thread(target=conn.execute, args=("insert into t values (1)",))
        asking.start()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(proxy.dsn, connect_timeout=2)
        assert asking.is_alive()
        assert count(empty_dsn) == 0
        proxy.speak()
        asking.join(10)
        assert not asking.is_alive()
    assert count(empty_dsn) == 1


def test_delay_and_little_bandwidth_make_it_slow(proxy: Proxy) -> None:
    with connect(proxy) as conn:
        proxy.delay_s = 0.1
        began = time.monotonic()
        conn.execute("select 1")
        assert time.monotonic() - began >= 0.2  # there and back
        proxy.delay_s, proxy.bytes_per_s = 0.0, 100_000.0
        began = time.monotonic()
        conn.execute("select repeat('x', 30000)")
        assert time.monotonic() - began >= 0.3
        proxy.heal()
        assert conn.execute("select 1").fetchone() == (1,)


def test_a_watcher_is_called_before_its_statement_passes(proxy: Proxy, empty_dsn: str) -> None:
    seen: list[int] = []
    proxy.watch("insert into t", lambda: seen.append(count(empty_dsn)))
    with connect(proxy) as conn:
        conn.execute("select 1")
        conn.execute("insert into t values (1)")
    assert seen == [0]


def test_a_stream_is_cut_into_the_same_messages_wherever_it_is_torn() -> None:
    startup = (8 + 5).to_bytes(4) + (196608).to_bytes(4) + b"user\0"
    stream = startup + b"Q" + (4 + 9).to_bytes(4) + b"select 1\0" + b"X" + (4).to_bytes(4)
    whole = Messages(of_client=True).feed(stream)
    assert [kind for kind, _ in whole] == [b"", b"Q", b"X"]
    for at in range(len(stream)):
        torn = Messages(of_client=True)
        assert torn.feed(stream[:at]) + torn.feed(stream[at:]) == whole
