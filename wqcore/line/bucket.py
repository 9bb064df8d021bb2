"""A token bucket: how many jobs may start now, and when the next one may. Pure; costs nothing while nobody asks.

Tokens are counted when somebody asks, from the time since the last question, so an idle bucket needs no timer.
"""

from __future__ import annotations

_WHOLE = 1.0 - 1e-6
"""A token, but for what adding floats loses: else a timer that comes at the computed time would find it missing."""


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
        if self.available(now) < _WHOLE:
            return False
        self._tokens -= 1.0
        return True

    def next_at(self, now: float) -> float:
        """When there is a token: `now`, or later."""
        tokens = self.available(now)
        return now if tokens >= _WHOLE else now + (1.0 - tokens) / self.per_second

    def is_full(self, now: float) -> bool:
        """True when it need not be remembered: a new one that has been filling for long is the same."""
        return self.available(now) >= self.burst
