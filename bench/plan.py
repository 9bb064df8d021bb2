"""What a run consists of: shapes, each a row of cells that are measured in turn, round after round.

A cell is one queue (or limit) under one load. Within a round all cells of a shape run one after the other, and every
other round in reverse, so that the machine's drift falls on all of them alike; ratios are taken within rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .cluster import Cluster
from .measure import Round
from .system import System


@dataclass(frozen=True)
class Sizes:
    """How much of everything a mode measures."""

    rounds: int
    drain_jobs: int
    insert_jobs: int
    steady_s: float
    single: int
    paced: int
    history: int
    future: int
    slope_s: float
    idle_s: float


Mode = Literal["full", "quick", "tiny"]
MODES: dict[Mode, Sizes] = {
    "full": Sizes(5, 200_000, 200_000, 5.0, 2_000, 500, 10_000_000, 1_000_000, 300.0, 30.0),
    "quick": Sizes(2, 40_000, 40_000, 2.0, 200, 100, 200_000, 100_000, 20.0, 5.0),
    "tiny": Sizes(1, 2_000, 2_000, 1.0, 20, 20, 2_000, 2_000, 3.0, 1.0),
}
"""tiny: everything runs, nothing is measured well; for CI."""


@dataclass
class Bench:
    """What the shapes are made from."""

    cluster: Cluster
    systems: dict[str, System]
    sizes: Sizes

    def only(self, *names: str) -> list[System]:
        """Those of the named systems that are here."""
        return [self.systems[name] for name in names if name in self.systems]

    @property
    def side_rounds(self) -> int:
        """Rounds of shapes that no queue is judged by."""
        return min(3, self.sizes.rounds)

    def jobs(self, system: System) -> int:
        """The jobs of a drain that a system gets: slow ones fewer."""
        return max(200, int(self.sizes.drain_jobs * system.described.jobs_scale))


@dataclass(frozen=True)
class Cell:
    """One column of a shape."""

    label: str
    title: str
    run: Callable[[], Round]


@dataclass
class Shape:
    """One question and the cells that answer it."""

    name: str
    title: str
    question: str
    measure: str
    unit: str
    cells: list[Cell]
    better: Literal["higher", "lower"] = "higher"
    rounds: int | None = None
    """How often, when not as often as the others."""
    notes: list[str] = field(default_factory=list)
    series: dict[str, list[list[float]]] = field(default_factory=dict)
    x_title: str = ""
    y_title: str = ""
