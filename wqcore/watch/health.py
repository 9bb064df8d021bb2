"""Says whether the tree of a master lives, and whether it can fetch jobs; and if not, why not.

*Live*: master and keeper turn. A tree that is not live does not help itself, so that its supervisor should end it. Workers do
not count: the master replaces them. *Ready*: live, heartbeats go through, the schema is not older than this program, nothing
drains, and each place has a worker that turns and has proved its lease.

A schema that is newer is no reason: while a release rolls out, the masters of the old one go on working beside it, and
a supervisor that takes them for broken would end them all at once.

Everything is read from shared memory; nothing is asked of a process or a database that may hang.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wqcore import clock
from wqcore.proc.board import BOOT, DRAINING, FREE, WORKING, Board, Sheet
from wqcore.settings import Process
from wqcore.watch import page as layout
from wqcore.watch.page import Page

SILENT_S = 3.0
"""Master and keeper turn every quarter of a second; a machine that is short of CPU was seen to hold them up for 1 s."""
YOUNG_S, YOUNG_DEATHS = 5.0, 3
"""A worker whose place has lost three in a row within 5 s of their start is not trusted before it is older than that."""


class Check(NamedTuple):
    """One thing that has to hold."""

    name: str
    problem: str | None
    """None: it holds."""


class Health:
    """The judgement described above.

    Args:
        keeper: the keeper's own sheet.
        beat_at: when the last heartbeat went through (monotonic s); 0: none has.
        versions: (the schema's version, as last seen; None: not seen yet; the version that this program needs).
    """

    def __init__(
        self,
        limits: Process,
        board: Board,
        page: Page,
        keeper: Sheet,
        *,
        beat_at: Callable[[], float],
        versions: Callable[[], tuple[int | None, int]],
    ) -> None:
        self._limits = limits
        self._board = board
        self._page = page
        self._keeper = keeper
        self._beat_at = beat_at
        self._versions = versions

    def live(self) -> list[Check]:
        """Whether master and keeper turn."""
        now_ns = clock.monotonic_ns()
        return [
            Check("master", _silent("the master's loop", now_ns - self._board.tick_ns)),
            Check("keeper", _silent("the keeper's loop", now_ns - self._keeper.tick_ns)),
        ]

    def ready(self) -> list[Check]:
        """Whether jobs can be fetched, for each place of this master."""
        checks = [
            *self.live(),
            Check("draining", "the master drains" if self._page.draining else None),
            Check("database", self._database()),
            Check("schema", self._schema()),
        ]
        places = enumerate(self._page.places)
        return checks + [Check(f"worker {name}", self._place(number)) for number, name in places]

    def _database(self) -> str | None:
        beat_at = self._beat_at()
        if not beat_at:
            return "no heartbeat has gone through yet"
        # the keeper itself takes this for a silence, after which others' silence proves nothing
        silent_s = clock.monotonic() - beat_at
        return None if silent_s <= self._limits.dead_after_s / 2 else f"no heartbeat has gone through for {silent_s:.1f} s"

    def _schema(self) -> str | None:
        found, needed = self._versions()
        if found is None or found >= needed:
            return None
        return f"the schema is at version {found}, but this program needs {needed}: run `wqcore migrate`"

    def _place(self, number: int) -> str | None:
        """What is wrong with a place: nothing, as soon as one worker there is well; two are there while one is replaced."""
        workers = [
            (self._board.sheets[at], segment.header)
            for at, segment in enumerate(self._page.segments)
            if segment.header[layout.PLACE] == number + 1 and self._board.sheets[at].state != FREE
        ]
        problems = [self._worker(sheet, header, number) for sheet, header in workers]
        if None in problems:
            return None
        died = self._page.young_deaths(number)
        again = f"; the last {died} died soon after their start" if died >= YOUNG_DEATHS else ""
        return (problems[-1] or "") + again if problems else f"there is no worker{again}"

    def _worker(self, sheet: Sheet, header: memoryview, number: int) -> str | None:
        now_ns = clock.monotonic_ns()
        proved_ns = header[layout.PROVED]
        if sheet.state != WORKING:
            return {BOOT: "it is starting", DRAINING: "it drains"}.get(sheet.state, "it has gone")
        silent = _silent("its event loop", now_ns - sheet.tick_ns)
        if silent:
            return silent
        if not proved_ns:
            return "it has no lease: it is not registered in the database"
        if now_ns - proved_ns > self._limits.dead_after_s * 1e9:
            return f"its lease was last proved {(now_ns - proved_ns) / 1e9:.1f} s ago"
        young = now_ns - header[layout.STARTED] < YOUNG_S * 1e9
        return "it has just started" if young and self._page.young_deaths(number) >= YOUNG_DEATHS else None


def _silent(what: str, silent_ns: int) -> str | None:
    return f"{what} has not turned for {silent_ns / 1e9:.1f} s" if silent_ns > SILENT_S * 1e9 else None
