"""The typed no-ops that the benchmarks drain, without a key, each with its own, and blocked behind a few."""

from __future__ import annotations

import asyncio
import time

import msgspec

import wqcore


@wqcore.kind("benchNoop", timeout_s=30)
class BenchNoop(msgspec.Struct):
    """The args of a trigger.dev job: one id."""

    id: str


@wqcore.handler
async def bench_noop(args: BenchNoop, job: wqcore.Job) -> None:
    """Does nothing: what is measured is the queue."""


@wqcore.kind("benchKeyed", serial_key="key-{id}", timeout_s=30)
class BenchKeyed(msgspec.Struct):
    """The same with a serial key of its own."""

    id: str


@wqcore.handler
async def bench_keyed(args: BenchKeyed, job: wqcore.Job) -> None:
    """Does nothing."""


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


@wqcore.kind("benchDue", timeout_s=30)
class BenchDue(msgspec.Struct):
    """A job whose time comes at `at` (seconds since 1970)."""

    at: float


@wqcore.handler
async def bench_due(args: BenchDue, job: wqcore.Job) -> None:
    """Leaves behind how late it started, in seconds."""
    job.output(time.time() - args.at)
