"""Wake-ups: which channel a queue's notifications use, and what they say. A hint; polling is the truth.

The channel is `wq:` and a hash of schema and queue, so that any name fits PostgreSQL's 63 bytes and only the shards of
that queue are woken. The payload is `<slot>:<priority>` for ready jobs, `due` for jobs with a time, `past` when that
is long past, `slots` when slots became free or a shard wants some, `queue` when the queue was paused or limited, `cancel`
when somebody asked for a cancellation, `gone:<id>,<id>` for jobs that were deleted, `back:<id>,<id>` for finished ones
that were put back; several are joined by spaces. An unreadable payload wakes everything.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import NamedTuple

PAST_S = 5.0


class Wake(NamedTuple):
    """What a notification said."""

    ready: list[tuple[int, int]]
    """(slot, priority) pairs that have new jobs."""
    due: bool
    past: bool
    """A job has got a time so long past that only a whole look finds it (lanes.py)."""
    slots: bool
    look: bool
    """Something else has changed (a pause, a limit, a cancellation): look."""
    gone: list[int]
    """Ids of jobs that were deleted while they waited: a claim of them is void."""
    back: list[int]
    """Ids of jobs that have come back from the history: a claim of them is good again."""


def channel(schema: str, queue: str) -> str:
    """The channel of a queue, e.g. `wq:5f3a…` (35 bytes)."""
    return "wq:" + hashlib.sha256(f"{schema}\x00{queue}".encode()).hexdigest()[:32]


def schedules_channel(schema: str) -> str:
    """The channel on which keepers hear that a schedule was changed; no queue has an empty name."""
    return channel(schema, "")


def is_past(run_at: dt.datetime | None) -> bool:
    """Whether a look that is not whole could miss a job with this time (`DUE_SLACK_US` in lanes.py is twice as much)."""
    return run_at is not None and (dt.datetime.now(dt.UTC) - run_at).total_seconds() > PAST_S


def payload(pairs: set[tuple[int, int]], *, due: bool, past: bool = False) -> str:
    """The payload for new jobs; more pairs than fit one notification become `all`."""
    words = [f"{slot}:{priority}" for slot, priority in sorted(pairs)]
    if due:
        words.append("due")
    if past:
        words.append("past")
    return " ".join(words) if len(words) <= 500 else "all"


def parse(text: str) -> Wake | None:
    """What `text` says; None means: look everywhere."""
    ready: list[tuple[int, int]] = []
    gone: list[int] = []
    back: list[int] = []
    words = text.split()
    for word in words:
        name, _, value = word.partition(":")
        if word in ("due", "past", "slots", "cancel", "queue"):
            continue
        try:
            if name == "gone":
                gone += map(int, value.split(","))
            elif name == "back":
                back += map(int, value.split(","))
            else:
                ready.append((int(name), int(value)))
        except ValueError:
            return None
    return Wake(ready, "due" in words, "past" in words, "slots" in words, "cancel" in words or "queue" in words, gone, back)
