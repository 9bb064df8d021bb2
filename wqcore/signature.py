"""Which forms a handler may have: `async def`, `def` (in a thread), or `async def` for a batch of jobs.

`read` looks at a function once, when it is declared, and returns what runs it and its args type. What it returns can be
awaited with (args, job) anywhere; a worker replaces the second and third form by its threads and its batches.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from wqcore.errors import DeclarationError
from wqcore.job import Job

A = TypeVar("A")

Handler = Callable[[Any, Job], Awaitable[None]]

BATCH_MAX = 10_000
BATCH_WAIT_S_MAX = 60.0


class BatchItem(Generic[A]):
    """One job of a batch.

    Attributes:
        args: the job's args, of its kind's type.
        job (wqcore.Job): the job; its `output` and `complete_tx` are its own, `stopping` says that it was cancelled.
    """

    __slots__ = ("args", "job")

    def __init__(self, args: A, job: Job) -> None:
        self.args = args
        self.job = job

    def __repr__(self) -> str:
        return f"<BatchItem {self.job!r}>"


class ThreadHandler:
    """A `def` handler."""

    def __init__(self, function: Callable[..., Any], with_job: bool) -> None:
        self._function = function
        self.call: Callable[[Any, Job], Any] = function if with_job else self._without_job

    def _without_job(self, args: Any, job: Job) -> Any:
        return self._function(args)

    async def __call__(self, args: Any, job: Job) -> None:
        await asyncio.to_thread(self.call, args, job)


class BatchHandler:
    """A handler of many jobs at a time."""

    def __init__(
        self, function: Callable[[list[BatchItem[Any]]], Awaitable[Any]], max_batch: int, max_wait_s: float
    ) -> None:
        self.function = function
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s

    async def run(self, items: list[BatchItem[Any]]) -> list[BaseException | None]:
        """What became of each item: None when it is completed."""
        try:
            results = await self.function(items)
            return _aligned(results, len(items))
        except BaseException as error:  # every way out of a handler is an outcome of its jobs: also cancellation
            return [error] * len(items)

    async def __call__(self, args: Any, job: Job) -> None:
        [error] = await self.run([BatchItem(args, job)])
        if error is not None:
            raise error


def _aligned(results: Any, count: int) -> list[BaseException | None]:
    """The results of a batch, a job each. Raises TypeError."""
    if results is None:
        return [None] * count
    found = list(results) if isinstance(results, Sequence) else None
    if found is None or len(found) != count:
        size = f"{len(found)} results" if found is not None else f"a {type(results).__name__}"
        raise TypeError(
            f"the batch handler returned {size} for {count} jobs: return None when all are completed, or a list with "
            "None or an exception for each job, in their order"
        )
    for result in found:
        if result is not None and not isinstance(result, BaseException):
            raise TypeError(
                f"the batch handler returned a {type(result).__name__} for a job: return None or an exception for each "
                "(job.output keeps a value)"
            )
    return found


class _WithoutJob:
    """Calls a one-parameter handler; a class so that it costs one call and no extra coroutine."""

    def __init__(self, function: Callable[[Any], Awaitable[None]]) -> None:
        self._function = function

    def __call__(self, args: Any, job: Job) -> Awaitable[None]:
        return self._function(args)


def read(function: Callable[..., Any], max_batch: int | None, max_wait_s: float) -> tuple[Handler, type]:
    """What runs `function`, and its args type. Raises DeclarationError."""
    name = where(function)
    hint, count = _first_parameter(function, name)
    if max_batch is not None:
        return _read_batch(function, name, hint, count, max_batch, max_wait_s)
    if get_origin(hint) is list:
        raise DeclarationError(f"handler {name} takes a list: write @wqcore.handler(max_batch=…) for a batch handler")
    if not isinstance(hint, type):
        raise DeclarationError(f"handler {name}: annotate its first parameter with the args type, not {hint!r}")
    if inspect.iscoroutinefunction(function):
        return (function if count == 2 else _WithoutJob(function)), hint
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"handler {name} is a generator, which nobody would run: use no `yield` in it")
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise DeclarationError(
            f"handler {name} is an `async def` inside a decorator that is not: let the decorator return an `async def`"
        )
    return ThreadHandler(function, count == 2), hint


def _read_batch(
    function: Callable[..., Any], name: str, hint: Any, count: int, max_batch: int, max_wait_s: float
) -> tuple[Handler, type]:
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(
            f"batch handler {name} must be an `async def`; move what blocks into `await asyncio.to_thread(…)`"
        )
    item = get_args(hint)[0] if get_origin(hint) is list else None
    if count != 1 or get_origin(item) is not BatchItem:
        raise DeclarationError(
            f"batch handler {name} must take one parameter: (items: list[wqcore.BatchItem[YourArgs]]); each item has "
            "`args` and `job`"
        )
    if not 1 <= max_batch <= BATCH_MAX:
        raise DeclarationError(f"batch handler {name}: max_batch {max_batch} is outside 1 … {BATCH_MAX}")
    if not 0 <= max_wait_s <= BATCH_WAIT_S_MAX:
        raise DeclarationError(f"batch handler {name}: max_wait_s {max_wait_s} is outside 0 … {BATCH_WAIT_S_MAX:g}")
    return BatchHandler(function, max_batch, max_wait_s), get_args(item)[0]


def _first_parameter(function: Callable[..., Any], name: str) -> tuple[Any, int]:
    """The type of the first parameter, and how many parameters there are."""
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) not in (1, 2):
        raise DeclarationError(f"handler {name} must take (args) or (args, job), not {len(parameters)} parameters")
    hint = get_type_hints(function).get(parameters[0].name)
    if hint is None:
        raise DeclarationError(f"handler {name}: annotate its first parameter with the args type")
    return hint, len(parameters)


def where(thing: Any) -> str:
    """Where something is defined, for an error."""
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', thing)}"
