"""Runs the commands of README.md for a queue that Python drives, each queue measured by the same loops.

A program describes its queue, says how to set it up, how to insert and how to work, and calls `main`. The clocks run here:
around the insert calls, with the making of ids and args (a producer pays for those too), without the time to connect.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NotRequired, Protocol, TypedDict

from bench.peers import probe

FED_FROM = probe.TIMED_BELOW
RUNTIME = f"Python {platform.python_version()}"
WAIT_S = float(os.environ.get("BENCH_WAIT_MS") or 0) / 1000
"""How long a handler waits after it has called the probe."""

USAGE = "describe | setup | feed | single COUNT | paced COUNT EVERY_MS | work CONCURRENCY"


class Options(TypedDict):
    """How the jobs of a `feed` line differ from plain ones."""

    priorities: NotRequired[int]
    keys: NotRequired[int]
    delay_s: NotRequired[float]


class Description(TypedDict):
    """What `describe` prints; README.md says what the fields mean."""

    title: str
    version: str
    runtime: str
    settings: str
    table: str
    unfinished: str
    any_unfinished: str
    keeps_finished: bool
    forks: bool
    processes: int
    concurrency: int
    jobs_scale: float
    feed_options: list[str]


class Producer(Protocol):
    """Inserts jobs over connections that are open."""

    async def insert(self, number: int) -> None:
        """Inserts one job, durably."""

    async def insert_many(self, first: int, count: int, options: Options) -> None:
        """Inserts the jobs numbered from `first`, by the fastest bulk call."""


def main(
    description: Description,
    *,
    setup: Callable[[str], Awaitable[None]],
    producer: Callable[[str], AbstractAsyncContextManager[Producer]],
    work: Callable[[str, int], Awaitable[None]],
) -> None:
    """Runs the command of the command line. The functions get the DSN first; `work` returns after SIGTERM."""
    match sys.argv[1:]:
        case ["describe"]:
            _say(description)
        case ["setup"]:
            _run(_await(setup(_dsn())))
        case ["feed"]:
            _run(_feed(producer(_dsn()), description["feed_options"]))
        case ["single", count]:
            _run(_single(producer(_dsn()), int(count)))
        case ["paced", count, every_ms]:
            _run(_paced(producer(_dsn()), int(count), float(every_ms) / 1000))
        case ["work", concurrency]:
            _run(_await(work(_dsn(), int(concurrency))))
            probe.flush()
        case _:
            sys.exit(f"usage: {sys.argv[0]} {USAGE}")


def chunks(first: int, count: int, size: int) -> Iterator[range]:
    """The numbers from `first`, `count` of them, in ranges of at most `size`."""
    for start in range(first, first + count, size):
        yield range(start, min(start + size, first + count))


async def _feed(connected: AbstractAsyncContextManager[Producer], able: list[str]) -> None:
    first = FED_FROM
    async with connected as producer:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            count, _, told = line.partition(" ")
            options: Options = json.loads(told) if told.strip() else {}
            if unable := set(options) - set(able):
                sys.exit(f"this queue cannot do {', '.join(sorted(unable))}: see feed_options of describe")
            began = time.monotonic()
            await producer.insert_many(first, int(count), options)
            _say({"seconds": time.monotonic() - began})
            first += int(count)


async def _single(connected: AbstractAsyncContextManager[Producer], count: int) -> None:
    async with connected as producer:
        began = time.monotonic()
        for number in range(count):
            await producer.insert(number)
        _say({"seconds": time.monotonic() - began})


async def _paced(connected: AbstractAsyncContextManager[Producer], count: int, every_s: float) -> None:
    returned_ns: list[int] = []
    async with connected as producer:
        began = time.monotonic()
        for number in range(count):
            # After a slow insert the next comes at once: the grid stays, so no job is spared.
            await asyncio.sleep(began + number * every_s - time.monotonic())
            await producer.insert(number)
            returned_ns.append(time.monotonic_ns())
    _say({"returned_ns": returned_ns})


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def _run(main_: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main_)
    else:
        uvloop.run(main_)


def _dsn() -> str:
    return os.environ["BENCH_DSN"]


def _say(told: object) -> None:
    print(json.dumps(told), flush=True)
