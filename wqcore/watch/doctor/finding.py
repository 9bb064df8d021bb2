"""A finding, and the register of checks: pure functions from facts to findings that name the change to make.

A check says what it needs (`@check(title, needs…)`); when one of these was refused, its finding says that it could not be
made and why. One that has nothing to say against a thing says that it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from wqcore.db.roles import role_of
from wqcore.watch.doctor.facts import Facts

Level = Literal["ok", "remark", "problem", "unknown"]
Check = Callable[[Facts], Iterator["Finding"]]


class Finding(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        check (str): what was looked at, in a word or two.
        level (str): ok, remark (works, could be better), problem (will hurt), or unknown (could not be looked at).
        text (str): one sentence.
        fix (str | None): what to change: an option, a statement or a command.
    """

    check: str
    level: Level
    text: str
    fix: str | None = None


checks: list[tuple[str, tuple[str, ...], Check]] = []


def check(title: str, *needs: str) -> Callable[[Callable[[Facts], Iterator[tuple[Level, str, str | None]]]], Check]:
    """Registers a check, in the order in which findings are shown."""

    def register(judge: Callable[[Facts], Iterator[tuple[Level, str, str | None]]]) -> Check:
        def judged(facts: Facts) -> Iterator[Finding]:
            return (Finding(title, *found) for found in judge(facts))

        checks.append((title, needs, judged))
        return judged

    return register


def findings(facts: Facts) -> list[Finding]:
    """What all checks say."""
    if facts.unreachable is not None:
        where = "look at database.dsn and WQCORE_DATABASE__DSN, and whether the server lets this host in"
        found = [finding for _, needs, judge in checks if not needs for finding in judge(facts)]
        return [*found, Finding("connection", "problem", facts.unreachable, where)]
    found = []
    for title, needs, judge in checks:
        refused = [facts.refused[name] for name in needs if name in facts.refused]
        if refused and not facts.has_schema:
            continue  # no schema: its own check says so, once
        if refused:
            fix = observing(facts) if "permission denied" in refused[0] else None
            found.append(Finding(title, "unknown", f"could not be looked at: {refused[0]}", fix))
        else:
            found += judge(facts)
    return found


def observing(facts: Facts) -> str:
    """The grant that lets the connected user look."""
    role = role_of(facts.settings.database.schema, "observer")
    who = facts.one("server")["who"] if "server" in facts.rows else "this user"
    return f'grant "{role}" to "{who}" (`wqcore migrate --roles` makes the roles)'


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(seconds: float) -> str:
    """A duration for people."""
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}s"
    return f"{seconds:.0f} s"
