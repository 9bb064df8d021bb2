"""Pausing queues, and changing what they may do while they run.

A change is a row; the notification only hastens it. A worker that misses it finds it at its next look, within
`poll_interval_s`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from wqcore.db.request import Query, Request
from wqcore.errors import InvalidLimits, UnknownQueue
from wqcore.settings import Limits


class QueueInfo(msgspec.Struct, frozen=True):
    """A queue as it is set.

    Attributes:
        name (str), slots (int): fixed at its first start.
        paused_at (datetime | None): since when it is paused.
        limits (dict): what was changed at run time; all else is as the configuration of the masters has it.
        keep_hours (dict): outcome → hours that finished jobs stay in the history.
    """

    name: str
    slots: int
    paused_at: dt.datetime | None
    limits: dict[str, Any]
    keep_hours: dict[str, float]


def queues() -> Request[list[QueueInfo]]:
    """All queues, by name."""
    return [QueueInfo(*row) for row in (yield Query("queue_list"))]


def pause(queue: str | None) -> Request[int]:
    """Pauses a queue, or all (None); returns how many were not paused before."""
    yield from _known(queue)
    return (yield Query("pause", {"queue": queue}))[0][0]  # type: ignore[no-any-return]


def resume(queue: str | None) -> Request[int]:
    """Resumes a queue, or all (None); returns how many were paused before."""
    yield from _known(queue)
    return (yield Query("resume", {"queue": queue}))[0][0]  # type: ignore[no-any-return]


def set_limits(queue: str, changes: dict[str, Any]) -> Request[dict[str, Any]]:
    """Changes limits at run time; None takes a change back, so that the configuration counts again.

    Returns all changes that are then in force. Raises InvalidLimits or UnknownQueue.
    """
    yield from _known(queue)
    unknown = set(changes) - set(Limits.__struct_fields__)
    if unknown:
        raise InvalidLimits(f"no such limit: {sorted(unknown)}; there are {', '.join(Limits.__struct_fields__)}")
    given = {name: msgspec.to_builtins(value) for name, value in changes.items() if value is not None}
    try:
        msgspec.convert(given, Limits)
    except msgspec.ValidationError as error:
        raise InvalidLimits(f"limits of queue {queue!r}: {error}") from None
    removed = [name for name, value in changes.items() if value is None]
    rows = yield Query(
        "queue_limits", {"queue": queue, "given": msgspec.json.encode(given).decode(), "removed": removed}
    )
    return msgspec.json.decode(rows[0][0])  # type: ignore[no-any-return]


def _known(queue: str | None) -> Request[None]:
    if queue is None:
        return
    names = [name for name, _ in (yield Query("queues"))]
    if queue not in names:
        raise UnknownQueue(f"unknown queue {queue!r}; known are: {', '.join(sorted(names)) or 'none'}")
