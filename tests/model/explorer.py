"""Visits every state that a model can reach within its bounds, and shows the shortest way to one that breaks a rule.

Breadth first, so the first broken rule found has the shortest trace. A state is any hashable value; equal ones are
visited once. A model gives the moves out of a state, and each says whether it is a fault. Afterwards the graph of the
moves that are no faults is walked backwards from the states in which all is done: a state from which none is reached is
*stranded*, because something has been lost there although nothing goes wrong any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol


class Move(NamedTuple):
    """One step of a model."""

    label: str
    after: Hashable
    fault: bool = False
    """Something that goes wrong, or that somebody asks for: nothing that must happen for the rest to come to an end."""
    broken: str | None = None
    """The rule that this very step has broken."""


class Model(Protocol):
    """What is explored."""

    def initial(self) -> Hashable: ...
    def moves(self, state: Hashable) -> Iterable[Move]: ...
    def broken(self, state: Hashable) -> str | None: ...
    def done(self, state: Hashable) -> bool: ...


class Counterexample(NamedTuple):
    """A broken rule and the steps that lead there."""

    rule: str
    steps: list[str]
    state: Hashable

    def __str__(self) -> str:
        lines = [f"{number:3} {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([f"broken: {self.rule}, after", *lines, f"in {self.state}"])


class Explored(NamedTuple):
    """What an exploration found."""

    states: int
    moves: int
    counterexample: Counterexample | None


class TooManyStates(Exception):  # noqa: N818 - says what to change
    """The bounds of the model are too wide for a test."""


def explore(model: Model, *, states_max: int = 400_000) -> Explored:
    """Explores `model` until a rule is broken or nothing is left. Raises TooManyStates."""
    first = model.initial()
    states: list[Hashable] = [first]
    number: dict[Hashable, int] = {first: 0}
    came: list[tuple[int, str]] = [(-1, "")]
    healthy: list[array[int]] = []
    moves = 0

    def example(rule: str, at: int, last: str | None = None, state: Hashable = None) -> Counterexample:
        steps = [] if last is None else [last]
        shown = states[at] if state is None else state
        while at > 0:
            at, label = came[at]
            steps.append(label)
        return Counterexample(rule, steps[::-1], shown)

    at = 0
    while at < len(states):
        onward = array("l")
        for label, after, fault, broken in model.moves(states[at]):
            moves += 1
            if broken is not None:
                return Explored(len(states), moves, example(broken, at, label, after))
            known = number.get(after)
            if known is None:
                known = number[after] = len(states)
                states.append(after)
                came.append((at, label))
                rule = model.broken(after)
                if rule is not None:
                    return Explored(len(states), moves, example(rule, known))
                if len(states) > states_max:
                    raise TooManyStates(f"more than {states_max} states; narrow the bounds")
            if not fault:
                onward.append(known)
        healthy.append(onward)
        at += 1
    lost = _first_stranded(states, healthy, model)
    found = None if lost is None else example("a job is stranded: no way leads to its end any more", lost)
    return Explored(len(states), moves, found)


def _first_stranded(states: list[Hashable], healthy: list[array[int]], model: Model) -> int | None:
    """The first state, in order of distance, from which moves that are no faults do not lead to an end."""
    back: list[list[int]] = [[] for _ in states]
    for source, onward in enumerate(healthy):
        for target in onward:
            back[target].append(source)
    ends = [at for at, state in enumerate(states) if model.done(state)]
    fine = bytearray(len(states))
    for at in ends:
        fine[at] = 1
    while ends:
        for source in back[ends.pop()]:
            if not fine[source]:
                fine[source] = 1
                ends.append(source)
    lost = fine.find(0)
    return None if lost < 0 else lost
