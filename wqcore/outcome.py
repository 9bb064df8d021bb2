"""What a handler may say: return (completed), raise any exception (retry by policy), or raise one of these.

`Retry` chooses the delay, `Snooze` comes back later without costing an attempt, `Cancel` ends the job as cancelled,
`Discard` ends it as a permanent failure. Raising is the way because it leaves a handler from any depth of calls.
"""

from __future__ import annotations

import datetime as dt

Delay = float | dt.timedelta


def _seconds(delay: Delay) -> float:
    seconds = delay.total_seconds() if isinstance(delay, dt.timedelta) else float(delay)
    if not 0 <= seconds < 3.2e9:
        raise ValueError(f"a delay must be between 0 s and 100 years, not {delay!r}")
    return seconds


class Outcome(Exception):  # noqa: N818 - an outcome is not an error
    """Base of the outcomes that a handler raises."""


class Retry(Outcome):
    """Fail this attempt and run again; `after` (seconds or timedelta) overrides the kind's backoff policy."""

    def __init__(self, reason: str = "retry requested", *, after: Delay | None = None) -> None:
        super().__init__(reason)
        self.after_s = None if after is None else _seconds(after)


class Snooze(Outcome):
    """Run again after `after` (seconds or timedelta); this run costs no attempt."""

    def __init__(self, after: Delay) -> None:
        self.after_s = _seconds(after)
        super().__init__(f"snoozed for {self.after_s:g} s")


class Cancel(Outcome):
    """End the job as cancelled, with `reason` in its history."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        super().__init__(reason)


class Discard(Outcome):
    """End the job as discarded (a permanent failure), with `reason` in its history."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
