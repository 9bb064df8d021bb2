"""The only door to time and chance, so that both can be replaced in a test.

Durations inside a process are monotonic seconds. Times in tables are the database's clock and never come from here.
"""

from __future__ import annotations

import random
import secrets
import time

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns
sleep = time.sleep
randrange = random.randrange


def jittered(seconds: float, spread: float = 0.1) -> float:
    """`seconds` changed by a random factor in [1 − spread, 1 + spread]."""
    return seconds * random.uniform(1 - spread, 1 + spread)  # noqa: S311 - spreads load, guards nothing


def new_shard_id() -> int:
    """A random positive integer below 2^62: known before the row exists, unique without asking the database."""
    return secrets.randbits(62) + 1
