"""`matches` says whether a payload passes an event filter: no state, no I/O, the same answer for the same values.

A filter is an object. For each of its keys: a list passes when the payload's value is in it, and an empty list always; an
object is a filter of the value's own keys; a list of objects such as `[{"$gt": 5}, {"$lt": 9}]` passes when all of these
conditions hold (the operators of `EventFilterSchema` in the SDK). Where the payload has an array, one element that passes
is enough, except for a list of conditions, which is asked of the array itself (`$includes` is for that).

Values are compared as JSON has them: `1` is `1.0`, but neither is `true`. Whatever is not a filter passes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

ABSENT: Final = object()
"""The value of a key that the payload does not have; `null` is a value."""


def matches(payload: Any, filter: Mapping[str, Any]) -> bool:
    """True when `payload` (any JSON) passes `filter`."""
    if not filter:
        return True
    if payload is None or payload is ABSENT:
        return False
    values = payload if isinstance(payload, Mapping) else {}  # a scalar has no keys; they are all absent
    return all(_passes(values.get(key, ABSENT), pattern) for key, pattern in filter.items())


def _passes(value: Any, pattern: Any) -> bool:
    if isinstance(pattern, Mapping):
        if isinstance(value, list):
            return any(matches(element, pattern) for element in value)
        return matches(value, pattern)
    if not isinstance(pattern, list):
        return False
    if not pattern:
        return True
    if all(isinstance(condition, Mapping) for condition in pattern):
        return all(_holds(value, condition) for condition in pattern)
    if isinstance(value, list):
        return any(_among(element, pattern) for element in value)
    return _among(value, pattern)


def _holds(value: Any, condition: Mapping[str, Any]) -> bool:
    return all(name in OPERATORS and OPERATORS[name](value, wanted) for name, wanted in condition.items())


def _same(one: Any, other: Any) -> bool:
    """Equal as scalars of JSON. In Python `True == 1`; in JSON they are two things."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list | Mapping) or isinstance(other, list | Mapping):
        return False
    return bool(one == other)


def _among(value: Any, values: list[Any]) -> bool:
    return any(_same(value, each) for each in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, wanted: _is_number(value) and _is_number(wanted) and compare(value, wanted)


def _text(compare: Callable[[str, str], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, wanted: isinstance(value, str) and isinstance(wanted, str) and compare(value, wanted)


def _between(value: Any, bounds: Any) -> bool:
    return isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, [value, *bounds])) and (
        bounds[0] <= value <= bounds[1]
    )  # fmt: skip


def _not(value: Any, unwanted: Any) -> bool:
    if isinstance(value, list):
        return not _among(unwanted, value)
    # the SDK: an object, null or an absent value is not "something else", it is no value to compare
    return isinstance(value, str | int | float) and not _same(value, unwanted)


OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$exists": lambda value, wanted: (value is not ABSENT) == bool(wanted),
    "$isNull": lambda value, wanted: (value is None) == bool(wanted),
    "$startsWith": _text(str.startswith),
    "$endsWith": _text(str.endswith),
    "$ignoreCaseEquals": _text(lambda value, wanted: value.casefold() == wanted.casefold()),
    "$gt": _compared(lambda value, wanted: value > wanted),
    "$gte": _compared(lambda value, wanted: value >= wanted),
    "$lt": _compared(lambda value, wanted: value < wanted),
    "$lte": _compared(lambda value, wanted: value <= wanted),
    "$between": _between,
    "$includes": lambda value, wanted: isinstance(value, list) and _among(wanted, value),
    "$not": _not,
    "$anythingBut": lambda value, unwanted: not _among(value, unwanted if isinstance(unwanted, list) else [unwanted]),
}
