"""All rules over a history, and one line that says what they found: `0 lost, 0 resurrected, …; 5,123 jobs, 6,100 runs`."""

from __future__ import annotations

from collections import Counter

from tests.check.finding import Finding
from tests.check.history import History
from tests.check.rules import RULES

PLURAL = {
    "overlap": "overlaps",
    "key overlap": "key overlaps",
    "unearned": "completed without a good end",
    "wrong effect": "wrong effects",
}


def findings(history: History) -> list[Finding]:
    """Everything that is wrong with a run."""
    return [finding for rule in RULES.values() for finding in rule(history)]


def verdict(history: History, found: list[Finding]) -> str:
    """One line: how often each rule was broken, and how much was looked at."""
    counts = Counter(finding.rule for finding in found)
    broken = ", ".join(f"{counts[rule]} {PLURAL.get(rule, rule)}" for rule in RULES)
    ended = Counter(row.outcome for row in history.end.finished)
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(ended.items()))
    repeated = len(history.runs) - len(history.runs_of)
    rescues = sum(len(shards) for shards in history.rescued_in.values())
    return (
        f"{broken}; {len(history.end.finished):,} jobs ended ({outcomes}), {len(history.runs):,} runs, "
        f"{repeated:,} of them repeated, {rescues} workers rescued"
    )
