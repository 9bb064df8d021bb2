"""Nothing that handlers leave behind holds a worker up, outlives it, or writes in its name.

    threads     a worker ends without them (`asyncio.to_thread` included); they end with the process
    tasks       are cancelled at the end, and have `TASKS_LIMIT_S`
    resources   have `CLOSE_LIMIT_S` to close
    processes   that a handler forked end with the worker at the latest, because they hold copies of its sockets: with one of
                these alive the server would not notice that the worker is gone. Programs that were executed are not touched.
    copies      a forked process that comes back from the handler, or awaits, is a second worker with the same connection,
                sheet and jobs. It ends at its next write on the board or its next turn of the loop, and what it sends in
                between goes nowhere. Callbacks that were ready in the very turn of the loop may still run in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from wqcore.proc import board
from wqcore.proc.children import die_with
from wqcore.resource import close_resources

log = logging.getLogger("wqcore.worker")

TASKS_LIMIT_S = 1.0
CLOSE_LIMIT_S = 10.0
EXIT_COPY = 70


def run(main: Coroutine[Any, Any, int]) -> int:
    """Runs a child's loop. The loop is not closed: that would wait for threads, and the process ends next."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main)


async def close(spared: asyncio.Task[Any]) -> None:
    """Closes what the handlers have opened, in bounded time; `spared` is the task that says that this loop turns."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await close_resources()
    except TimeoutError:
        log.error("resources were still being closed after %g s; the rest is left out", CLOSE_LIMIT_S)
    tasks = asyncio.all_tasks() - {spared, asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=TASKS_LIMIT_S)
        if left:
            names = ", ".join(sorted(task.get_name() for task in left)[:5])
            log.warning("%d tasks ignore their cancellation and end with the process: %s", len(left), names)


def guard_copies(loop: asyncio.AbstractEventLoop, disarm: Callable[[Callable[[], None]], None]) -> None:
    """Makes processes that handlers fork from now on harmless.

    Args:
        loop: the worker's loop.
        disarm: called in each copy with what ends it; must see to it that nothing reaches the database, nor another handler.
    """
    worker = os.getpid()

    def end() -> None:
        log.error("a handler forked this process (%d) and came back to its worker in both: this copy ends", os.getpid())
        os._exit(EXIT_COPY)

    def in_copy() -> None:
        if os.getppid() == worker:  # not for what its children fork: a daemon's parent leaves at once
            die_with(worker)
        board.instead_of_writing(end)
        disarm(end)
        loop.call_soon(end)

    os.register_at_fork(after_in_child=in_copy)
