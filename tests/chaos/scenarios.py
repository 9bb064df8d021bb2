"""One scenario for each broken engine: the smallest run in which its fault shows. The intact engine passes all of them.

Each is told what to do with the masters of a World and inserts through a client; the checker alone judges. They wait for
conditions, and for the length of a fault.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

import wqcore
from tests.chaos import kinds, load
from tests.chaos.world import SCHEMA, World, wait_until, world
from tests.check.finding import Finding
from tests.check.history import HANDLERS, Ran, Said, lines, read
from tests.check.verdict import findings

DRAIN_S = 12.0
TURN, SETTLE_RETRY = "dropped as", "failed as materialized"
"""What stands in the text of these statements and of no other that a shard sends."""
ONE_WORKER: dict[str, dict[str, Any]] = {"queues.default": {"workers": 20, "processes": 1}}
LONG_DRAIN: dict[str, dict[str, Any]] = {"process": {"drain_timeout_s": 8.0}}


class Scene:
    """A World with masters at work and a client that writes down what it inserts."""

    def __init__(self, here: World, client: wqcore.SyncClient) -> None:
        self.here = here
        self._client = client
        self._journal = load.journal(here.folder)
        self._tokens = itertools.count(1)

    def insert(self, make: Callable[[int], Any], count: int = 1, *, tx: Any = None, **options: Any) -> list[int]:
        """Inserts `count` jobs; `make` gives the args for a token."""
        found = []
        for _ in range(count):
            token = next(self._tokens)
            self._say(token, "invoke")
            if tx is None:
                job = self._client.insert(make(token), **options)
            else:
                job = self._client.insert_tx(tx, make(token), **options)
            did = "replaced" if job.replaced else "skipped" if job.skipped else "inserted"
            self._say(token, "ok", job=int(job), did=did)
            found.append(int(job))
        return found

    def started(self, jobs: list[int]) -> set[int]:
        """Which of these have begun to run."""
        wanted = set(jobs)
        return {line.job for line in lines(self.here.folder / HANDLERS, Ran) if line.job in wanted}

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        if not wait_until(condition, seconds):
            raise AssertionError(f"not within {seconds:g} s: {what}")

    def newest_run(self, job: int) -> Ran:
        """The line that begins the newest run of a job."""
        return [line for line in lines(self.here.folder / HANDLERS, Ran) if line.job == job][-1]

    def has_lease(self, shard: int) -> bool:
        return bool(self.here.scalar(f"select count(*) from {SCHEMA}.shard where id = %s", shard))

    def repeated(self, jobs: list[int]) -> int:
        """How many of these have begun to run more than once."""
        begun = Counter(line.job for line in lines(self.here.folder / HANDLERS, Ran) if line.job in set(jobs))
        return sum(count > 1 for count in begun.values())

    def _say(self, token: int, phase: Any, **fields: Any) -> None:
        self._journal.write(Said(at=time.monotonic_ns(), op=token, phase=phase, token=token, **fields))


@contextmanager
def scene(
    masters: int, settings: dict[str, dict[str, Any]], engine: Path | None
) -> Iterator[tuple[Scene, list[Finding]]]:
    """A Scene; when its block has ended, faults are healed, the queue is drained, and the list has the findings."""
    found: list[Finding] = []
    with world(settings, engine=engine, keep=lambda: "WQ_CHAOS_KEEP" in os.environ) as here:
        for number in range(masters):
            here.start_master(number)
        here.wait_ready()
        with wqcore.SyncClient(here.client_settings()) as client:
            yield Scene(here, client), found
        for proxy in here.proxies:
            proxy.heal()
        wait_until(lambda: not here.scalar(f"select count(*) from {SCHEMA}.job"), DRAIN_S)
        here.finish()
        found += findings(read(here.folder))


def frozen_between_the_statements_of_a_turn(engine: Path | None) -> list[Finding]:
    """A worker is suspended in the middle of a turn until its jobs run elsewhere, and then goes on with that turn.

    The turn has failures to write first; its road is slow, so the worker is stopped before that reply arrives, and sends
    its acknowledgements when it thaws. Jobs take long when they run again, so they are on at that moment.
    """
    patient = ONE_WORKER | {"database": {"statement_timeout_s": 20.0}}
    with scene(2, patient, engine) as (on, found):
        master = on.here.masters[0]
        assert master is not None
        [worker] = [child for child in master.children("worker") if "default" in " ".join(child.cmdline())]
        frozen = threading.Event()
        proxy = on.here.proxies[0]
        proxy.delay_s = 0.15
        jobs = on.insert(lambda token: kinds.Plain(token, 50.0 + token * 5, later_ms=5000.0, fails=token % 2), 80)
        on.until(lambda: len(on.started(jobs)) > 20, "jobs run")
        began = time.monotonic_ns()

        def freeze() -> None:
            if not frozen.is_set():
                worker.suspend()
                frozen.set()

        proxy.watch(SETTLE_RETRY, freeze)
        on.until(frozen.is_set, "failures are written")
        shard = next(line.shard for line in lines(on.here.folder / HANDLERS, Ran) if line.pid == worker.pid)
        on.until(lambda: not on.has_lease(shard), "the lease is lost")
        charged = on.here.scalar(f"select count(*) from {SCHEMA}.audit where deaths > was_deaths")
        before = on.repeated(jobs)
        on.until(lambda: on.repeated(jobs) >= before + min(charged, 15), "its jobs run again elsewhere")
        proxy.heal()
        worker.resume()
        on.here.fault("suspend worker", began, [worker.pid])
        on.until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "it finds out and leaves")
    return found


def frozen_until_its_jobs_run_elsewhere(engine: Path | None) -> list[Finding]:
    """A worker is suspended until it is rescued, and goes on."""
    with scene(2, ONE_WORKER, engine) as (on, found):
        jobs = on.insert(lambda token: kinds.Plain(token, 1500.0), 20)
        on.until(lambda: len(on.started(jobs)) == len(jobs), "jobs run")
        pid, began = on.newest_run(jobs[0]).pid, time.monotonic_ns()
        try:
            os.kill(pid, signal.SIGSTOP)
            on.until(lambda: on.repeated(jobs) > 0, "a job runs again elsewhere")
        finally:
            os.kill(pid, signal.SIGCONT)
            on.here.fault("suspend worker", began, [pid])
    return found


def reply_of_a_claim_is_lost(engine: Path | None) -> list[Finding]:
    """Jobs are claimed, and their worker never hears of it."""
    with scene(1, ONE_WORKER, engine) as (on, found):
        proxy = on.here.proxies[0]
        for _ in range(3):
            before = proxy.dropped
            proxy.drop_reply(1, containing=TURN)
            on.insert(lambda token: kinds.Plain(token), 30)
            on.until(lambda: proxy.dropped > before, "the reply of a turn is lost")  # noqa: B023 - waited for here
    return found


def drained_with_long_jobs(engine: Path | None) -> list[Finding]:
    """A master is drained while its jobs have longer to run than its heart may stand still; another one is there."""
    with scene(2, LONG_DRAIN, engine) as (on, found):
        jobs = on.insert(lambda token: kinds.Plain(token, 4500.0), 20)
        on.until(lambda: len(on.started(jobs)) == len(jobs), "jobs run")
        master = on.here.masters[0]
        assert master is not None
        master.process.terminate()
        master.process.wait(30)
        on.here.masters[0] = None
    return found


def batch_of_one_key(engine: Path | None) -> list[Finding]:
    """Jobs of one key wait for a handler that takes four at a time."""
    with scene(1, ONE_WORKER, engine) as (on, found):
        on.insert(lambda token: kinds.Batched(token, 1, 50.0), 12)
    return found


def changed_while_it_is_claimed(engine: Path | None) -> list[Finding]:
    """A job is replaced in a transaction that began before the job was due, and commits while it runs."""
    with scene(1, ONE_WORKER, engine) as (on, found):
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        [job] = on.insert(lambda token: kinds.Named(token, 1, 700.0), job_key="name-1", run_at=soon)
        with psycopg.connect(on.here.cluster.dsn) as conn:
            on.insert(lambda token: kinds.Named(token, 1), job_key="name-1", tx=conn)
            on.until(lambda: on.started([job]) == {job}, "the job as it was runs")
    return found


SCENARIOS: dict[str, Callable[[Path | None], list[Finding]]] = {
    "no fence on the turn": frozen_between_the_statements_of_a_turn,
    "rescue unguarded": frozen_until_its_jobs_run_elsewhere,
    "lost claim not repaired": reply_of_a_claim_is_lost,
    "beat stopped before the drain": drained_with_long_jobs,
    "two jobs of one key in a batch": batch_of_one_key,
    "revision not looked at": changed_while_it_is_claimed,
}
"""Mutant → the scenario that shows it."""
CAUGHT_BY = {
    "no fence on the turn": "ended by an older run",
    "rescue unguarded": "overlap",
    "lost claim not repaired": "stranded",
    "beat stopped before the drain": "murdered",
    "two jobs of one key in a batch": "key overlap",
    "revision not looked at": "unearned",
}
"""Mutant → the rule that must be among those it breaks."""
