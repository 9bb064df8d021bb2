"""What a program puts around every insert and every run: middleware, composed once, the first registered outermost.

A work middleware is an `async def (job, call_next)`; it runs on the event loop around handlers of every form, after
the args were decoded. An insert middleware is a plain function of one job, because both clients call it, also for each
item of a bulk insert; it holds nothing open and waits for nothing. Where none is registered, nothing is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from wqcore.errors import DeclarationError
from wqcore.job import Job
from wqcore.signature import Handler, where

CallNext = Callable[[], Awaitable[None]]
WorkMiddleware = Callable[[Job, CallNext], Awaitable[None]]


def composed(handler: Handler, middlewares: Sequence[WorkMiddleware]) -> Handler:
    """`handler` with its middleware; the handler itself when there is none."""
    for middleware in reversed(middlewares):
        handler = _Layer(middleware, handler)
    return handler


class _Layer:
    def __init__(self, middleware: WorkMiddleware, inner: Handler) -> None:
        self._middleware = middleware
        self._inner = inner

    def __call__(self, args: Any, job: Job) -> Awaitable[None]:
        return self._middleware(job, functools.partial(self._inner, args, job))


def check_work(function: Callable[..., Any]) -> None:
    """Raises DeclarationError when a function cannot be a work middleware."""
    if not inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != 2:
        raise DeclarationError(
            f"work middleware {where(function)} must be an `async def` of (job, call_next) that awaits call_next()"
        )


def check_insert(function: Callable[..., Any]) -> None:
    """Raises DeclarationError when a function cannot be an insert middleware."""
    if inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != 3:
        raise DeclarationError(
            f"insert middleware {where(function)} must be a plain function of (kind, args, options) that returns the "
            "options: it is called by SyncClient too, so it cannot be awaited"
        )
