"""What somebody asks of the database, apart from how it is waited for: one generator serves asyncio and plain threads.

A request yields `Query` (a statement of `db/sql/` and its parameters), is sent the rows, and returns its result; it
yields `Pause` when it wants to look again later. It holds no connection: each query may run on another one, in a
transaction of its own, unless the caller passes its own connection.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

Rows = list[tuple[Any, ...]]


class Query(NamedTuple):
    """A statement by its name, and its parameters."""

    name: str
    params: Mapping[str, Any] = MappingProxyType({})


class Pause(NamedTuple):
    """Wait for so many seconds without a connection; the request is then sent no rows."""

    seconds: float


Request = Generator[Query | Pause, Rows, T]
