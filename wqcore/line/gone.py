"""A claimed job that somebody deleted, that we hold already, or that this turn acknowledged does not start.

A turn's reply can bring back such a job, because its statement saw the table before we learned better:

- deleted or cancelled while it waited: a notification named it, perhaps while the turn that claimed it was under way,
  so its id is remembered for longer than a turn takes, or until another notification says that it is back, or until
  the connection is lost, on which both that reply and that notification would have come;
- changed (another priority, time or args) at the moment when we claimed it: it comes a second time, as a due one;

and after a reconnect, what was deleted while nobody could tell us is asked for by id; another server is asked whether its
jobs of those ids are the ones that we know. A job that was completed in its
handler's transaction is missing from the table too, but must not be cancelled: its handler has only to return.

All of it is memory. A crash leaves the claim, and the rescue finds only rows that are still there.
"""

from __future__ import annotations

from typing import Any

from wqcore.job import Row
from wqcore.line.settle import Outcomes
from wqcore.line.turn import Protocol

GONE_KEPT_S = 10.0
"""How long deleted ids are remembered: longer than a turn that began before the deletion can take."""
COMPLETED_TX_MAX = 1000
"""Ids completed in transactions of their handlers that are remembered before those that have ended are forgotten."""


class Gone:
    """The jobs of one shard that are not in the table any more."""

    def __init__(self, protocol: Protocol) -> None:
        self.completed_tx: set[int] = set()
        """Jobs that were completed in the transactions of their handlers."""
        self._deleted: dict[int, float] = {}
        self._protocol = protocol

    def deleted(self, ids: list[int], now: float) -> None:
        """Somebody has deleted these jobs, or cancelled them while they waited."""
        self._deleted = {job_id: at for job_id, at in self._deleted.items() if now - at < GONE_KEPT_S}
        self._deleted.update((job_id, now) for job_id in ids)

    def back(self, ids: list[int]) -> None:
        """These have come back from the history: a claim of them is good again."""
        for job_id in ids:
            self._deleted.pop(job_id, None)

    def sift(self, rows: list[tuple[Any, ...]], held: list[int], outcomes: Outcomes) -> list[tuple[Any, ...]]:
        """The claimed jobs that may start; where it drops some, the claim must be written anew."""
        if self._deleted:
            rows = [row for row in rows if row[Row.ID] not in self._deleted]
        if rows and rows[-1][Row.RUN_AT] is not None:
            rows = without_known(rows, held, outcomes)
        return rows

    async def missing(self, held: list[int]) -> set[int]:
        """Jobs among those that we hold that somebody has deleted; asked after a reconnect."""
        self._deleted.clear()
        self.completed_tx.intersection_update(held)
        if not held:
            return set()
        left = {job_id for job_id, _, _ in await self._protocol.remaining(held)}
        return set(held) - left - self.completed_tx


    async def strangers(self, created: dict[int, int]) -> set[int]:
        """Jobs in memory that this server does not have, or whose ids it gave to others; asked of another server.

        What became of such a run must not be written: it would end a job that never ran.
        """
        there = dict(await self._protocol.created(list(created)))
        return {job_id for job_id, at in created.items() if there.get(job_id) != at} - self.completed_tx


def without_known(rows: list[tuple[Any, ...]], held: list[int], outcomes: Outcomes) -> list[tuple[Any, ...]]:
    """Without jobs that we hold already, or whose outcome went with this very turn.

    A job that was changed at the moment when we claimed it (another priority, time or args) has a time now, and so
    comes up a second time, among the due ones that follow the ready ones in a reply. If it still has something to
    do when its run has ended, the acknowledgement finds another revision, or a look finds it unclaimed.
    """
    acknowledged = {(row[Row.ID], row[Row.REVISION]) for row in outcomes.done}
    known = set(held)
    return [row for row in rows if row[Row.ID] not in known and (row[Row.ID], row[Row.REVISION]) not in acknowledged]
