"""How long to wait before the next attempt. Pure functions: attempt number (1 = the first one failed) → seconds.

A policy is any callable of that shape; those here are the ones that users of graphile-worker and River know.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from wqcore import clock

Backoff = Callable[[int], float]

DELAY_MAX_S = 7 * 24 * 3600.0
"""No policy waits longer than a week, whatever it computes."""


def river(attempt: int) -> float:
    """`attempt^4` seconds with ±10 % jitter: 1 s, 16 s, 81 s, 256 s … (River's default policy, and ours)."""
    return clock.jittered(float(attempt) ** 4)


def graphile(attempt: int) -> float:
    """`exp(min(10, attempt))` seconds: 2.7 s, 7.4 s, 20 s … at most 6.1 h (graphile-worker's policy)."""
    return math.exp(min(10, attempt))


def constant(seconds: float) -> Backoff:
    """A policy that always waits `seconds`."""
    return lambda attempt: seconds


def delay_s(policy: Backoff, attempt: int) -> float:
    """The delay of `policy` in seconds, held within [0, `DELAY_MAX_S`]; a policy that answers NaN waits the maximum."""
    seconds = policy(attempt)
    if not seconds <= DELAY_MAX_S:
        return DELAY_MAX_S
    return max(0.0, seconds)
