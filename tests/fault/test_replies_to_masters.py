"""Whichever statement of a master loses its reply, nothing is lost, stranded, or run twice at a time; the checker judges.

In one life of two masters each statement that a shard, a keeper or a handler sends loses a reply: by name, so that none is
left out, and then by number, whatever it may be. A statement is carried out, and its connection ends before it is told so.
"""

from __future__ import annotations

import datetime as dt
import re
import signal
import time
from typing import Any

import psycopg
import pytest

import wqcore
from tests.chaos import kinds
from tests.chaos.scenarios import Scene, scene
from tests.chaos.world import SCHEMA
from wqcore.db.statements import Statements

STATEMENTS = Statements(SCHEMA)
OF_SHARDS = [
    "shard_register", "shard_session", "peek", "slots_owned", "slots_take", "held_elsewhere", "turn", "settle_retry",
    "settle_end", "remaining", "cancels", "permits_owned", "permits_take", "sync_permits", "slots_release", "permits_release",
    "shard_leave",
]  # fmt: skip
OF_HANDLERS = ["complete_tx"]
OF_KEEPERS = [
    "beat", "own_shards", "dead_shards", "schedule_due", "schedule_claim", "schedule_fire", "cancel_unheld",
    "history_summarize", "history_partitions", "rescue_fence", "rescue", "forget_processes",
]  # fmt: skip
LATE = {"shard_leave", "forget_processes", "permits_release"}
"""Sent when a master drains, or a limit is taken back."""
NUMBERS = range(6, 240, 12)
LIFE_S = 60.0
"""At most; it takes about a third of that."""


def as_sent(name: str) -> str:
    """The text of a statement as psycopg sends it: parameters have numbers."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return "%" if match[0] == "%%" else f"${numbers.setdefault(match[1], len(numbers) + 1)}"

    return re.sub(r"%%|%\((\w+)\)s", number, STATEMENTS[name].decode())


TEXTS = {name: as_sent(name) for name in OF_SHARDS + OF_HANDLERS + OF_KEEPERS}


class Life:
    """What goes on while replies are lost."""

    def __init__(self, on: Scene, client: wqcore.SyncClient) -> None:
        self.on = on
        self.client = client
        self.proxies = on.here.proxies[:2]
        self._rounds = 0

    def swallowed(self) -> set[str]:
        """The statements that have lost a reply."""
        return {name for name, text in TEXTS.items() for proxy in self.proxies if text in proxy.swallowed}

    def arm(self, master: int) -> None:
        """The next reply to each statement of this master is lost."""
        for text in TEXTS.values():
            self.proxies[master].drop_reply(1, containing=text)

    def round(self) -> None:
        """A few jobs of each sort, and somebody who cancels."""
        on, soon = self.on, dt.datetime.now(dt.UTC) + dt.timedelta(milliseconds=200)
        self._rounds += 1
        on.insert(lambda token: kinds.Plain(token, 20.0, fails=token % 3), 9)
        on.insert(lambda token: kinds.Plain(token, 5.0), 2, run_at=soon)
        on.insert(lambda token: kinds.Keyed(token, token % 3, 5.0), 4)
        on.insert(lambda token: kinds.Dozing(token, 5.0), 2)
        on.insert(kinds.Hopeless, 2)
        on.insert(lambda token: kinds.Effect(token, 5.0), 2)
        on.insert(lambda token: kinds.Batched(token, token % 3, 5.0), 3)
        on.insert(lambda token: kinds.Threaded(token, 5.0), 2)
        on.insert(lambda token: kinds.Named(token, 1, 5.0), job_key=f"round-{self._rounds % 3}", run_at=soon)
        slow = on.insert(lambda token: kinds.Plain(token, 1200.0), 2)
        time.sleep(0.05)  # the pace of the load
        self.client.cancel(slow[0])

    def change_one_that_is_claimed(self) -> None:
        """A job is replaced in a transaction that commits while it runs: its acknowledgement finds another revision."""
        key = f"claimed-{self._rounds}"
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)
        [job] = self.on.insert(lambda token: kinds.Named(token, 1, 300.0), job_key=key, run_at=soon)
        with psycopg.connect(self.on.here.cluster.dsn) as conn:
            self.on.insert(lambda token: kinds.Named(token, 1), job_key=key, tx=conn)
            self.on.until(lambda: self.on.started([job]) == {job}, "the job as it was runs")

    def until_lost(self, wanted: set[str]) -> None:
        """Lives on until a reply to each of these has been lost."""
        end = time.monotonic() + LIFE_S
        while not wanted <= self.swallowed():
            assert time.monotonic() < end, f"no reply was lost of {sorted(wanted - self.swallowed())}"
            self.round()
            if "remaining" in wanted - self.swallowed():
                self.change_one_that_is_claimed()


@pytest.mark.timeout(240)
def test_whichever_reply_of_two_masters_is_lost_the_checker_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "psycopg")
    tables: dict[str, dict[str, Any]] = {"queues.default": {"workers": 20, "processes": 1}}
    with scene(1, tables, None) as (on, found), wqcore.SyncClient(on.here.client_settings()) as client:
        here, began = on.here, time.monotonic_ns()
        life = Life(on, client)
        client.set_schedule("each second", kinds.Plain(0), every_s=1)
        client.set_limits("default", max_workers_total=16)
        life.arm(0)
        life.arm(1)
        here.start_master(1)
        life.round()
        on.until(lambda: here.scalar(f"select count(*) from {SCHEMA}.shard") == 4, "two masters share the queues")
        first = here.masters[0]
        assert first is not None
        first.children("worker default")[0].send_signal(signal.SIGKILL)
        life.until_lost(TEXTS.keys() - LATE)
        client.set_limits("default", max_workers_total=None)
        for proxy in life.proxies:
            for number in NUMBERS:
                proxy.drop_reply(number)
        before = sum(proxy.dropped for proxy in life.proxies)
        on.until(
            lambda: bool(life.round()) or sum(proxy.dropped for proxy in life.proxies) >= before + 2 * len(NUMBERS) - 8,
            "replies are lost by number", LIFE_S,
        )  # fmt: skip
        for proxy in life.proxies:  # else a number that is left over ends the keeper's connection before its last statement
            proxy.heal()
            for name in LATE - life.swallowed():
                proxy.drop_reply(1, containing=TEXTS[name])
        client.delete_schedule("each second")
        here.fault("drop replies", began, lasts_s=60.0)
        second = here.masters[1]
        assert second is not None
        second.process.terminate()
        assert second.process.wait(30) == 0
        here.masters[1] = None
        missing = TEXTS.keys() - life.swallowed()
        assert not missing, f"no reply was lost of {sorted(missing)}"
    print(f"{sum(proxy.dropped for proxy in life.proxies)} replies were lost")
    assert found == []
