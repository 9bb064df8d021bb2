"""What became of each run, kept until the database has it: completed, runs again, or ended.

Completed jobs ride with the next turn. The others are statements of their own, sent before that turn, because the turn
drops them from the claim. A text that PostgreSQL refuses must not hold up its batch: texts are cleaned here, and a
batch that is refused all the same is halved until the offender stands alone.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from wqcore.job import ERROR_TEXT_CHARS_MAX, Row

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_ID, _REVISION = Row.ID, Row.REVISION


class Again(NamedTuple):
    """A job that runs again. `error` is None for a snooze, which leaves `attempt` as it was."""

    id: int
    revision: int
    attempt: int
    delay_s: float
    error: str | None
    ready_us: int = 0
    """When the claimed job was ready, in µs since 2000: what tells a snooze that is sent again. A failure needs none."""
    created_us: int = 0
    """When the job was inserted, as `Row.CREATED_AT`."""


class Ended(NamedTuple):
    """A job that ended without completing, or that completed with an output."""

    id: int
    revision: int
    began: float
    outcome: str
    error: str | None
    output: str | None = None
    started: bool = True
    """False: it was cancelled before it ran, so no attempt is counted."""
    log: str | None = None
    """The lines that a completed job keeps, as JSON; those of one that failed are in its error."""
    created_us: int = 0
    """When the job was inserted, as `Row.CREATED_AT`."""


class Outcomes:
    """What one shard has to tell the database."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        """The rows of completed jobs; `done_began` says when each run began (monotonic)."""
        self.done_began: list[float] = []
        self.again: list[Again] = []
        self.ended: list[Ended] = []

    def __len__(self) -> int:
        return len(self.done) + len(self.again) + len(self.ended)

    def __bool__(self) -> bool:
        return bool(self.done or self.again or self.ended)

    @property
    def done_ids(self) -> list[int]:
        """The ids of completed jobs."""
        return [row[_ID] for row in self.done]

    def completed(self, now: float, *, keep: bool) -> tuple[list[int], list[int], list[int]]:
        """The completed jobs for a turn: ids in rising order, their revisions, and µs since each run began.

        Revisions are left out when all are 0, as nearly always, and times when no history is to be kept.
        """
        ids = self.done_ids
        revisions = [row[_REVISION] for row in self.done]
        changed = any(revisions)
        if not changed and not keep:
            return sorted(ids), [], []
        order = sorted(range(len(ids)), key=ids.__getitem__)
        began = self.done_began
        return (
            [ids[at] for at in order],
            [revisions[at] for at in order] if changed else [],
            [int((now - began[at]) * 1e6) for at in order] if keep else [],
        )

    def ids(self) -> list[int]:
        """The ids of all jobs in here."""
        return self.done_ids + [item.id for item in self.again] + [item.id for item in self.ended]

    def created(self) -> Iterator[tuple[int, int]]:
        """(id, created_at in µs since 2000) of all jobs in here."""
        yield from ((row[_ID], row[Row.CREATED_AT]) for row in self.done)
        yield from ((item.id, item.created_us) for item in self.again)
        yield from ((item.id, item.created_us) for item in self.ended)

    def drop(self, ids: set[int]) -> None:
        """Forgets what became of these."""
        kept = [(row, began) for row, began in zip(self.done, self.done_began, strict=True) if row[_ID] not in ids]
        self.done, self.done_began = [row for row, _ in kept], [began for _, began in kept]
        self.again = [item for item in self.again if item.id not in ids]
        self.ended = [item for item in self.ended if item.id not in ids]

    def absorb(self, other: Outcomes) -> None:
        """Takes over what `other` has; used when a turn failed and must be sent again."""
        self.done[:0] = other.done
        self.done_began[:0] = other.done_began
        self.again[:0] = other.again
        self.ended[:0] = other.ended


def error_of(
    row: tuple[Any, ...], error: BaseException | str, lines: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The JSON object that the job's `errors` keep of a failed attempt: attempt, class, message, traceback, log lines."""
    entry: dict[str, Any] = {"attempt": row[Row.ATTEMPT] + 1}
    if isinstance(error, str):
        entry["error"] = clean(error)
    else:
        entry["class"] = clean(type(error).__qualname__)
        entry["error"] = clean(text_of(error))
        entry["traceback"] = frames_of(error)
    if lines:
        entry["log"] = lines
    return msgspec.json.encode(entry).decode()


def frames_of(error: BaseException) -> list[str]:
    """Where an error passed, the innermost last: no source lines and no locals, which can hold secrets."""
    return [
        clean(f"{frame.filename}:{frame.lineno} in {frame.name}")  # a name of a file need not be UTF-8
        for frame in traceback.extract_tb(error.__traceback__)[-12:]
    ]


def clean(text: str) -> str:
    """`text` as PostgreSQL can store it: no NUL, no lone surrogate, at most `ERROR_TEXT_CHARS_MAX` characters."""
    if len(text) > ERROR_TEXT_CHARS_MAX:
        text = text[:ERROR_TEXT_CHARS_MAX] + f"… ({len(text)} characters)"
    return _UNSTORABLE.sub("\ufffd", text)


def text_of(error: BaseException) -> str:
    """The text of an error of user code."""
    try:
        return str(error)
    except Exception:  # a __str__ of user code can raise anything, and an error without a text is still an error
        return f"({type(error).__qualname__} without a readable text)"
