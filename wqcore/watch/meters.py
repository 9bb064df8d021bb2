"""A worker counts what its shard does, at nearly no cost: nothing a job but one comparison, and some 10 µs a flush.

The executor's own totals, kept anyway, are folded into the worker's segment of the shared page when a turn has ended, at
most every `FLUSH_S`, and with each tick of the worker. How long jobs had waited for their start is looked up for at most
`WAITS_A_TURN` jobs of a turn, spread evenly over it: each stands for its neighbours, so counts stay exact in sum. All jobs
of a turn are looked at while a turn has few.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from operator import sub
from typing import TYPE_CHECKING, Any

from wqcore import clock
from wqcore.job import Row
from wqcore.watch import page as layout
from wqcore.watch.page import PACK, Page

if TYPE_CHECKING:
    from wqcore.catalog import Catalog
    from wqcore.line.execute import Executor
    from wqcore.line.ledger import Counters, KindStats
    from wqcore.line.settle import Outcomes

FLUSH_S = 0.02
WAITS_A_TURN = 16
_KIND, _RUN_AT, _CREATED_AT = Row.KIND, Row.RUN_AT, Row.CREATED_AT


class _Block:
    """A block of the page, and what it has to be next: totals since the first worker that counted here."""

    __slots__ = ("dirty", "view", "words")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.words: list[int] = view.tolist()
        self.dirty = False

    def add(self, word: int, count: int) -> None:
        self.words[word] += count
        self.dirty = True

    def observe(self, at: int, bounds: Sequence[float], value: float, count: int = 1) -> None:
        """Enters `count` observations of `value` in the histogram at `at`."""
        words = self.words
        words[at] += round(value * 1e6) * count
        words[at + 1 + bisect_left(bounds, value)] += count
        self.dirty = True

    def write(self) -> None:
        if self.dirty:
            PACK[len(self.words)].pack_into(self.view, 0, *self.words)
            self.dirty = False


class _Taken:
    """How much of the totals of one kind its block has taken in. Kinds without a number of their own share a block."""

    __slots__ = ("block", "of_runs", "runs", "seconds", "unstarted")

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.runs = 0
        self.seconds = 0.0
        self.of_runs: tuple[int, ...] = (0,) * 6
        self.unstarted: tuple[int, ...] = (0,) * 6

    def fold(self, stats: KindStats) -> None:
        """Takes in what is new."""
        of_runs, unstarted, runs = _ends(stats.counters), _ends(stats.unstarted), stats.runs - self.runs
        if not runs and of_runs == self.of_runs and unstarted == self.unstarted:
            return
        ends = list(map(sub, of_runs, self.of_runs))
        words = self.block.words
        # of the runs, what did not end in one of the first five has completed; TIMED_OUT says more about some of those
        words[layout.COMPLETED] += runs - sum(ends[:5])
        words[layout.ATTEMPTS] += runs - ends[3] - ends[4]
        for word, (ran, total, seen) in enumerate(zip(ends, unstarted, self.unstarted, strict=True), layout.CANCELLED):
            words[word] += ran + total - seen
        words[layout.DURATION] += round((stats.seconds - self.seconds) * 1e6)
        words[layout.DURATION + 1] += runs - len(stats.slow)
        for seconds in stats.slow:
            words[layout.DURATION + 1 + bisect_left(layout.DURATION_S, seconds)] += 1
        stats.slow.clear()
        self.runs, self.seconds, self.of_runs, self.unstarted = stats.runs, stats.seconds, of_runs, unstarted
        self.block.dirty = True


def _ends(totals: Counters) -> tuple[int, ...]:
    """In the order of the words of a block, from CANCELLED on."""
    return (totals.cancelled, totals.discarded, totals.retried, totals.snoozed, totals.interrupted, totals.timed_out)


class Meter:
    """What one worker counts.

    Args:
        page: the shared page.
        segment: the number of the worker's sheet of the board.
        place: the name of its place.
        queue: its queue.
        catalog: the kinds.
    """

    def __init__(self, page: Page, *, segment: int, place: str, queue: str, catalog: Catalog) -> None:
        own, number = page.segments[segment], page.queue_number(queue)
        self._header = own.header
        self._queue = _Block(own.queue(number))
        numbers = page.kind_numbers([kind.name for kind in catalog])
        self._blocks = {at: _Block(own.kind(number, at)) for at in {0, *numbers.values()}}
        self._taken = {name: _Taken(self._blocks[at]) for name, at in numbers.items()}
        self._others = _Taken(self._blocks[0])
        self._by_name = {
            name: self._blocks[numbers[kind.name]] for kind in catalog for name in (kind.name, *kind.aliases)
        }
        self._stuck = 0
        self._flush_at = 0.0
        own.use(number)
        self._header[layout.PROVED] = self._header[layout.CLAIMED] = 0
        self._header[layout.PID], self._header[layout.STARTED] = os.getpid(), clock.monotonic_ns()
        self._header[layout.PLACE] = 1 + page.places.index(place)

    # --- what the shard says --------------------------------------------------------------------------------------

    def turned(self, seconds: float, fetched: int, acknowledged: int) -> None:
        """A turn has ended."""
        self._queue.observe(layout.TURN, layout.TURN_S, seconds)
        self._queue.observe(layout.FETCHED, layout.BATCH_JOBS, fetched)
        self._queue.observe(layout.ACKNOWLEDGED, layout.BATCH_JOBS, acknowledged)

    def waited(self, outcomes: Outcomes, offset_us: float) -> None:
        """How long the jobs that a turn has acknowledged had waited for their start; a sample of them when they are many.

        `offset_us`: the database's clock less ours.
        """
        rows, began = outcomes.done, outcomes.done_began
        step = -(-len(rows) // WAITS_A_TURN) or 1
        for at in range(0, len(rows), step):
            self.waited_one(rows[at], began[at], offset_us, min(step, len(rows) - at))

    def waited_one(self, row: tuple[Any, ...], began: float, offset_us: float, count: int = 1) -> None:
        """How long a job had waited when it started at `began`; it stands for `count` jobs."""
        ready_us = row[_CREATED_AT] if row[_RUN_AT] is None else row[_RUN_AT]
        seconds = max(0.0, began + (offset_us - ready_us) / 1e6)
        self._by_name.get(row[_KIND], self._blocks[0]).observe(layout.WAIT, layout.WAIT_S, seconds, count)

    def lagged(self, seconds: float) -> None:
        """The event loop has come back to a timer this much too late."""
        self._queue.observe(layout.LAG, layout.LAG_S, max(0.0, seconds))

    def proved(self, at: float) -> None:
        """The database has just confirmed the lease."""
        self._header[layout.PROVED] = int(at * 1e9)

    def count(self, what: int) -> None:
        """RECONNECTS, FENCED or DOUBTED."""
        self._queue.add(what, 1)
        self._queue.write()
        if what == layout.FENCED:
            self._header[layout.PROVED] = 0

    # --- flushing -------------------------------------------------------------------------------------------------

    def flush_soon(self, executor: Executor) -> None:
        """Writes on the page, unless that was done a moment ago."""
        now = clock.monotonic()
        if now >= self._flush_at:
            self._flush_at = now + FLUSH_S
            self.flush(executor)

    def flush(self, executor: Executor) -> None:
        """Writes on the page."""
        for name, stats in executor.stats.items():
            self._taken[name].fold(stats)
        self._others.fold(executor.others)
        for block in self._blocks.values():
            block.write()
        stuck = executor.counters.stuck
        if stuck != self._stuck:
            self._queue.add(layout.STUCK, stuck - self._stuck)
            self._stuck = stuck
        self._queue.write()
        self._header[layout.CLAIMED] = executor.waiting + executor.keys.parked
