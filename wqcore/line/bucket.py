"""A token bucket: how many jobs may start now, and when the next one may. Pure; costs nothing while nobody asks.

Tokens are counted when somebody asks, from the time since the last question, so an idle bucket needs no timer.
"""

from __future__ import annotations


class Bucket:
    """Tokens of one rate.

    Args:
        per_second: tokens that come in each second.
        burst: tokens that it holds at most, at least 1.
        since: monotonic seconds at which it was empty.
    """

    __slots__ = ("_at", "_tokens", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, since: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self._tokens = 0.0
        self._at = since

    def available(self, now: float) -> float:
        """Tokens at the time `now`."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_second)
            self._at = now
        return self._tokens

    def take(self, now: float) -> bool:
        """Takes a token; False when there is none."""
        if self.available(now) < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def give_back(self) -> None:
        """Undoes a `take` whose job did not start."""
        self._tokens = min(self.burst, self._tokens + 1.0)

    def next_at(self, now: float) -> float:
        """When there is a token: `now`, or later."""
        missing = 1.0 - self.available(now)
        return now if missing <= 1e-9 else now + missing / self.per_second

    def is_full(self, now: float) -> bool:
        """True when it need not be remembered: a new one that has been filling for long is the same."""
        return self.available(now) >= self.burst
