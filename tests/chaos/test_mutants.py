"""Each broken engine is caught by the rule that it breaks, and the intact one passes the same scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.engines import MUTANTS, broken
from tests.chaos.scenarios import CAUGHT_BY, SCENARIOS

pytestmark = [pytest.mark.mutants, pytest.mark.timeout(180)]


def test_every_mutant_has_its_scenario() -> None:
    assert MUTANTS.keys() == SCENARIOS.keys() == CAUGHT_BY.keys()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_engine_is_caught(name: str, tmp_path: Path) -> None:
    rules = {finding.rule for finding in SCENARIOS[name](broken(name, tmp_path))}
    assert CAUGHT_BY[name] in rules


@pytest.mark.parametrize("name", MUTANTS)
def test_the_intact_engine_passes_the_same_scenario(name: str) -> None:
    assert SCENARIOS[name](None) == []
