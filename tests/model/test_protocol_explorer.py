"""No way through the protocol, however faults and people interleave, loses a job, runs it twice, or misjudges it.

Small worlds, each explored whole. The same worlds find a counterexample as soon as one guard of the protocol is left
out, so an intact protocol that has none has been looked at where it matters. `pytest -rP` shows the traces.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.model.explorer import Move, TooManyStates, explore
from tests.model.protocol_model import Bounds, Protocol
from tests.model.protocol_state import Budget

FIRST_OF_TWO = frozenset({1})
"""Only job 0 exists; job 1 is the one that an insert with its job key makes."""

WORLDS = {
    "a lost reply and a killed worker": Bounds(slots=(0, 0), budget=Budget(lost=1, crash=1)),
    "a snooze while its slot moves": Bounds(slots=(0,), budget=Budget(lost=1, give=1, snooze=1, fail=1)),
    "a statement that is committed late": Bounds(slots=(0,), budget=Budget(lost=1, late=1, snooze=1, fail=1, crash=1)),
    "a killed worker while its slot moves": Bounds(slots=(0,), budget=Budget(crash=1, give=1, snooze=1, lost=1)),
    "a dead host while its slot moves": Bounds(slots=(0,), budget=Budget(host=1, give=1, snooze=1)),
    "a dead host and failing jobs": Bounds(slots=(0,), budget=Budget(host=1, fail=1, give=1)),
    "a serial key that moves, and a killed worker": Bounds(slots=(0, 0), one_key=True, budget=Budget(give=1, crash=1)),
    "a serial key with three jobs that moves": Bounds(slots=(0, 0, 0), one_key=True, budget=Budget(give=1)),
    "a frozen host that thaws": Bounds(slots=(0,), budget=Budget(freeze=1, lost=1, fail=1)),
    "two deaths of one job": Bounds(slots=(0,), budget=Budget(host=1, crash=1)),
    "a job key that is replaced": Bounds(unborn=FIRST_OF_TWO, budget=Budget(replace=1, lost=1, crash=1)),
    "a job key that is replaced while its slot moves": Bounds(
        unborn=FIRST_OF_TWO, budget=Budget(replace=1, fail=1, give=1)
    ),
    "a cancellation and a killed worker": Bounds(slots=(0,), budget=Budget(cancel=1, lost=1, crash=1)),
    "a cancellation while its slot moves": Bounds(slots=(0,), budget=Budget(cancel=1, snooze=1, give=1)),
    "a finished job that is put back": Bounds(slots=(0,), budget=Budget(back=1, lost=1, crash=1)),
    "a drain": Bounds(slots=(0, 1), budget=Budget(drain=1, lost=1)),
}

STRANDED = "is stranded"
OLDER = "written by another run than its newest"
BROKEN = [
    ("turn without the fence", "a lost reply and a killed worker", OLDER),
    ("turn without the fence", "a frozen host that thaws", OLDER),
    ("rescue unguarded", "a frozen host that thaws", "overlap, and neither has lost its shard"),
    ("lost reply not repaired", "a lost reply and a killed worker", STRANDED),
    ("revision not checked", "a job key that is replaced", "what was inserted last never ran"),
    ("hand-over forgets running jobs", "a cancellation while its slot moves", "overlap, and neither has lost"),
    ("hand-over forgets running jobs", "a serial key with three jobs that moves", "of one serial key run at once"),
    (
        "slots read before it is known who holds their jobs",
        "a drain",
        "overlap, and neither has lost its shard",
    ),
    ("two jobs of one key", "a serial key that moves, and a killed worker", "of one serial key run at once"),
    ("beat stops before the drain", "a drain", "although its worker lives"),
    ("double rescue", "a lost reply and a killed worker", "charged twice for one death"),
    ("a snooze sent again", "a snooze while its slot moves", OLDER),
    ("a snooze sent again", "a statement that is committed late", OLDER),
    ("charge without a claim", "a killed worker while its slot moves", "another living shard holds it"),
    ("charge without a claim", "a dead host while its slot moves", "another living shard holds it"),
    ("put back with its old revision", "a finished job that is put back", OLDER),
    ("history from memory", "a finished job that is put back", "two terminal records"),
]


@pytest.mark.parametrize("world", WORLDS)
def test_the_protocol_breaks_no_rule(world: str) -> None:
    explored = explore(Protocol(WORLDS[world]))
    print(f"{world}: {explored.states} states, {explored.moves} moves")
    assert explored.counterexample is None, f"\n{explored.counterexample}"
    assert explored.states > 500, "a world in which hardly anything can happen shows nothing"


@pytest.mark.parametrize(("variant", "world", "rule"), BROKEN)
def test_a_protocol_without_one_of_its_guards_is_caught(variant: str, world: str, rule: str) -> None:
    found = explore(Protocol(WORLDS[world], variant)).counterexample
    print(found)
    assert found is not None, f"{world}: nothing is wrong with '{variant}'"
    assert rule in found.rule


class Hours(NamedTuple):
    """A clock with one hand, for the explorer's own tests."""

    stops_at: int = -1
    forbidden: int = -1

    def initial(self) -> int:
        return 0

    def moves(self, state: int) -> list[Move]:
        if state == self.stops_at:
            return []
        return [Move("an hour passes", (state + 1) % 12), Move("half a day passes", (state + 6) % 12, fault=True)]

    def broken(self, state: int) -> str | None:
        return "no such hour" if state == self.forbidden else None

    def done(self, state: int) -> bool:
        return state == 0


def test_the_explorer_shows_the_shortest_way() -> None:
    found = explore(Hours(forbidden=8)).counterexample
    assert found is not None
    assert sorted(found.steps) == ["an hour passes", "an hour passes", "half a day passes"]
    assert str(found).startswith("broken: no such hour, after\n  1 ")


def test_the_explorer_finds_what_has_no_way_to_an_end_and_counts_on_no_fault() -> None:
    assert explore(Hours()).counterexample is None
    found = explore(Hours(stops_at=11)).counterexample
    assert found is not None
    assert (STRANDED in found.rule, found.steps) == (True, ["an hour passes"])


def test_the_explorer_refuses_a_world_that_is_too_wide() -> None:
    with pytest.raises(TooManyStates):
        explore(Hours(), states_max=5)
