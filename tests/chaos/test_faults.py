"""A campaign whose fault has done nothing is an error, not a clean verdict."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.chaos.faults import Waits, inject


class Quiet:
    """A World of which only the clocks are asked."""

    def read_clocks(self) -> None: ...


def acts(world: Any, choose: random.Random, count: Counter[str]) -> Waits:
    while True:
        yield 0.02
        count["acts"] += 1


def does_nothing(world: Any, choose: random.Random, count: Counter[str]) -> Waits:
    while True:
        yield 0.02


def acts_late(world: Any, choose: random.Random, count: Counter[str]) -> Waits:
    while True:
        yield 3600.0
        count["late acts"] += 1


def test_a_fault_that_has_done_nothing_is_named_though_others_have() -> None:
    with pytest.raises(RuntimeError, match="does_nothing"):
        inject(Quiet(), [(acts, random.Random(1)), (does_nothing, random.Random(1))], 0.3)  # type: ignore[arg-type]


def test_the_first_time_of_each_fault_comes_early_in_a_short_campaign() -> None:
    done = inject(Quiet(), [(acts, random.Random(1)), (acts_late, random.Random(1))], 0.4)  # type: ignore[arg-type]
    assert done["acts"] >= 1
    assert done["late acts"] == 1
