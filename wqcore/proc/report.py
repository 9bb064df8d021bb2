"""What a master's heartbeat says of its workers, read from the board: for the operator, and for a rescue by others.

Nothing is asked of a worker, so one that hangs is shown as well as the others. Memory is the proportional set size: what
workers share since the fork counts for each in part, so the sum over a master is right. The kernel walks over all pages for
it (measured 2.6 ms with 200 MB), so each report measures one worker, in turn.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from wqcore import clock
from wqcore.proc.board import FREE, STATES, Sheet
from wqcore.upkeep.beat import RUNNING_SHOWN_MAX

RATE_OVER_S = 10.0
"""Rates are means over so long: shorter ones jump between batches, longer ones hide that a worker has just stopped."""


class Report:
    """Called with each beat; returns the report."""

    def __init__(self, sheets: Sequence[Sheet]) -> None:
        self._sheets = sheets
        self._counted: dict[int, deque[tuple[float, int, int]]] = {}
        self._memory: dict[int, int | None] = {}
        self._next_measured = 0

    def __call__(self) -> dict[str, Any]:
        now = clock.monotonic_ns() / 1e9
        living = [sheet for sheet in self._sheets if sheet.state != FREE]
        self._measure([sheet.pid for sheet in living if sheet.pid])
        self._counted = {sheet.shard: self._counted.get(sheet.shard, deque()) for sheet in living}
        return {
            "shards": {str(sheet.shard): self._shown(sheet, now) for sheet in living},
            "keeper": {"pid": os.getpid()},
        }

    def _shown(self, sheet: Sheet, now: float) -> dict[str, Any]:
        jobs = sheet.running()
        completed_per_s, failed_per_s = self._rates(sheet, now)
        return {
            "pid": sheet.pid,
            "state": STATES[sheet.state],
            "workers": sheet.seats,
            "completed": sheet.completed,
            "failed": sheet.failed,
            "completed_per_s": completed_per_s,
            "failed_per_s": failed_per_s,
            "memory_bytes": self._memory.get(sheet.pid),
            "silent_s": round(now - sheet.tick_ns / 1e9, 1),
            "running": [[job.id, job.attempt, job.kind, round(now - job.began, 1)] for job in jobs[:RUNNING_SHOWN_MAX]],
            "running_count": len(jobs),
        }

    def _rates(self, sheet: Sheet, now: float) -> tuple[float, float]:
        counted = self._counted[sheet.shard]
        counted.append((now, sheet.completed, sheet.failed))
        while len(counted) > 2 and now - counted[1][0] >= RATE_OVER_S:
            counted.popleft()
        began, completed, failed = counted[0]
        if now <= began:
            return 0.0, 0.0
        return round((sheet.completed - completed) / (now - began), 2), round(
            (sheet.failed - failed) / (now - began), 2
        )

    def _measure(self, pids: list[int]) -> None:
        self._memory = {pid: self._memory.get(pid) for pid in pids}
        if pids:
            self._next_measured = (self._next_measured + 1) % len(pids)
            pid = pids[self._next_measured]
            self._memory[pid] = proportional_bytes(pid)


def proportional_bytes(pid: int) -> int | None:
    """The proportional set size of a process; None when the kernel does not tell us."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
