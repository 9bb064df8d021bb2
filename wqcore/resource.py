"""What handlers share within a worker: the program's own settings, and resources that are opened once a process.

`settings_for("smtp", Smtp)` declares that the program needs the table `[app.smtp]` of the configuration as the struct
`Smtp`, and returns what to call for it; `check-config` and the start of the workers say what does not fit.
`@resource` turns an async generator into something each worker opens at its first use and closes when it ends::

    @wqcore.resource
    async def http() -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession() as session:
            yield session

    async with (await http()).get(url) as response:
        ...

A worker that is killed closes nothing; whatever a resource holds must bear that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar

import msgspec

from wqcore.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S")

_app: dict[str, Any] = {}
_declared: list[AppSettings[Any]] = []
_opened: dict[int, Resource[Any]] = {}
_stack: AsyncExitStack | None = None


def use_app_settings(app: dict[str, Any]) -> None:
    """Sets what `app_settings` reads. Called once a process, by whoever loaded the configuration."""
    _app.clear()
    _app.update(app)
    for declared in _declared:
        declared._forget()


def app_settings(section: str, as_type: type[S]) -> S:
    """The table `[app.<section>]` as `as_type` (a struct, or a dict of them); a missing table is an empty one.

    Raises ConfigError, which names the key that does not fit. `settings_for` says it before the first job.
    """
    try:
        return msgspec.convert(_app.get(section, {}), as_type, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError([_problem(section, error)]) from None


class AppSettings(Generic[S]):
    """A table `[app.<section>]` that the program needs; call it to read the table."""

    def __init__(self, section: str, as_type: type[S]) -> None:
        self.section = section
        self._as_type = as_type
        self._value: S | None = None

    def __call__(self) -> S:
        """The settings. Raises ConfigError, which a worker that has started never sees."""
        if self._value is None:
            self._value = app_settings(self.section, self._as_type)
        return self._value

    def _forget(self) -> None:
        self._value = None


def settings_for(section: str, as_type: type[S]) -> AppSettings[S]:
    """Declares that the program needs `[app.<section>]` as `as_type`; call the result to read it.

    `as_type` is a struct, or a dict of structs for a table whose keys are names. A missing table is an empty one.
    `wqcore check-config` and the start of the workers refuse a configuration that does not fit, and name the key::

        shop = wqcore.settings_for("shop", Shop)

        ... shop().dsn
    """
    declared = AppSettings(section, as_type)
    _declared.append(declared)
    return declared


def app_problems() -> list[str]:
    """What does not fit of the tables that the imported modules have declared by `settings_for`."""
    problems = []
    for declared in _declared:
        try:
            declared()
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def _problem(section: str, error: msgspec.ValidationError) -> str:
    """An error of msgspec with the path turned into the key of the configuration."""
    text, _, path = str(error).partition(" - at `$")
    keys = re.sub(r"\[\.\.\.\]", ".<name>", path.rstrip("`"))
    missing = f"; there is no [app.{section}]" if section not in _app else ""
    return f"app.{section}{keys}: {text}" if keys else f"[app.{section}]: {text}{missing}"


class Resource(Generic[T]):
    """A resource of a worker process; await a call of it to get the opened value."""

    def __init__(self, function: Callable[[], AsyncIterator[T]]) -> None:
        self._open = asynccontextmanager(function)
        self._value: asyncio.Future[T] | None = None
        self.__doc__ = function.__doc__

    async def __call__(self) -> T:
        if self._value is None or (self._value.done() and (self._value.cancelled() or self._value.exception())):
            self._value = asyncio.ensure_future(self._enter())
        return await asyncio.shield(self._value)

    async def _enter(self) -> T:
        global _stack
        if _stack is None:
            _stack = AsyncExitStack()
        value = await _stack.enter_async_context(self._open())
        _opened[id(self)] = self
        return value

    def _forget(self) -> None:
        self._value = None


def resource(function: Callable[[], AsyncIterator[T]]) -> Resource[T]:
    """Makes an async generator function (one `yield`) a resource; see the module's docstring."""
    return Resource(function)


async def close_resources() -> None:
    """Closes what this process has opened, in reverse order. Called by the worker after its last job."""
    global _stack
    stack, _stack = _stack, None
    for opened in _opened.values():
        opened._forget()
    _opened.clear()
    if stack is not None:
        await stack.aclose()
