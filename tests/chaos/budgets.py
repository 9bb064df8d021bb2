"""Measures how soon work goes on after each sort of failure, and holds it against the budget that users are promised.

    make budgets

On a PostgreSQL of its own, with real masters and default settings (what differs is written beside a row). Each failure is
brought about several times; the worst round counts. The times are those of the handlers' own journal, on the clock that all
processes of a machine share. Writes docs/reliability/budgets.json, and the table of docs/reliability.md from it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

import wqcore
from tests.chaos import kinds
from tests.chaos.pages import machine, put_between
from tests.chaos.soak import DEFAULTS
from tests.chaos.world import ROOT, SCHEMA, World, wait_until, world
from tests.check.history import HANDLERS, Ran, lines
from wqcore.settings import Process, Queue

DEAD_AFTER_S, POLL_S = Process().dead_after_s, Queue().poll_interval_s
LONG_MS = 120_000.0
RUNNING, PREFETCHED = 20, 500
DEAF_JOBS = 4
OLD_ENOUGH_S = 6.0
"""A place whose processes keep dying younger than 5 s is filled with a growing delay, which is not what is measured."""
Round = Callable[[World, wqcore.SyncClient, random.Random], list[float]]


class Row(msgspec.Struct, kw_only=True):
    """One budget: every round's time is in seconds."""

    of: str = ""
    """The failure."""
    what: str
    until: str
    budget_s: float
    rounds: list[float] = []

    def kept(self) -> bool:
        return bool(self.rounds) and max(self.rounds) <= self.budget_s


class Failure(msgspec.Struct, kw_only=True):
    """Something that fails; `act` does it once and gives a time for each of its rows."""

    name: str
    act: Round
    rows: list[Row]
    masters: int = 1
    settings: dict[str, dict[str, Any]] = {}


# --- what is done -------------------------------------------------------------------------------------------------


def worker_killed(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """SIGKILL for the only worker, while it runs 20 jobs and has claimed 500 more."""
    client.insert_many([kinds.Plain(0) for _ in range(2 * PREFETCHED)])  # they teach the shard a rate, so that it prefetches
    _until(lambda: not _unfinished(here), "the quick jobs are done")
    running = _insert_at_once(here, client, kinds.Plain(1, LONG_MS, later_ms=100.0), RUNNING)
    _until(lambda: _begun(here, running, 1), "20 jobs run")
    waiting = _insert_at_once(here, client, kinds.Plain(2), PREFETCHED)
    claimed = f"select max(cardinality(ids)) from {SCHEMA}.claim"
    _until(lambda: (here.scalar(claimed) or 0) >= RUNNING + PREFETCHED, "500 more are claimed")
    [worker] = [psutil.Process(pid) for pid in {run.pid for run in _runs(here) if run.job in running}]
    _until(lambda: time.time() - worker.create_time() > OLD_ENOUGH_S, "the worker is not young")
    killed = time.monotonic_ns()
    worker.kill()
    _until(lambda: _begun(here, running, 2) and _begun(here, waiting, 1), "all have started")
    after = [run.at for run in _runs(here) if run.at > killed and run.job in {*running, *waiting}]
    _until(lambda: not _unfinished(here), "all are done")
    return [_since(killed, min(after)), _since(killed, max(after))]


def host_dead(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """SIGKILL for all processes of one of two masters; nothing else tells that they are gone."""
    return _host_dead(here, client, choose, restart=False)


def host_dead_after_restart(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """The same at the moment when PostgreSQL is back: nobody may judge others before he has beaten for long enough."""
    return _host_dead(here, client, choose, restart=True)


def _host_dead(here: World, client: wqcore.SyncClient, choose: random.Random, *, restart: bool) -> list[float]:
    master = here.masters[0]
    assert master is not None
    jobs = _insert(client, kinds.Plain(0, LONG_MS, later_ms=1.0), 2 * RUNNING)
    _until(lambda: _begun(here, jobs, 1), "the jobs run")
    tree = master.tree()
    lost = [run.job for run in _runs(here) if run.pid in tree and run.job in jobs]
    time.sleep(choose.uniform(0.0, 1.0))  # somewhere between two heartbeats
    if restart:
        here.cluster.crash()
        here.cluster.start()
    killed = time.monotonic_ns()
    for pid in tree:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    master.process.wait()
    _until(lambda: _begun(here, lost, 2), "they run on the other master", 60.0)
    after = [run.at for run in _runs(here) if run.at > killed and run.job in lost]
    with here.connect() as conn:
        conn.execute(f"select {SCHEMA}.cancel(id, 'measured') from {SCHEMA}.job")
    here.start_master(0)
    _until(lambda: not _unfinished(here) and here.ready(), "a new host works")
    # it is judged by keepers that have beaten for long enough: that of a new host, and that of one which lost the server
    time.sleep(DEAD_AFTER_S)
    return [_since(killed, min(after)), _since(killed, max(after))]


def server_restarted(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """An immediate stop and a start; a job is inserted as soon as the server takes connections."""
    return _server_away(here, 0.0)


def server_away(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """The same, with the server away for so long that everybody's pauses between attempts have grown."""
    return _server_away(here, choose.uniform(15.0, 20.0))


def _server_away(here: World, seconds: float) -> list[float]:
    here.cluster.crash()
    time.sleep(seconds)
    here.cluster.start()
    accepts = time.monotonic_ns()
    with wqcore.SyncClient(here.settings) as client:
        jobs = _insert(client, kinds.Plain(0), 1)
    _until(lambda: _begun(here, jobs, 1), "the job has started")
    started = next(run.at for run in _runs(here) if run.job in jobs)
    _until(lambda: here.ready() and not _unfinished(here), "all is as before")
    return [_since(accepts, started)]


def half_open(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """Every connection of the only master is open and hears nothing any more; new ones work."""
    time.sleep(choose.uniform(0.0, POLL_S))
    began = time.monotonic_ns()
    here.proxies[0].strand()
    with wqcore.SyncClient(here.settings) as other:
        jobs = _insert(other, kinds.Plain(0), 1)
    _until(lambda: _begun(here, jobs, 1), "the job has started", 120.0)
    started = next(run.at for run in _runs(here) if run.job in jobs)
    _until(lambda: here.ready() and not _unfinished(here), "all is as before")
    return [_since(began, started)]


def notifications_lost(here: World, client: wqcore.SyncClient, choose: random.Random) -> list[float]:
    """Notifications do not reach the masters: only a look can find a job. Jobs come at any time between two looks."""
    worst = 0.0
    here.proxies[0].deaf()
    for _ in range(DEAF_JOBS):
        time.sleep(choose.uniform(0.5, 0.5 + 2 * POLL_S))
        jobs = _insert(client, kinds.Plain(0), 1)
        inserted = time.monotonic_ns()
        _until(lambda: _begun(here, jobs, 1), "the job has started")  # noqa: B023 - waited for here
        worst = max(worst, _since(inserted, next(run.at for run in _runs(here) if run.job in jobs)))
    here.proxies[0].hear()
    return [worst]


ONE_BUSY = {"queues.default": {"workers": RUNNING, "processes": 1, "prefetch_s": 10.0}}
ROOMY = {"queues.default": {"workers": 100, "processes": 1}}
HOST_S = 2 * DEAD_AFTER_S + 1


def failures() -> list[Failure]:
    """All of them, in the order of the table."""
    busy = f"a worker is killed with 9, {RUNNING} jobs running and {PREFETCHED} prefetched"
    return [
        Failure(
            name="worker",
            act=worker_killed,
            settings=ONE_BUSY,
            rows=[
                Row(what=busy, until="the first of them starts", budget_s=2.0),
                Row(what="", until="the last of them has started", budget_s=2.0),
            ],
        ),
        Failure(
            name="host",
            act=host_dead,
            masters=2,
            settings=ROOMY,
            rows=[
                Row(what="a host dies: all processes of a master at once", until="the first of its jobs starts on another",
                    budget_s=HOST_S),
                Row(what="", until="the last of its jobs has started on another", budget_s=HOST_S),
            ],
        ),
        Failure(
            name="host_after_restart",
            act=host_dead_after_restart,
            masters=2,
            settings=ROOMY,
            rows=[
                Row(what="a host dies at the moment when PostgreSQL is back from a crash",
                    until="the first of its jobs starts on another", budget_s=HOST_S),
                Row(what="", until="the last of its jobs has started on another", budget_s=HOST_S),
            ],
        ),
        Failure(
            name="restart",
            act=server_restarted,
            rows=[Row(what="PostgreSQL is stopped with `immediate` and started", budget_s=3.0,
                      until="a job starts, from when it takes connections")],
        ),
        Failure(
            name="away",
            act=server_away,
            rows=[Row(what="PostgreSQL is away for 15 to 20 s", until="the same", budget_s=3.0)],
        ),
        Failure(
            name="half_open",
            act=half_open,
            rows=[Row(what="connections are half-open: nothing is heard, nothing is refused", budget_s=30.0,
                      until="they are given up and replaced, and a job starts")],
        ),
        Failure(
            name="deaf",
            act=notifications_lost,
            rows=[Row(what=f"notifications are lost ({DEAF_JOBS} jobs a round, one after the other)",
                      until=f"a job starts, from its insert (`poll_interval_s` is {POLL_S:g}, ±10 %)",
                      budget_s=POLL_S * 1.1 + 0.1)],
        ),
    ]  # fmt: skip


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(failure: Failure, rounds: int, choose: random.Random) -> None:
    """Fills the rows of a failure."""
    with world(DEFAULTS | failure.settings) as here:
        for number in range(failure.masters):
            here.start_master(number)
        here.wait_ready()
        with wqcore.SyncClient(here.client_settings()) as client:
            for _ in range(rounds):
                for row, seconds in zip(failure.rows, failure.act(here, client, choose), strict=True):
                    row.of = failure.name
                    row.rounds.append(round(seconds, 3))


def _until(condition: Callable[[], bool], what: str, seconds: float = 40.0) -> None:
    if not wait_until(condition, seconds):
        raise RuntimeError(f"not within {seconds:g} s: {what}")


def _insert(client: wqcore.SyncClient, args: kinds.Plain, count: int) -> list[int]:
    return [int(client.insert(args)) for _ in range(count)]


def _insert_at_once(here: World, client: wqcore.SyncClient, args: kinds.Plain, count: int) -> list[int]:
    """In one transaction, before the shard forgets its rate; found again by their token."""
    client.insert_many([args for _ in range(count)])
    with here.connect() as conn:
        query = f"select id from {SCHEMA}.job where (args ->> 'token')::int = %s"
        return [job for (job,) in conn.execute(query, [args.token])]  # type: ignore[arg-type]


def _runs(here: World) -> Iterator[Ran]:
    return (line for line in lines(here.folder / HANDLERS, Ran) if line.phase == "start")


def _begun(here: World, jobs: list[int], times: int) -> bool:
    """Whether each of these has started so often."""
    counts = dict.fromkeys(jobs, 0)
    for run in _runs(here):
        if run.job in counts:
            counts[run.job] += 1
    return all(count >= times for count in counts.values())


def _unfinished(here: World) -> int:
    return int(here.scalar(f"select count(*) from {SCHEMA}.job"))


def _since(began_ns: int, at_ns: int) -> float:
    return (at_ns - began_ns) / 1e9


class Report(msgspec.Struct, kw_only=True):
    """This is budgets.json."""

    day: str
    machine: str
    seed: int
    rows: list[Row]


def table(report: Report) -> str:
    """The table of docs/reliability.md."""
    found = ["| what fails | until | median | worst | budget |", "|---|---|--:|--:|--:|"]
    for row in report.rows:
        over = "" if row.kept() else " **missed**"
        found.append(
            f"| {row.what} | {row.until} | {_seconds(statistics.median(row.rounds))} | "
            f"{_seconds(max(row.rounds))}{over} | {row.budget_s:.3g} s |"
        )
    rounds = min(len(row.rounds) for row in report.rows)
    return "\n".join([*found, "", f"({report.day}, {rounds} rounds each or more; {report.machine}; seed {report.seed})"])


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def main() -> int:
    names = [failure.name for failure in failures()]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.budgets", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", help=f"some of {', '.join(names)}, separated by commas; others stay as they were")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder with reliability.md")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    chosen = given.only.split(",") if given.only else names
    path = given.out / "reliability" / "budgets.json"
    before = msgspec.json.decode(path.read_bytes(), type=Report).rows if path.exists() else []
    report = Report(day=dt.datetime.now(dt.UTC).date().isoformat(), machine=machine(), seed=given.seed, rows=[])
    for failure in failures():
        if failure.name in chosen:
            measure(failure, given.rounds, random.Random(f"{given.seed} {failure.name}"))
            print(f"{failure.name}: {[row.rounds for row in failure.rows]}", flush=True)
        report.rows += failure.rows if failure.name in chosen else [row for row in before if row.of == failure.name]
    print(table(report))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    put_between(given.out / "reliability.md", "budgets", table(report))
    return 0 if all(row.kept() for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
