"""The event matcher, by property: for any payload there is a filter that it passes and one that it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.matcher import matches

scalars = (
    st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text(max_size=3)
)
keys = st.sampled_from(["a", "b", "c", "constructor", ""])
payloads = st.recursive(
    scalars | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(keys, payloads, max_size=3)
conditions = st.one_of(
    st.builds(lambda op, value: {op: value}, st.sampled_from(["$exists", "$isNull"]), st.booleans()),
    st.builds(
        lambda op, value: {op: value},
        st.sampled_from(["$startsWith", "$endsWith", "$ignoreCaseEquals"]),
        st.text(max_size=2),
    ),
    st.builds(lambda op, value: {op: value}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(-5, 5)),
    st.builds(lambda low, high: {"$between": [low, high]}, st.integers(-5, 5), st.integers(-5, 5)),
    st.builds(lambda op, value: {op: value}, st.sampled_from(["$includes", "$not", "$anythingBut"]), scalars),
    st.builds(lambda values: {"$anythingBut": values}, st.lists(scalars, max_size=2)),
)
filters = st.recursive(
    st.lists(scalars, max_size=3) | st.lists(conditions, max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=2),
    max_leaves=8,
).filter(lambda found: isinstance(found, dict))


def as_filter(value: Any) -> Any:
    """The filter that asks for just this value; None where a filter cannot ask for it."""
    if isinstance(value, dict):
        return {key: asked for key, inner in value.items() if (asked := as_filter(inner)) is not None}
    if isinstance(value, list):
        asked = (as_filter(inner) for inner in value if not isinstance(inner, list))
        return next((each for each in asked if each is not None), None)
    return None if value is None else [value]


@given(objects)
def test_a_payload_passes_the_filter_made_of_it(payload: dict[str, Any]) -> None:
    assert matches(payload, as_filter(payload))


@given(payloads)
def test_an_empty_filter_lets_everything_pass(payload: Any) -> None:
    assert matches(payload, {})


@given(objects, filters)
def test_more_keys_in_the_filter_never_let_more_pass(payload: dict[str, Any], event_filter: dict[str, Any]) -> None:
    each = [matches(payload, {key: pattern}) for key, pattern in event_filter.items()]
    assert matches(payload, event_filter) == all(each)


@given(objects, filters, keys, payloads)
def test_keys_that_the_filter_does_not_name_do_not_matter(
    payload: dict[str, Any], event_filter: dict[str, Any], key: str, value: Any
) -> None:
    if key not in event_filter:
        assert matches(payload | {key: value}, event_filter) == matches(payload, event_filter)


@given(st.lists(payloads, max_size=3), st.lists(scalars, min_size=1, max_size=3))
def test_an_array_passes_a_list_when_one_of_its_scalars_does(elements: list[Any], wanted: list[Any]) -> None:
    each = [matches({"a": element}, {"a": wanted}) for element in elements if not isinstance(element, list)]
    assert matches({"a": elements}, {"a": wanted}) == any(each)


@given(st.lists(objects, max_size=3), filters)
def test_an_array_of_objects_passes_when_one_of_them_does(elements: list[Any], event_filter: dict[str, Any]) -> None:
    assert matches({"a": elements}, {"a": event_filter}) == any(matches(each, event_filter) for each in elements)


@given(scalars, scalars)
def test_not_is_the_contrary_of_being_in_the_list(value: Any, unwanted: Any) -> None:
    assert matches({"a": value}, {"a": [{"$not": unwanted}]}) != matches({"a": value}, {"a": [unwanted]})
    assert matches({"a": value}, {"a": [{"$anythingBut": [unwanted]}]}) != matches({"a": value}, {"a": [unwanted]})


@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5))
def test_between_is_both_bounds(value: int, low: int, high: int) -> None:
    bounds = [{"$gte": low}, {"$lte": high}]
    assert matches({"a": value}, {"a": [{"$between": [low, high]}]}) == matches({"a": value}, {"a": bounds})


@pytest.mark.parametrize(
    ("payload", "event_filter", "passes"),
    [
        (None, {}, True),
        (None, {"a": []}, False),
        ("text", {"length": [4]}, False),
        ({}, {"a": []}, True),
        ({}, {"a": {}}, True),
        ({}, {"a": ["x"]}, False),
        ({"a": 1}, {"a": [True]}, False),
        ({"a": True}, {"a": [1]}, False),
        ({"a": 1.0}, {"a": [1]}, True),
        ({"a": "1"}, {"a": [1]}, False),
        ({"a": None}, {"a": ["null"]}, False),
        ({"a": {"b": {"c": "x"}}}, {"a": {"b": {"c": ["x", "y"]}}}, True),
        ({"a": ["p1", "bug"]}, {"a": ["bug"]}, True),
        ({"a": [{"name": "p1"}, {"name": "bug"}]}, {"a": {"name": ["bug"]}}, True),
        ({"a": []}, {"a": {"name": ["bug"]}}, False),
        ({"a": None}, {"a": [{"$exists": True}]}, True),
        ({}, {"a": [{"$exists": False}]}, True),
        ({"a": None}, {"a": [{"$isNull": True}]}, True),
        ({}, {"a": [{"$isNull": True}]}, False),
        ({}, {"a": [{"$isNull": False}]}, True),
        ({"a": "Ärger"}, {"a": [{"$ignoreCaseEquals": "äRGER"}]}, True),
        ({"a": "push"}, {"a": [{"$startsWith": "pu"}, {"$endsWith": "sh"}]}, True),
        ({"a": "push"}, {"a": [{"$startsWith": "pu"}, {"$endsWith": "x"}]}, False),
        ({"a": 5}, {"a": [{"$gt": 4}, {"$lt": 6}]}, True),
        ({"a": True}, {"a": [{"$gt": 0}]}, False),
        ({"a": "5"}, {"a": [{"$gt": 4}]}, False),
        ({"a": [1, 2]}, {"a": [{"$includes": 2}]}, True),
        ({"a": 2}, {"a": [{"$includes": 2}]}, False),
        ({"a": [1, 2]}, {"a": [{"$not": 3}]}, True),
        ({}, {"a": [{"$not": 3}]}, False),
        ({}, {"a": [{"$anythingBut": 3}]}, True),
        ({"a": 1}, {"a": [{"$newOperator": 1}]}, False),
        ({"a": 1}, {"a": 1}, False),
    ],
)
def test_what_passes_and_what_does_not(payload: Any, event_filter: dict[str, Any], passes: bool) -> None:
    assert matches(payload, event_filter) is passes
