"""The typed no-op that the benchmarks drain."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("benchNoop", timeout_s=30)
class BenchNoop(msgspec.Struct):
    """The args of a trigger.dev job: one id."""

    id: str


@wqcore.handler
async def bench_noop(args: BenchNoop, job: wqcore.Job) -> None:
    """Does nothing: what is measured is the queue."""
