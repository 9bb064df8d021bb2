"""What a benchmark says of its rounds: medians and spread, as lines for people or as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any


def report(shape: str, rounds: Sequence[dict[str, float]], **more: Any) -> dict[str, Any]:
    """The report of a shape: its rounds (name → number in each), their medians, their spread, and the machine."""
    return {
        "shape": shape,
        **more,
        "rounds": list(rounds),
        "median": {name: statistics.median(round_[name] for round_ in rounds) for name in rounds[0]},
        "spread": {name: [min(r[name] for r in rounds), max(r[name] for r in rounds)] for name in rounds[0]},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
    }


def say_round(number: int, round_: dict[str, float], *, as_json: bool) -> None:
    """A line for a round that has ended; round 0 is the warm-up, which is not counted."""
    if not as_json:
        shown = ", ".join(f"{name} {value:,.2f}" for name, value in round_.items())
        print(f"{f'round {number}' if number else 'warm-up'}: {shown}", flush=True)


def show(found: dict[str, Any], names: Sequence[str] = (), *, as_json: bool) -> None:
    """Prints a report; for people only the rows `names` (all when there are none)."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name in names or found["median"]:
        low, high = found["spread"][name]
        print(f"{name:18} median {found['median'][name]:>12,.2f}   from {low:,.2f} to {high:,.2f}")
    print("PostgreSQL:", found["postgresql"])
