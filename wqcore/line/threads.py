"""`def` handlers run in threads, at most one a seat, and a seat waits for its thread however long that takes.

A thread cannot be killed. So a cancellation (time-out, request, shutdown) only makes `job.stopping` true; the job keeps
its seat, its serial key and its claim until the function has ended, and nothing else of it runs meanwhile. What the
function returns or raises then decides: a return completes the job. Of what it raises, `Discard`, `Cancel` and
`LeaseLost` count as they are; everything else counts as the cancellation that came before it.

The threads are daemons: a process may end without them. A worker that has to leave one behind ends without giving its
lease up, so that its jobs are free only when the process, and with it the thread, is dead (`proc/entry.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from wqcore.errors import LeaseLost
from wqcore.job import Job
from wqcore.line import current
from wqcore.outcome import Cancel, Discard


class Threads:
    """The threads of one worker process; they are started when they are needed, and then kept."""

    def __init__(self, name: str) -> None:
        self.busy = 0
        """Functions that have not ended."""
        self.closing = False
        self._name = name
        self._count = 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work`, which raises nothing, in a thread that is free."""
        self.busy += 1
        if self.busy > self._count:
            self._count += 1
            threading.Thread(target=self._serve, name=f"wqcore {self._name} {self._count}", daemon=True).start()
        self._work.put(work)

    def in_copy(self, end: Callable[[], None]) -> None:
        """In a process that a function has forked: its thread calls `end` when the function returns there too."""
        self._work = SimpleQueue()
        self._work.put(end)

    def close(self) -> None:
        """Lets idle threads end; whoever waits for a busy one stops waiting when it is cancelled."""
        self.closing = True
        for _ in range(self._count):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what the function held must not live until the next one


class _Call:
    """One call of a function in a thread, and who waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.over = False
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def ended(self, threads: Threads, error: BaseException | None) -> None:
        """On the loop: the function has ended."""
        threads.busy -= 1
        self.over, self.error = True, error
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class InThread:
    """A handler as the executor calls it: waits until `function` has ended in a thread."""

    def __init__(self, function: Callable[[Any, Job], Any], threads: Threads) -> None:
        self._function = function
        self._threads = threads

    async def __call__(self, args: Any, job: Job) -> None:
        call = _Call(asyncio.get_running_loop())
        context = contextvars.copy_context()
        self._threads.submit(lambda: context.run(self._in_thread, call, args, job))
        asked = False
        while not call.over:
            call.waiter = call.loop.create_future()
            try:
                await call.waiter
            except asyncio.CancelledError:
                if self._threads.closing:
                    raise
                asked = True
        if call.error is None:
            return
        if asked and not isinstance(call.error, Discard | Cancel | LeaseLost):
            raise asyncio.CancelledError from call.error
        raise call.error

    def _in_thread(self, call: _Call, args: Any, job: Job) -> None:
        error: BaseException | None = None
        try:
            with current.running(job):
                result = self._function(args, job)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("the handler returned a coroutine, which nobody ran: write it as an `async def`")
        except BaseException as raised:  # every way out of a handler is an outcome: also SystemExit
            error = raised
        try:
            call.loop.call_soon_threadsafe(call.ended, self._threads, error)
        except RuntimeError:
            return  # the loop has been closed: the worker has left without this thread
