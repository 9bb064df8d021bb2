"""One simulated campaign: hosts whose workers are real shards, people, faults, then healing; `judge.py` judges it.

Everything is drawn from one seed, and all of wqcore takes its time from the simulated loop.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import wqcore.shard
from tests.model import people
from tests.model.judge import judge
from tests.model.simulated_database import SimulatedConnection, SimulatedDatabase
from tests.model.simulated_hosts import DEAD_AFTER_S, QUEUE, SLOTS, Host, Run, Work, Worker
from tests.model.simulated_time import SimulatedLoop, Stalled
from wqcore import clock
from wqcore.catalog import Catalog, Kind
from wqcore.job import Job, Row
from wqcore.outcome import Cancel, Discard, Snooze
from wqcore.settings import Database
from wqcore.shard import Shard

CHAOS_S, HEAL_S = 4.5, 90.0
JOBS = 10


class World:
    """All of one campaign."""

    def __init__(self, loop: SimulatedLoop, seed: int) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.database = SimulatedDatabase(loop, self.rng, SLOTS)
        self.workers: dict[int, Worker] = {}
        self.runs: list[Run] = []
        self.active: list[Run] = []
        self.well: list[Run] = []
        """Runs whose handler returned."""
        self.inserted: set[int] = set()
        self.deleted: set[int] = set()
        self.put_back: set[int] = set()
        self.rescues = 0
        self.leaving = False
        self.broken: list[str] = []
        self.over = asyncio.Event()
        """The campaign has ended, or runs have broken a rule, after which all else follows."""
        self._numbers = itertools.count(1)
        self.catalog = Catalog()
        kind = Kind(
            "work", Work, queue=QUEUE, serial_key=None, priority=1, max_attempts=5, timeout_s=2.0, planned=False,
            backoff=lambda _: self.rng.uniform(0, 0.3),
        )  # fmt: skip
        self.catalog.declare(kind)
        kind.handler = self._work
        self.hosts = [Host(self, "one"), Host(self, "two")]

    def new_worker(self, host: Host) -> Worker:
        """A worker with a shard id that nobody had."""
        number = next(self._numbers)
        worker = Worker(self, host, number)
        self.workers[number] = worker
        return worker

    async def connect(self, dsn: str, database: Database, *, name: str) -> SimulatedConnection:
        """What a shard calls instead of `connect_for_turns`; its DSN is its number."""
        worker = self.workers[int(dsn)]
        if worker.dead:
            await asyncio.Event().wait()
        return await self.database.connect(worker.host.line)

    def rescue(self, shard: int, started: list[tuple[int, int]], reason: str, *, suspect_rest: bool) -> None:
        """What a keeper does."""
        if people.rescue(self.database.tables, shard, started, reason, deaths_max=4, suspect_rest=suspect_rest) is not None:
            self.rescues += 1

    # --- handlers ---------------------------------------------------------------------------------------------------

    async def _work(self, args: Work, job: Job) -> None:
        """The handler of every job: takes a while, and ends in one of all ways."""
        row, rng = job._row, self.rng
        worker = self._worker_of(job)
        run = Run(worker, job.id, row[Row.ATTEMPT], row[Row.REVISION], job.serial_key, worker.leased)
        self._started(run)
        try:
            if rng.random() > 0.15:
                await asyncio.sleep(rng.choice([0.0, 0.001, 0.05, 0.3, 1.0, 3.0]))
            if rng.random() < 0.3:
                raise rng.choice([ValueError("boom"), ValueError("boom"), Snooze(rng.uniform(0, 0.3)), Cancel(), Discard("no")])
            if not worker.dead:
                self.well.append(run)
        finally:
            self.active.remove(run)

    def _worker_of(self, job: Job) -> Worker:
        owner: Any = job._run_side
        shard: Shard = owner._owner
        return self.workers[shard.id]

    def _started(self, run: Run) -> None:
        for other in self.active:
            if other.worker.dead or run.worker.dead or not (other.worker.leased and run.worker.leased):
                continue
            if other.job == run.job:
                self.broken.append(f"two runs of job {run.job} overlap, and neither has lost its shard")
            elif other.serial_key is not None and other.serial_key == run.serial_key:
                self.broken.append(f"jobs {other.job} and {run.job} of key {run.serial_key} run at once")
        if self.broken:
            self.over.set()
        self.runs.append(run)
        self.active.append(run)

    # --- what happens -----------------------------------------------------------------------------------------------

    async def campaign(self) -> None:
        """Chaos, then healing, then a drain."""
        try:
            await self._campaign()
        finally:
            self.loop.call_soon(self.over.set)

    async def _campaign(self) -> None:
        tasks = [self.loop.create_task(host.live()) for host in self.hosts]
        tasks += [self.loop.create_task(self._silence())]
        acting = [self.loop.create_task(work) for work in (self._people(), self._faults())]
        await asyncio.gather(*acting)
        self.database.trouble, self.database.tables.paused = 0.0, False
        for host in self.hosts:
            host.line.heal()
        if all(host.line.dead for host in self.hosts):
            self.hosts.append(Host(self, "new"))
            tasks.append(self.loop.create_task(self.hosts[-1].live()))
        tables, until = self.database.tables, self.loop.time() + HEAL_S
        while tables.jobs and self.loop.time() < until:
            await asyncio.sleep(0.2)
            people.cancel_unheld(tables)
        if tables.jobs:
            self.broken.append(f"stranded: jobs {sorted(tables.jobs)} have not ended {HEAL_S:g} s after the last fault")
        await self._leave()
        until = self.loop.time() + 4 * DEAD_AFTER_S
        while tables.shards and self.loop.time() < until:  # of workers that died on their way out
            await asyncio.sleep(0.2)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
            task.cancel()

    async def _leave(self) -> None:
        """Every worker that lives drains."""
        self.leaving = True
        living = [host.worker for host in self.hosts if not host.line.dead and not host.worker.dead]
        for worker in living:
            worker.shard.drain()
        await asyncio.wait([worker.task for worker in living], timeout=30.0)
        for worker in living:
            if not worker.task.done():
                self.broken.append(f"worker {worker.id} has not drained within 30 s")
            elif (error := worker.task.exception()) is not None:
                self.broken.append(f"worker {worker.id} ended with {error!r}")

    async def _silence(self) -> None:
        """The keepers of other hosts: they rescue whose heartbeat is old."""
        while True:
            await asyncio.sleep(0.5)
            for host in self.hosts:
                if self.loop.time() - host.beat_at > DEAD_AFTER_S:
                    names = [shard for shard, name in self.database.tables.shards.items() if name == host.name]
                    for shard in names:
                        self.rescue(shard, host.reported.get(shard, []), "host died", suspect_rest=True)

    async def _people(self) -> None:
        """Inserts, and everything that control can do."""
        rng, tables = self.rng, self.database.tables
        for _ in range(JOBS):
            await asyncio.sleep(rng.uniform(0, 2 * CHAOS_S / JOBS))
            for _ in range(rng.randint(0, 2)):
                self._ask(tables)
            lot = rng.random()
            if lot < 0.2:
                key, mode = rng.choice("xy"), rng.choice(["replace", "preserve_run_at", "unsafe_dedupe"])
                slot = rng.randrange(SLOTS)
                job, _ = people.insert_keyed(tables, "work", job_key=key, mode=mode, slot=slot, max_attempts=5)
                self.inserted.add(job)
                continue
            key = rng.choice([None, None, "a", "b"])
            slot = {"a": 0, "b": 1}.get(str(key), rng.randrange(SLOTS))
            run_at = tables.now_us() + rng.randrange(2_000_000) if rng.random() < 0.2 else None
            xid, row = people.draw(tables, "work", slot, rng.choice([1, 1, 7]), run_at, 5, key)
            if rng.random() < 0.2:
                self.loop.call_later(rng.uniform(0, 2.0), self._commit, xid, row)
            else:
                self._commit(xid, row)

    def _commit(self, xid: int, row: Any) -> None:
        people.commit(self.database.tables, xid, row)
        self.inserted.add(row.id)

    def _ask(self, tables: Any) -> None:
        """Something is asked of a job, or of the queue."""
        rng = self.rng
        tables.paused = rng.random() < 0.3 if rng.random() < 0.2 else tables.paused
        if not self.inserted:
            return
        job, what = rng.choice(sorted(self.inserted)), rng.randrange(6)
        if what == 0:
            people.cancel(tables, job, "enough")
        elif what == 1:
            people.reprioritise(tables, job, rng.choice([1, 3, 7]))
        elif what == 2:
            people.reschedule(tables, job, tables.now_us() + rng.randrange(1_000_000))
        elif what == 3 and people.delete(tables, job):
            self.deleted.add(job)
        elif what == 4:
            slots = [record.row.slot for record in tables.history if record.row.id == job]
            revision = 1_000_000 + tables.now_us()
            if slots and people.put_back(tables, job, slot=slots[0], revision=revision):
                self.put_back.add(job)

    async def _faults(self) -> None:
        """A few faults that overlap."""
        rng = self.rng
        self.database.trouble = rng.choice([0.0, 0.02, 0.1])
        for _ in range(rng.randint(0, 5)):
            await asyncio.sleep(rng.uniform(0, CHAOS_S / 4))
            host = rng.choice(self.hosts)
            fault, silent_s = rng.randrange(7), rng.uniform(0.9, 1.4) * DEAD_AFTER_S
            if fault in (0, 1):
                host.worker.kill()
            elif fault == 2:
                host.line.cut()
                self.loop.call_later(rng.choice([0.1, silent_s, 2 * DEAD_AFTER_S]), host.line.heal)
            elif fault in (4, 5):
                host.line.trap = silent_s
            elif fault == 3 and not host.line.dead and sum(not other.line.dead for other in self.hosts) > 1:
                host.die()
            else:
                conn = host.worker.shard._protocol.conn
                if isinstance(conn, SimulatedConnection):
                    conn.finish()
        await asyncio.sleep(rng.uniform(0, CHAOS_S))


    def end(self) -> None:
        """Leaves nothing behind for the next campaign."""
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left))
        for worker in self.workers.values():
            for seat in worker.shard.executor._seats:
                seat.task = None  # its frame has a Job, through which the garbage collector does not look


@contextmanager
def simulated_time(loop: SimulatedLoop, seed: int) -> Iterator[None]:
    """All of wqcore takes its time from the loop, its chance from the seed, and its connections from whoever sets them."""
    before = (clock.monotonic, clock.monotonic_ns, wqcore.shard.connect_for_turns, random.getstate())
    clock.monotonic, clock.monotonic_ns = loop.time, loop.time_ns
    random.seed(seed)
    try:
        yield
    finally:
        clock.monotonic, clock.monotonic_ns, wqcore.shard.connect_for_turns, state = before
        random.setstate(state)


def simulate(seed: int) -> list[str]:
    """Runs the campaign of one seed; the rules that it has broken."""
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    try:
        with simulated_time(loop, seed):
            world = World(loop, seed)
            wqcore.shard.connect_for_turns = world.connect  # type: ignore[assignment]
            try:
                campaign = loop.create_task(world.campaign())
                loop.run_until_complete(world.over.wait())
                if not campaign.done():
                    return world.broken
                campaign.result()
                return judge(world)
            finally:
                world.end()
    except Stalled:
        return ["everybody waits, and nothing will ever happen"]
    finally:
        asyncio.set_event_loop(None)
        loop.close()
