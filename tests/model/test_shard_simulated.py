"""Whatever fails, thousands of campaigns of real shards on simulated time lose no job and break no rule.

`WQ_SEEDS` says how many campaigns (2,000); `WQ_SEED` runs one, with the log of its workers. An engine with a planted fault
is caught within a few hundred.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.model import people, simulation
from tests.model.simulation import simulate
from tests.model.tables import Row, Tables
from wqcore.line.execute import Executor
from wqcore.line.keys import Keys
from wqcore.line.lanes import Lanes

ONE = os.environ.get("WQ_SEED")
SEEDS = range(int(os.environ.get("WQ_SEEDS", "2000"))) if ONE is None else [int(ONE)]
PARTS = min(4, len(SEEDS))
"""So that four processes can share them."""
PLANTED_SEEDS = 400
FROM = {"rescue_without_the_fence": 2500}
"""The first seed, where a planted fault shows in one campaign of a thousand only."""


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without the warnings of thousands of shards, unless one seed was asked for."""
    logging.disable(logging.CRITICAL if ONE is None else logging.NOTSET)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(PARTS))
def test_campaigns_lose_nothing(part: int, quiet: None) -> None:
    seeds = SEEDS[part::PARTS]
    for seed in seeds:
        broken = simulate(seed)
        assert not broken, f"seed {seed} (repeat it with WQ_SEED={seed}): " + "; ".join(broken)
    print(f"{len(seeds)} campaigns, seeds {seeds[0]} to {seeds[-1]}")


def test_a_seed_is_always_the_same_campaign(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def remember(world: simulation.World) -> list[str]:
        runs = [(run.worker.id, run.job, run.attempt) for run in world.runs]
        seen.append((world.loop.time(), world.database.tables.history, runs))
        return []

    monkeypatch.setattr(simulation, "judge", remember)
    for seed in (3, 4, 3):
        simulate(seed)
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]


Plant = Callable[[pytest.MonkeyPatch], None]


def turn_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    turn = Tables.turn

    def unfenced(tables: Tables, p: dict[str, Any], seen: Any = None, now: Any = None) -> Any:
        gone = p["shard"] not in tables.shards
        if gone:
            tables.shards[p["shard"]] = "a ghost"
        try:
            return turn(tables, p, seen, now)
        finally:
            if gone:
                del tables.shards[p["shard"]]

    patch.setattr(Tables, "turn", unfenced)


def rescue_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    rescue = people.rescue

    def unguarded(tables: Tables, shard: int, *rest: Any, **options: Any) -> Any:
        process = tables.shards.get(shard)
        found = rescue(tables, shard, *rest, **options)
        if process is not None:
            tables.shards[shard] = process
        return found

    patch.setattr(people, "rescue", unguarded)


def revision_not_checked(patch: pytest.MonkeyPatch) -> None:
    def any_revision(tables: Tables, ids: list[int], revisions: list[int]) -> Iterator[Row]:
        return iter([tables.jobs[job] for job in ids if job in tables.jobs])

    patch.setattr(Tables, "_at_revision", any_revision)


def two_jobs_of_one_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keys, "_may_start", lambda keys, key, slot: True)


def running_jobs_forgotten_by_the_claim(patch: pytest.MonkeyPatch) -> None:
    held = Executor.held

    def waiting_only(executor: Executor) -> list[int]:
        running = {seat.row[0] for seat in executor._seats if seat.row is not None}
        return [job for job in held(executor) if job not in running]

    patch.setattr(Executor, "held", waiting_only)


def nobody_asks_what_others_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tables, "held_elsewhere", lambda tables, p: [])


def nobody_goes_back_for_late_commits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lanes, "rewind_to", lambda lanes, floor: None)


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (turn_without_the_fence, "newest run"),
        (rescue_without_the_fence, "neither has lost its shard"),
        (revision_not_checked, "never ran"),
        (two_jobs_of_one_key, "run at once"),
        (running_jobs_forgotten_by_the_claim, "neither has lost its shard"),
        (nobody_asks_what_others_hold, "neither has lost its shard"),
        (nobody_goes_back_for_late_commits, "stranded"),
    ],
)
def test_a_planted_fault_is_caught(plant: Plant, rule: str, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    first = FROM.get(plant.__name__, 0)
    for seed in range(first, first + PLANTED_SEEDS):
        broken = simulate(seed)
        if any(rule in text for text in broken):
            print(f"{plant.__name__}: seed {seed}: {'; '.join(broken)}")
            return
    pytest.fail(f"{PLANTED_SEEDS} campaigns did not notice {plant.__name__}")
