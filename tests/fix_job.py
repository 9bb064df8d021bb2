"""Gives `make_job`, a `wqcore.Job` as a worker would hand it to a handler, and `app`, which sets `[app]` for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

import wqcore
from wqcore.job import Row
from wqcore.resource import close_resources, use_app_settings

CREATED_AT_US = 846_000_000_000_000
"""Microseconds since 2000, as the turn returns times: 2026-10-22 16:00 UTC."""


def make_job(job_id: int = 7, *, attempt: int = 1, queue: str = "internal-queue") -> wqcore.Job:
    """A job whose handler is called outside a worker; it cannot `complete_tx`."""
    row: list[Any] = [None] * len(range(Row.METADATA + 1))
    row[Row.ID], row[Row.ATTEMPT], row[Row.MAX_ATTEMPTS], row[Row.CREATED_AT] = job_id, attempt - 1, 3, CREATED_AT_US
    return wqcore.Job(tuple(row), queue, _Outside())


@pytest_asyncio.fixture
async def app() -> AsyncIterator[Callable[..., None]]:
    """`app(smtp={…}, endpoints={…})` sets what `wqcore.app_settings` reads; resources are closed after the test.

    `[app.http]` opens the guard for the tests' servers on loopback, unless a test says otherwise.
    """

    def use(**tables: Any) -> None:
        use_app_settings(tables | {"http": {"allow_private_addresses": True} | tables.get("http", {})})

    yield use
    await close_resources()
    use_app_settings({})


class _Outside:
    async def complete_tx(self, job: wqcore.Job, conn: Any) -> None:
        raise AssertionError("this job was not claimed by a worker")

    def progress(self, job_id: int, fraction: float, note: str | None) -> None: ...
