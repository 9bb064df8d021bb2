"""What a program does when a worker process starts and when it stops.

Start hooks run one after the other before the first job is fetched; one that fails or takes too long ends the start.
Stop hooks run after the last job, the last registered first, with a time limit together; a failing one is logged and
does not keep the others from running. Resources are closed after them. A worker that is killed runs none of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from wqcore.errors import DeclarationError, HookFailed
from wqcore.signature import where

log = logging.getLogger("wqcore.worker")

STOP_LIMIT_S = 3.0
"""For all stop hooks of a process: a master kills what is left 5 s after the time that handlers have in a drain."""

Hook = Callable[[], Awaitable[None]]
HookFunction = TypeVar("HookFunction", bound=Hook)

_start: list[Hook] = []
_stop: list[Hook] = []


def on_start(function: HookFunction) -> HookFunction:
    """Has `function`, an `async def` without parameters, run in each worker process before its first job.

    It may open resources (`await pool()`). A failing hook ends the worker's start: one line in the log, and exit code
    70 after three tries. All start hooks together have `process.boot_timeout_s`. Raises DeclarationError.
    """
    _check(function)
    _start.append(function)
    return function


def on_stop(function: HookFunction) -> HookFunction:
    """Has `function`, an `async def` without parameters, run in each worker process after its last job.

    The last registered runs first; together they have 3 s. Resources are still open, and are closed afterwards. They
    do not run in a worker whose start failed, or that was killed. Raises DeclarationError.
    """
    _check(function)
    _stop.append(function)
    return function


async def run_start_hooks(timeout_s: float) -> None:
    """Runs the start hooks. Raises HookFailed, which names the hook."""
    try:
        async with asyncio.timeout(timeout_s):
            for hook in _start:
                try:
                    await hook()
                except Exception as error:  # user code: whatever it raises becomes one line that names it
                    raise HookFailed(f"start hook {where(hook)} failed: {type(error).__name__}: {error}") from error
    except TimeoutError:
        raise HookFailed(
            f"start hook {where(hook)} was still running after {timeout_s:g} s: make it faster or raise "
            "process.boot_timeout_s"
        ) from None


async def run_stop_hooks(timeout_s: float = STOP_LIMIT_S) -> None:
    """Runs the stop hooks; what they raise is logged."""
    try:
        async with asyncio.timeout(timeout_s):
            for hook in reversed(_stop):
                try:
                    await hook()
                except Exception:  # user code: the other hooks and the worker's exit must not depend on it
                    log.exception("stop hook %s failed", where(hook))
    except TimeoutError:
        log.error("stop hook %s was still running after %g s; the rest is left out", where(hook), timeout_s)


def _check(function: Hook) -> None:
    if not inspect.iscoroutinefunction(function) or inspect.signature(function).parameters:
        raise DeclarationError(f"hook {where(function)} must be an `async def` without parameters")
