"""The floor: the bare protocol loop, the same statements with nothing around them.

Each process owns half of the slots, decodes the typed args, and acknowledges a batch while it claims the next. No
handlers, no time-outs, no board, no counters, no wake-ups. What wqcore's drain loses against this is its own overhead.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import msgspec
import psycopg
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from wqcore import clock
from wqcore.db.connect import TURN_SETTINGS, BigIntArray
from wqcore.db.statements import Statements
from wqcore.job import Row
from wqcore.line.lanes import Lanes
from wqcore.settings import Queue

from ..bench_handlers import BenchNoop
from ..cluster import Cluster
from ..errors import BenchError
from ..measure import Round, fresh
from ..system import System

BATCH = Queue().batch_max
SLOTS = 16
PROCESSES = 2


def drain(cluster: Cluster, system: System, jobs: int, *, history: bool) -> Round:
    """Drains jobs inserted by wqcore; measured from the first claim to the last acknowledgement."""
    with fresh(cluster, system) as database:
        with system.feeder(database.dsn) as feeder:
            feeder.insert(jobs)
        database.settle()
        context = multiprocessing.get_context("fork")
        gate, results = context.Event(), context.Queue()
        loops = [
            context.Process(target=_loop, args=(database.dsn, number, PROCESSES, history, gate, results))
            for number in range(PROCESSES)
        ]
        for process in loops:
            process.start()
        for _ in loops:
            results.get(timeout=30)
        began, before = time.monotonic(), database.spent()
        gate.set()
        ended = [results.get(timeout=300) for _ in loops]
        for process in loops:
            process.join()
        spent = database.spent().since(before)
        left = database.scalar("select count(*) from wqcore.job")
        if left:
            raise BenchError(f"the bare loop left {left} jobs")
        return {
            "jobs_s": jobs / (max(at for at, _ in ended) - began),
            "cpu_us_workers": sum(cpu_s for _, cpu_s in ended) / jobs * 1e6,
            "cpu_us_postgresql": spent.cpu_s / jobs * 1e6,
            "wal_bytes_job": spent.wal_bytes / jobs,
            "commits_job": spent.commits / jobs,
        }


def _loop(dsn: str, number: int, processes: int, history: bool, gate: Any, results: Any) -> None:
    conn: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
    conn.adapters.register_loader("json", ByteaBinaryLoader)
    conn.adapters.register_loader("timestamptz", Int8BinaryLoader)
    conn.execute(TURN_SETTINGS, prepare=False)
    shard = clock.new_shard_id()
    conn.execute("insert into wqcore.shard (id, process, queue) values (%s, gen_random_uuid(), 'default')", (shard,))
    lanes = Lanes({1})
    lanes.set_slots([slot for slot in range(SLOTS) if slot % processes == number])
    statement = Statements("wqcore")["turn"]
    decode = msgspec.json.Decoder(BenchNoop).decode
    done: list[tuple[Any, ...]] = []
    turn = 0
    results.put("ready")
    gate.wait()
    began_cpu = time.process_time()
    while True:
        slots, priorities, after = lanes.plan()
        due_at, due_id = lanes.due_cursors()
        turn += 1
        rows = conn.execute(
            statement,
            {
                "shard": shard,
                "queue": "default",
                "durable": bool(done),
                "done_ids": BigIntArray(sorted([row[Row.ID] for row in done])),
                "done_revisions": BigIntArray([]),
                "done_ago_us": BigIntArray([0] * len(done) if history else []),
                "keep_hours": 24.0 if history else 0.0,
                "lane_slots": BigIntArray(slots),
                "lane_priorities": BigIntArray(priorities),
                "lane_after": BigIntArray(after),
                "due_after_us": BigIntArray(due_at),
                "due_after_id": BigIntArray(due_id),
                "exclude": BigIntArray([]),
                "busy_keys": [],
                "n": BATCH,
                "turn": turn,
                "since": turn - 1,
                "held": BigIntArray([]),
                "changed": bool(done),
            },
            prepare=True,
            binary=True,
        ).fetchall()
        done = rows if rows[0][0] is not None else []
        if not done and turn > 1:
            break
        lanes.took(done, BATCH)
        for row in done:
            decode(row[Row.ARGS])
    results.put((time.monotonic(), time.process_time() - began_cpu))
    conn.execute("delete from wqcore.claim where shard = %s", (shard,))
    conn.execute("delete from wqcore.shard where id = %s", (shard,))
    conn.close()
