"""The stream of outcomes: each one that the history keeps, in the order of the transactions that wrote them, once.

A row of the history carries the id of the transaction that wrote it (xid). A reader has a position, (xid, id), and asks
for rows beyond it whose transaction is older than every one that still runs: nothing can appear among those later. So
nothing is missed that commits late, and nothing is seen twice; a writing transaction that stays open delays the stream
until it ends, and loses nothing. Rows are read in windows of transactions, which grow where there is nothing and shrink
where there is much, so that a reader that is far behind sorts no more at a time than one that is not.

The reader pulls, at its own pace, and nobody knows of it: a slow or a dead one costs the others nothing. What retention
drops before a reader came to it is reported as a `Gap`. A reader that stops goes on at the position of its last event;
what a crash can repeat is only the event whose position it had not yet stored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from wqcore.db.request import Query, Request
from wqcore.errors import InvalidRequest
from wqcore.job import FINISHED, JobState

POLL_S = 0.25
BATCH_EVENTS = 500
WINDOW_XIDS_MIN, WINDOW_XIDS_MAX = 1, 1 << 14
"""Transactions that one statement looks at. A turn of a busy shard is one, with some hundred jobs."""
ID_MAX = (1 << 63) - 1


class OutcomeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A job has ended.

    Attributes:
        position (str): where to go on after this event.
        id (int), kind (str), queue (str), outcome (JobState): completed, cancelled or discarded.
        priority (int), attempt (int), serial_key, job_key (str | None): as stored.
        created_at, attempted_at (None: it never started), finished_at (datetime): the database's clock.
        error (str | None): the text of its last error, which a completed job can have from an earlier attempt.
        output: decoded JSON, or None.
    """

    position: str
    id: int
    kind: str
    queue: str
    outcome: JobState
    priority: int
    attempt: int
    serial_key: str | None
    job_key: str | None
    created_at: dt.datetime
    attempted_at: dt.datetime | None
    finished_at: dt.datetime
    error: str | None
    output: Any


class Gap(msgspec.Struct, frozen=True):
    """Outcomes that the history does not have any more may have come before this: the reader was away too long.

    Attributes:
        position (str): where to go on; what is left of that time still follows.
    """

    position: str


Event = OutcomeEvent | Gap


class Position(msgspec.Struct):
    """How far a reader is: (xid, id) of the last event, and up to which xid it knows of what has expired."""

    xid: int
    id: int
    expired: int

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}-{self.expired}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises InvalidRequest."""
        try:
            xid, job_id, expired = map(int, text.split("-"))
        except ValueError:
            raise InvalidRequest(f"{text!r} is not a position: pass the `position` of an event, unchanged") from None
        return cls(xid, job_id, expired)


class Reader:
    """One reader of the stream; `read` gives the next events, none when it has seen all."""

    def __init__(
        self,
        *,
        kinds: Sequence[str] | None,
        queues: Sequence[str] | None,
        outcomes: Sequence[JobState | str] | None,
        since: str | None,
    ) -> None:
        """None: all of them; `since` None: from now. Raises InvalidRequest."""
        for name, value in (("kinds", kinds), ("queues", queues), ("outcomes", outcomes)):
            if isinstance(value, str):
                raise InvalidRequest(f"{name} is a list of them: write [{value!r}]")
        unknown = sorted(set(outcomes or ()) - {*FINISHED})
        if unknown:
            raise InvalidRequest(f"outcomes {unknown} are not among {', '.join(sorted(FINISHED))}")
        self._wanted = {
            "kinds": None if kinds is None else list(kinds),
            "queues": None if queues is None else list(queues),
            "outcomes": None if outcomes is None else [str(outcome) for outcome in outcomes],
        }
        self._at = None if since is None else Position.parse(since)
        self._window = WINDOW_XIDS_MIN

    def read(self) -> Request[list[Event]]:
        """The next events; looks through empty windows up to the newest transaction."""
        if self._at is None:
            self._at = yield from _now()
        at = self._at
        while True:
            upto = at.xid + 1 + self._window
            rows = yield Query("outcomes", self._wanted | {"xid": at.xid, "id": at.id, "upto": upto, "n": BATCH_EVENTS})
            final, expired = min(rows[0][0], upto), rows[0][1]
            ended = [row[2:] for row in rows if row[2] is not None]
            events: list[Event] = []
            if expired > max(at.xid, at.expired):
                at.expired = expired
                events.append(Gap(str(at)))
            events += [_event(row, at) for row in ended]
            if len(ended) == BATCH_EVENTS:
                self._window = max(WINDOW_XIDS_MIN, self._window // 2)
                return events
            if final - 1 > at.xid:
                at.xid, at.id = final - 1, ID_MAX
            if final < upto:
                return events
            if len(ended) < BATCH_EVENTS // 2:
                self._window = min(WINDOW_XIDS_MAX, self._window * (2 if ended else 4))
            if events:
                return events


def position() -> Request[str]:
    """The end of the stream now."""
    return str((yield from _now()))


def _now() -> Request[Position]:
    """Just before the oldest transaction that still writes: whatever ends from now on comes after it."""
    rows = yield Query(
        "outcomes",
        {"xid": 0, "id": 0, "upto": 0, "n": 0, "kinds": None, "queues": None, "outcomes": None},
    )
    xmin, expired = rows[0][:2]
    return Position(xmin - 1, ID_MAX, expired)


def _event(row: tuple[Any, ...], at: Position) -> OutcomeEvent:
    """The event of a row, and the position moved to it."""
    at.xid, at.id, kind, queue, outcome, *rest = row
    names = OutcomeEvent.__struct_fields__[5:]
    return OutcomeEvent(
        position=str(at),
        id=at.id,
        kind=kind,
        queue=queue,
        outcome=JobState(outcome),
        **dict(zip(names, rest, strict=True)),
    )
