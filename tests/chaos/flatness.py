"""Says whether a measure stays flat: the trend of a run's last two thirds, by a rule that is written down beside it.

The trend is the Theil-Sen slope, the median of the slopes between all pairs of samples: a third of the samples may be
outliers (a restart, a master that was replaced) without moving it much. Growth is that slope times the length of the part
that is judged. The first third is left out, because caches fill and tables reach their size in it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import msgspec

JUDGED_FROM = 1 / 3
SAMPLES_MIN = 30
"""Fewer show no trend: with a sample each 10 s, a run of 7.5 minutes."""


class Rule(msgspec.Struct, frozen=True):
    """A measure may grow by this share of its median, or by this much where that is more, over the part that is judged.

    `share` None: it grows by its nature, and is reported without a judgement.
    """

    measure: str
    title: str
    unit: str
    share: float | None
    least: float


class Judgement(msgspec.Struct, frozen=True):
    """What a measure did."""

    measure: str
    title: str
    unit: str
    median: float
    growth: float
    allowed: float | None
    samples: int
    flat: bool | None
    """None: too few samples to say, or not judged."""


RULES = [
    Rule("worker_uss_mb", "memory of a worker (USS)", "MB", 0.05, 1.0),
    Rule("keeper_uss_mb", "memory of the keeper (USS)", "MB", 0.05, 1.0),
    Rule("master_uss_mb", "memory of the master (USS)", "MB", 0.05, 1.0),
    Rule("trees_pss_mb", "memory of both trees (PSS)", "MB", 0.05, 5.0),
    Rule("descriptors", "open files of the undisturbed tree", "", 0.0, 1.0),
    Rule("connections", "connections of the masters", "", 0.0, 1.0),
    Rule("dead_rows_per_turn_settled", "dead rows visited per turn", "rows", 0.2, 1.0),
    Rule("dead_rows_per_turn_moved", "the same, while slots got a new owner", "rows", None, 0.0),
    Rule("buffers_per_turn", "pages of the job table and its indexes per turn", "pages", 0.2, 5.0),
    Rule("p50_ms", "latency, median", "ms", 0.25, 2.0),
    Rule("p99_ms", "latency, p99", "ms", 0.5, 20.0),
    Rule("wal_bytes_per_job", "WAL a job", "bytes", 0.2, 200.0),
]


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """The Theil-Sen slope; NaN for less than two samples."""
    slopes = [
        (later - earlier) / (then - before)
        for (before, earlier), (then, later) in itertools.combinations(zip(at, values, strict=True), 2)
        if then != before
    ]
    return statistics.median(slopes) if slopes else math.nan


def judge(rule: Rule, at: Sequence[float], values: Sequence[float | None], length_s: float) -> Judgement:
    """Judges one measure; a sample without a value (its counters began anew) is left out."""
    pairs = [
        (when, value)
        for when, value in zip(at, values, strict=True)
        if value is not None and when >= length_s * JUDGED_FROM
    ]
    if len(pairs) < 2:
        return Judgement(rule.measure, rule.title, rule.unit, 0.0, 0.0, None, len(pairs), None)
    times, seen = zip(*pairs, strict=True)
    median = statistics.median(seen)
    growth = slope(times, seen) * length_s * (1 - JUDGED_FROM)
    allowed = None if rule.share is None else max(rule.share * median, rule.least)
    flat = None if allowed is None or len(pairs) < SAMPLES_MIN else growth <= allowed
    return Judgement(rule.measure, rule.title, rule.unit, median, growth, allowed, len(pairs), flat)
