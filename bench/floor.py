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

from .bench_handlers import BenchNoop
from .cluster import Cluster

BATCH = 1000
SLOTS = 16


def drain(cluster: Cluster, processes: int, *, history: bool) -> float:
    """Drains the queue; returns jobs per second from the first claim to the last acknowledgement."""
    jobs = cluster.scalar("select count(*) from wqcore.job")
    context = multiprocessing.get_context("fork")
    gate, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_loop, args=(cluster.dsn, number, processes, history, gate, results))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        results.get(timeout=30)
    began = time.monotonic()
    gate.set()
    ended = max(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    left = cluster.scalar("select count(*) from wqcore.job")
    if left:
        raise RuntimeError(f"the bare loop left {left} jobs")
    return float(jobs / (ended - began))


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
                "done_ids": BigIntArray([row[Row.ID] for row in done]),
                "done_revisions": BigIntArray([row[Row.REVISION] for row in done]),
                "done_ago_us": BigIntArray([0] * len(done)),
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
    results.put(time.monotonic())
    conn.execute("delete from wqcore.claim where shard = %s", (shard,))
    conn.execute("delete from wqcore.shard where id = %s", (shard,))
    conn.close()
