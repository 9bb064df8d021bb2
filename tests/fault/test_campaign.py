"""A short campaign: two masters, their server and their network fail at random for a few seconds, and nothing is lost.

The seed is printed; `WQ_TEST_SEED=… pytest tests/fault/test_campaign.py` repeats its choices, and
`make chaos SEED=… SECONDS=…` runs a longer one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.campaign import plan, run
from tests.chaos.engines import broken
from tests.chaos.scenarios import CAUGHT_BY, SCENARIOS

SECONDS = 7.0
"""How long faults are injected: the length of the faults, not of a wait."""


def test_whatever_fails_at_random_nothing_is_lost_stranded_or_run_twice_at_a_time() -> None:
    seed = int(os.environ.get("WQ_TEST_SEED", random.randrange(10**6)))
    print(f"seed {seed}")
    chosen = plan(seed)
    print(chosen)
    result = run(chosen, SECONDS)
    print(result.verdict)
    assert result.findings == [], f"the history is kept in {result.folder}"
    assert result.jobs > 50, "the campaign was idle, so it shows nothing"


@pytest.mark.parametrize("name", ["two jobs of one key in a batch", "rescue unguarded"])
def test_the_checker_catches_a_broken_engine(name: str, tmp_path: Path) -> None:
    """The two fastest; `make mutants` runs all of them, and the intact engine through the same scenarios."""
    rules = {finding.rule for finding in SCENARIOS[name](broken(name, tmp_path))}
    assert CAUGHT_BY[name] in rules
