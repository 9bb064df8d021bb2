"""What a caller gives in error is refused by name, before anything is sent; PostgreSQL's own answer would point elsewhere."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from tests.fix_pg import Fresh
from wqcore import Client, JobFilter, SyncClient, WqcoreError

CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an id that is a text": (lambda c: c.job("x"), "'x' is no id of a job"),
    "an id with a fraction": (lambda c: c.owner(1.5), r"1\.5 is no id"),
    "no id": (lambda c: c.job(None), "None is no id"),
    "an id of 71 bits": (lambda c: c.job(2**70), "is no id of a job: it is beyond"),
    "a search text for a filter": (lambda c: c.jobs("kind:mail"), "'kind:mail' is no filter: pass a JobFilter"),
    "a number for a filter": (lambda c: c.count(5), "5 is no filter"),
    "a limit that is a text": (lambda c: c.jobs(limit="x"), "limit is 'x': give a whole number"),
    "no limit": (lambda c: c.jobs(limit=0), r"limit 0 is outside 1 … 10000"),
    "a page after a text": (lambda c: c.jobs(after="x"), "after is 'x'"),
    "a word for jobs": (lambda c: c.cancel("abc"), "'abc' is no choice of jobs"),
    "nothing for jobs": (lambda c: c.delete(None), "None is no choice of jobs"),
    "None among ids": (lambda c: c.retry([1, None]), "None is no id"),
    "a reason that is a number": (lambda c: c.cancel(1, reason=5), "reason is 5"),
    "a priority that is a text": (lambda c: c.reprioritise(1, "high"), "priority is 'high'"),
    "a bite that is too large": (lambda c: c.delete(1, bite=10**6), "bite 1000000 is outside"),
    "a time that is a number": (lambda c: c.reschedule(1, 0.0), r"run_at is 0\.0: use a datetime"),
    "a wait for a text": (lambda c: c.wait("x", timeout_s=1), "'x' is no id"),
    "a wait of a text": (lambda c: c.wait(1, timeout_s="1s"), "timeout_s is '1s': give seconds"),
    "a queue with NUL": (lambda c: c.pause("a\0"), "unknown queue"),
    "a limit of a text": (lambda c: c.set_limits("default", max_per_key="x"), "max_per_key"),
    "a master that is not in a list": (lambda c: c.drain_masters("abc"), r"'abc' is no list of ids: write \['abc'\]"),
    "a master by its host": (lambda c: c.drain_masters(["ash"]), "are no ids of masters: pass the `id`"),
    "a schedule that is a number": (lambda c: c.pause_schedule(5), "name is 5: give a str"),
    "a schedule with NUL": (lambda c: c.delete_schedule("a\0"), "contains a NUL"),
    "a job key that is a number": (lambda c: c.dequeue(5), "job_key is 5"),
    "a job key with NUL": (lambda c: c.dequeue("a\0"), "contains a NUL"),
    "one kind for kinds": (lambda c: c.count(JobFilter(kinds="mail")), r"write \['mail'\]"),
    "a queue of a filter that is a number": (lambda c: c.count(JobFilter(queues=[5])), "queues is 5"),
    "args of a filter that are a list": (lambda c: c.count(JobFilter(args=["a"])), r"args is \['a'\]: give a dict"),
    "a priority of a filter": (lambda c: c.count(JobFilter(priority_min="x")), "priority_min is 'x'"),
    "a kind of a filter with NUL": (lambda c: c.count(JobFilter(kinds=["a\0"])), "kinds 'a.x00' contains a NUL"),
    "an error of a filter with a surrogate": (lambda c: c.count(JobFilter(error="\ud800")), "lone surrogate"),
    "args of a filter with NUL": (lambda c: c.count(JobFilter(args={"a": "b\0"})), "args: .* contains a NUL"),
    "a path of a filter with NUL": (lambda c: c.count(JobFilter(args={"a\0": 1})), "path 'a.x00' contains a NUL"),
    "an age of a filter": (lambda c: c.count(JobFilter(older_than=5)), "older_than is 5"),
    "a time without zone": (lambda c: c.count(JobFilter(newer_than=dt.datetime(2030, 1, 1))), "has no time zone"),
    "a pool of none": (lambda c: c.pool(connections_max=0), "connections_max 0 is outside"),
    "a pool without patience": (lambda c: c.pool(statement_timeout_s=-1), "statement_timeout_s -1 is not above 0"),
    "a database that is a number": (lambda c: c.at(5), "no database 5: there are default"),
}  # fmt: skip


@pytest.fixture
def count_sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that clients have sent."""
    sent: list[str] = []
    for client in (Client, SyncClient):
        was = client._fetch

        def fetch(self: Any, query: Any, *rest: Any, was: Any = was) -> Any:
            sent.append(query.name)
            return was(self, query, *rest)

        monkeypatch.setattr(client, "_fetch", fetch)
    return sent


def test_each_wrong_value_is_refused_by_name_and_nothing_is_sent(database: Fresh, count_sent: list[str]) -> None:
    with SyncClient(database.settings) as client:
        count_sent.clear()
        for what, (call, says) in CALLS.items():
            with pytest.raises(WqcoreError, match=says):
                pytest.fail(f"{what} was taken: {call(client)!r}")
        assert [statement for statement in count_sent if statement not in ("pause", "queues")] == []


async def test_the_client_for_asyncio_refuses_the_same(database: Fresh, count_sent: list[str]) -> None:
    async with Client(database.settings) as client:
        count_sent.clear()
        for what, (call, says) in CALLS.items():
            with pytest.raises(WqcoreError, match=says):
                found = call(client)
                pytest.fail(f"{what} was taken: {await found!r}")
        assert [statement for statement in count_sent if statement not in ("pause", "queues")] == []
