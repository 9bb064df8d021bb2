"""What a caller gives is what a request needs, or the error names it and says what to give; nothing is sent to the database then.

Without this PostgreSQL answers: `dequeue(5)` is no function that it has, so it seemed to lack the schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from wqcore.errors import InvalidRequest

JOB_ID_MAX = 2**63 - 1


def job_id(value: object) -> int:
    """An id of a job. Raises InvalidRequest."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{value!r} is no id of a job: pass the int that `insert` returned")
    if not -JOB_ID_MAX <= value <= JOB_ID_MAX:
        raise InvalidRequest(f"{value} is no id of a job: it is beyond {JOB_ID_MAX}")
    return value


def job_ids(values: object) -> list[int]:
    """Ids of jobs. Raises InvalidRequest."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{values!r} is no choice of jobs: pass an id, a list of ids, or a JobFilter")
    return [job_id(value) for value in values]


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`. Raises InvalidRequest."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}: give a whole number")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} {value} is outside {low} … {high}")
    return value


def seconds(name: str, value: object) -> float | None:
    """Seconds, or None. Raises InvalidRequest."""
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise InvalidRequest(f"{name} is {value!r}: give seconds, or None")
    return value


def text(name: str, value: object) -> str:
    """A text that PostgreSQL can hold. Raises InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {value!r}: give a str")
    if "\x00" in value:
        raise InvalidRequest(f"{name} {value!r} contains a NUL character, which PostgreSQL cannot hold")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} {value!r} contains a lone surrogate, which UTF-8 cannot encode") from None
    return value


def master_ids(values: object) -> list[str]:
    """Ids of masters. Raises InvalidRequest."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{values!r} is no list of ids: write [{values!r}]")
    try:
        return [str(uuid.UUID(value)) for value in values]
    except (ValueError, TypeError, AttributeError):
        raise InvalidRequest(f"{values!r} are no ids of masters: pass the `id` of those that `masters()` returns") from None
