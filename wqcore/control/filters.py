"""Which jobs are meant: a filter is checked here, and becomes the parameters of `jobs_walk.sql`, never text of SQL.

A filter is walked by id in windows of bounded size, so that neither looking nor changing holds a snapshot or a lock for
long, whatever the number of jobs. The walk sees each job that matches all the time; one that is inserted, ends or is
retried meanwhile may be seen or not, but none is seen twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wqcore.control import given
from wqcore.db.connect import BigIntArray
from wqcore.errors import InvalidRequest
from wqcore.job import FINISHED, PRIORITY_MAX, PRIORITY_MIN, JobState

Moment = dt.datetime | dt.timedelta


class AsText(str):
    """A value of args or metadata that is compared as text: `AsText("7")` is the number 7 and the string "7"."""

    __slots__ = ()


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs are meant; all conditions that are given must hold.

    Attributes:
        ids (sequence of int): one of these.
        kinds, queues (sequence of str): one of these.
        states (sequence of JobState or str): one of available, scheduled, retryable, running, completed, cancelled,
            discarded.
        serial_key, job_key (str): exactly this.
        key (str): the serial key or the job key is exactly this.
        tags (sequence of str): the list `tags` in the metadata has all of these.
        args, metadata (mapping): dotted path → value, e.g. `{"user.id": 7}`. Numbers are compared by value; an AsText
            also matches a number or a boolean that is written like it.
        error (str): a part of the last error's text.
        older_than, newer_than (datetime with time zone, or timedelta): created before, or at or after, that moment; a
            timedelta counts back from now, by the database's clock.
        priority_min, priority_max (int): both included.
    """

    ids: Sequence[int] | None = None
    kinds: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    states: Sequence[JobState | str] | None = None
    serial_key: str | None = None
    job_key: str | None = None
    key: str | None = None
    tags: Sequence[str] | None = None
    args: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    error: str | None = None
    older_than: Moment | None = None
    newer_than: Moment | None = None
    priority_min: int = PRIORITY_MIN
    priority_max: int = PRIORITY_MAX

    def is_everything(self) -> bool:
        """True when no condition is given, so that every job matches."""
        return self == JobFilter()


EVERYTHING = JobFilter()


def parameters(chosen: JobFilter) -> dict[str, Any]:
    """The filter as parameters of `jobs_walk.sql`. Raises InvalidRequest."""
    for name in ("ids", "kinds", "queues", "states", "tags"):
        if isinstance(getattr(chosen, name), str | int):
            raise InvalidRequest(f"{name} is a list of them: write [{getattr(chosen, name)!r}]")
    states = None if chosen.states is None else set(_states(chosen.states))
    for name in ("serial_key", "job_key", "key", "error"):
        if (value := getattr(chosen, name)) is not None:
            given.text(name, value)
    for name in ("args", "metadata"):
        if not isinstance(getattr(chosen, name) or {}, Mapping):
            raise InvalidRequest(f"{name} is {getattr(chosen, name)!r}: give a dict of path and value")
    ended = FINISHED if states is None else states & FINISHED
    older_at, older_s = _moment("older_than", chosen.older_than)
    newer_at, newer_s = _moment("newer_than", chosen.newer_than)
    return {
        "ids": None if chosen.ids is None else BigIntArray(given.job_ids(chosen.ids)),
        "kinds": _texts("kinds", chosen.kinds),
        "queues": _texts("queues", chosen.queues),
        "states": None if states is None else sorted(states),
        "unfinished": states is None or bool(states - FINISHED),
        # few jobs are cancelled or discarded beside those that completed, and they have an index of their own
        "history": "none" if not ended else "all" if JobState.COMPLETED in ended else "dead",
        "serial_key": chosen.serial_key,
        "job_key": chosen.job_key,
        "key": chosen.key,
        "tags": _texts("tags", chosen.tags),
        "error": chosen.error,
        "older_at": older_at,
        "older_s": older_s,
        "newer_at": newer_at,
        "newer_s": newer_s,
        "priority_min": given.whole("priority_min", chosen.priority_min, PRIORITY_MIN, PRIORITY_MAX),
        "priority_max": given.whole("priority_max", chosen.priority_max, PRIORITY_MIN, PRIORITY_MAX),
        "paths": [given.text("path", path) for path in (*(chosen.args or ()), *(chosen.metadata or ()))],
        "in_metadata": [False] * len(chosen.args or ()) + [True] * len(chosen.metadata or ()),
        "values": [*_values("args", chosen.args), *_values("metadata", chosen.metadata)],
        "texts": [
            str(value) if isinstance(value, AsText) else None
            for value in (*(chosen.args or {}).values(), *(chosen.metadata or {}).values())
        ],
    }


def moment(name: str, value: Moment) -> tuple[dt.datetime | None, float | None]:
    """(time, None) or (None, seconds) of a moment. Raises InvalidRequest for a time without time zone, or no time at all."""
    if isinstance(value, dt.timedelta):
        return None, value.total_seconds()
    if not isinstance(value, dt.datetime):
        raise InvalidRequest(f"{name} is {value!r}: use a datetime with a time zone, or a timedelta")
    if value.tzinfo is None:
        raise InvalidRequest(f"{name} {value} has no time zone: use datetime.now(datetime.UTC), or a timedelta")
    return value, None


def _moment(name: str, value: Moment | None) -> tuple[dt.datetime | None, float | None]:
    return (None, None) if value is None else moment(name, value)


def _states(states: Sequence[JobState | str]) -> list[JobState]:
    try:
        return [JobState(state) for state in states]
    except ValueError as error:
        raise InvalidRequest(f"states: {error}; there are {', '.join(JobState)}") from None


def _texts(name: str, values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else [given.text(name, value) for value in values]


def _values(name: str, wanted: Mapping[str, Any] | None) -> list[str]:
    try:
        values = (wanted or {}).values()
        found = [msgspec.json.encode(str(value) if isinstance(value, AsText) else value).decode() for value in values]
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{name}: {error}; give values that JSON has") from None
    for value in found:
        if "\\u0000" in value:
            raise InvalidRequest(f"{name}: {value} contains a NUL character, which PostgreSQL cannot hold")
    return found
