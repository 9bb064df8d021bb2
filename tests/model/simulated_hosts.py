"""The processes of a simulated campaign: hosts with one worker each, which is the real `Shard` on a real sheet of the board.

Masters and keepers are a few lines here, which do what `proc/` and `keeper.py` do about a worker that dies and about
heartbeats that stop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tests.model.simulated_database import SCHEMA, Line, SimulatedConnection
from wqcore.proc.board import Sheet, words_of_sheet
from wqcore.settings import Database, Process, Queue, Settings
from wqcore.shard import Shard

if TYPE_CHECKING:
    from tests.model.simulation import World

QUEUE, SLOTS, SEATS = "default", 4, 2
DEAD_AFTER_S, BEAT_S = 2.0, 0.7
SETTINGS = Settings(
    database=Database(schema=SCHEMA, statement_timeout_s=1.0, connect_timeout_s=1),
    process=Process(dead_after_s=DEAD_AFTER_S, cancel_grace_s=1.0),
    queues={QUEUE: Queue(workers=SEATS, slots=SLOTS, poll_interval_s=0.5, batch_max=8)},
)
SHEET_WORDS = words_of_sheet(SEATS)


class Work(msgspec.Struct):
    """The args of every job here."""


class Run(NamedTuple):
    """One run of a handler."""

    worker: Worker
    job: int
    attempt: int
    revision: int
    serial_key: str | None
    leased: bool
    """The worker had its lease when the run began."""


class Worker:
    """One worker process: a shard, its part of the board, its life."""

    def __init__(self, world: World, host: Host, shard: int) -> None:
        self.world = world
        self.host = host
        self.id = shard
        self.dead = False
        sheet = Sheet(memoryview(bytearray(8 * SHEET_WORDS)).cast("q"), SEATS)
        sheet.assign(shard, world.loop.time_ns())
        self.sheet = sheet
        self.shard = Shard(
            SETTINGS, dsn=str(shard), queue=QUEUE, workers=SEATS, shard_id=shard, process_id=host.name,
            catalog=world.catalog, sheet=sheet,
        )  # fmt: skip
        self.task = world.loop.create_task(self._run())

    async def _run(self) -> None:
        drained = await self.shard.run()
        if drained and self.leased:
            self.world.broken.append(f"worker {self.id} left and kept its lease")

    @property
    def leased(self) -> bool:
        """The table has its row."""
        return self.id in self.world.database.tables.shards

    def kill(self) -> None:
        """SIGKILL: its memory is gone, and nothing of it reaches the database any more."""
        self.dead = True
        conn = self.shard._protocol.conn
        if isinstance(conn, SimulatedConnection):
            conn.finish()
        self.task.cancel()


class Host:
    """One master, with its keeper and one worker at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.line = Line()
        self.beat_at = world.loop.time()
        self.reported: dict[int, list[tuple[int, int]]] = {}
        """What the last heartbeat said had started, by shard."""
        self.owed: list[tuple[int, Worker]] = []
        """Workers that died and are to be rescued."""
        self.unknown_before: set[int] = set()
        self.worker = world.new_worker(self)

    async def live(self) -> None:
        """The master and its keeper: replaces, rescues, beats."""
        world = self.world
        while not self.line.dead:
            await asyncio.sleep(world.rng.uniform(0.02, 0.3))
            if self.line.dead:
                return
            if self.worker.dead or self.worker.task.done():
                if self.worker.dead:
                    self.owed.append((self.worker.id, self.worker))
                if world.leaving:
                    return
                self.worker = world.new_worker(self)
            if not self.line.up.is_set():
                continue
            for shard, worker in self.owed:
                world.rescue(shard, worker.sheet.started_jobs(), "worker died", suspect_rest=False)
            self.owed.clear()
            now = world.loop.time()
            if now - self.beat_at > BEAT_S:
                self.beat_at = now
                self._rescue_unknown()
                self.reported = {self.worker.id: self.worker.sheet.started_jobs()}

    def _rescue_unknown(self) -> None:
        """Shards under this master that none of its workers has, twice in a row: a registration that was committed late."""
        shards = self.world.database.tables.shards.items()
        unknown = {shard for shard, name in shards if name == self.name and shard != self.worker.id}
        for shard in unknown & self.unknown_before:
            self.world.rescue(shard, [], "worker gone without a trace", suspect_rest=True)
        self.unknown_before = unknown

    def die(self) -> None:
        """Power failure."""
        self.line.dead = True
        self.worker.kill()
