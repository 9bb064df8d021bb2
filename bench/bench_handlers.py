"""The jobs that the benchmarks run in wqcore: no-ops that tell the probe, with the peers' payload."""

from __future__ import annotations

import asyncio
import os

import msgspec

import wqcore

from .peers.probe import count

WAIT_S = float(os.environ.get("BENCH_WAIT_MS", "0")) / 1000


@wqcore.kind("benchNoop", timeout_s=30)
class BenchNoop(msgspec.Struct):
    """One id, as in a trigger.dev job."""

    id: str


@wqcore.handler
async def bench_noop(args: BenchNoop, job: wqcore.Job) -> None:
    """Counts; what is measured is the queue."""
    count(args.id)
    if WAIT_S:
        await asyncio.sleep(WAIT_S)


@wqcore.kind("benchBlocked", serial_key="blocked-{key}", timeout_s=3600, priority=2)
class BenchBlocked(msgspec.Struct):
    """A job behind one of a few keys; the first of each holds it for `seconds`."""

    key: int
    seconds: float = 0.0


@wqcore.handler
async def bench_blocked(args: BenchBlocked, job: wqcore.Job) -> None:
    """Holds its key."""
    if args.seconds:
        await asyncio.sleep(args.seconds)
