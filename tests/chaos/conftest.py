"""Mutants take minutes, so they run only when they are asked for: `pytest -m mutants`, or `make mutants`."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mutants: broken engines, each of which the checker must catch (minutes)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "mutants" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("mutants"):
                item.add_marker(pytest.mark.skip(reason="broken engines take minutes: make mutants"))
