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


def _moment(at: dt.datetime | None) -> dt.datetime | None:
    if at is not None and at.tzinfo is None:
        raise ValueError(f"{at} has no time zone; use datetime.now(UTC) or attach one")
    return at


class Outcome(Exception):  # noqa: N818 - an outcome is not an error
    """Base of the outcomes that a handler raises."""


class Retry(Outcome):
    """Fail this attempt and run again, after the kind's backoff unless this says when.

    Args:
        reason: kept with the job.
        after: seconds or timedelta.
        at: a time with a time zone, by the database's clock; one that has passed means now. Not together with `after`.

    Raises ValueError.
    """

    def __init__(
        self, reason: str = "retry requested", *, after: Delay | None = None, at: dt.datetime | None = None
    ) -> None:
        super().__init__(reason)
        if after is not None and at is not None:
            raise ValueError("a retry takes `after` or `at`, not both")
        self.after_s = None if after is None else _seconds(after)
        self.at = _moment(at)


class Snooze(Outcome):
    """Run again later; this run costs no attempt.

    Args:
        after: seconds or timedelta.
        until: instead, a time with a time zone, by the database's clock; one that has passed means now.

    Raises ValueError.
    """

    def __init__(self, after: Delay | None = None, *, until: dt.datetime | None = None) -> None:
        if (after is None) == (until is None):
            raise ValueError("a snooze takes either `after` or `until`")
        self.after_s = None if after is None else _seconds(after)
        self.at = _moment(until)
        super().__init__(f"snoozed until {until}" if after is None else f"snoozed for {self.after_s:g} s")


class Cancel(Outcome):
    """End the job as cancelled, with `reason` in its history."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        super().__init__(reason)


class Discard(Outcome):
    """End the job as discarded (a permanent failure), with `reason` in its history."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
