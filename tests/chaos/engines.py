"""Broken copies of wqcore: each lacks one protection, and the checker must see what comes of it.

A copy differs from the engine by replacements of text; one that does not apply any more is an error, so that no mutant
turns into the intact engine unnoticed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.chaos.world import ROOT


class Mutant(NamedTuple):
    """What is replaced in which file of the package: (file, text, another text)."""

    says: str
    changes: list[tuple[str, str, str]]


TURN, FENCE = "db/sql/turn.sql", "from {schema}.shard where id = %(shard)s for no key update"

MUTANTS: dict[str, Mutant] = {
    "no fence on the turn": Mutant(
        "a turn writes although its shard's row is gone",
        [(TURN, FENCE, "from (select %(shard)s::bigint as id) as unfenced")],
    ),
    "rescue unguarded": Mutant(
        "a rescue gives the jobs back and leaves the lease where it is",
        [
            (
                "db/sql/rescue_fence.sql",
                "delete from {schema}.shard where id = %(shard)s returning queue",
                "select queue from {schema}.shard where id = %(shard)s",
            )
        ],
    ),
    "lost claim not repaired": Mutant(
        "a claim is added to instead of written whole, and what a claim names is not read again",
        [
            (
                TURN,
                "select me.id, %(turn)s, %(held)s::bigint[] || array(select id from next)",
                "select me.id, %(turn)s, array(select i from {schema}.claim c, unnest(c.ids) i where c.shard = %(shard)s "
                "and c.turn >= %(since)s and i <> all(%(done_ids)s::bigint[])) "
                "|| array(select id from next)",
            ),
            (
                TURN,
                "(id + 0) > lane.after\n           and id not in (select unnest(%(exclude)s::bigint[]))",
                "(id + 0) > lane.after\n           and id not in (select unnest(%(exclude)s::bigint[]))"
                "\n           and id not in (select unnest(c.ids) from {schema}.claim c where c.shard = %(shard)s)",
            ),
        ],
    ),
    "beat stopped before the drain": Mutant(
        "a drain begins with the keeper",
        [
            (
                "proc/master.py",
                "            self._drains_sent += 1\n            for child in workers:\n",
                "            self._drains_sent += 1\n            for child in list(self.children.by_pid.values()):\n",
            ),
            (
                "proc/master.py",
                "        if (workers or self._rescues) and self._keeper() is None and not self._failure:\n",
                "        if False:\n",
            ),
        ],
    ),
    "two jobs of one key in a batch": Mutant(
        "a key has room for one more than it may",
        [
            (
                "line/keys.py",
                "if self._running.get(key, 0) + self._elsewhere.get(key, 0) >= self.max_per_key:",
                "if self._running.get(key, 0) + self._elsewhere.get(key, 0) > self.max_per_key:",
            )
        ],
    ),
    "revision not looked at": Mutant(
        "an acknowledgement deletes a job that was changed while it ran",
        [
            (
                TURN,
                "j.revision = coalesce((%(done_revisions)s::bigint[])[width_bucket(j.id, %(done_ids)s::bigint[])], 0)",
                "coalesce((%(done_revisions)s::bigint[])[width_bucket(j.id, %(done_ids)s::bigint[])], 0) >= 0",
            )
        ],
    ),
}


def broken(name: str, folder: Path) -> Path:
    """A folder with the package wqcore in it that has this fault; for PYTHONPATH."""
    package = folder / "wqcore"
    shutil.copytree(ROOT / "wqcore", package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, another in MUTANTS[name].changes:
        path = package / file
        before = path.read_text("utf-8")
        if before.count(text) != 1:
            raise AssertionError(f"mutant {name!r}: {file} has {before.count(text)} places with {text!r}, not one")
        path.write_text(before.replace(text, another), "utf-8")
    return folder
