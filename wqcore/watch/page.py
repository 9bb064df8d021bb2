"""Counters of all processes of a master in shared memory: none goes back when a process dies and is replaced.

The page is mapped before the first fork. Every word of it has one writer at a time: the master its own, the keeper its
own, a worker the *segment* of its sheet of the board. Who takes a part over goes on counting where the last one stopped.
A word is 64 bits and is read whole; a reader may see a block between two words of one change, so that a sum can run
ahead of its count by a run or two. What a crash leaves out is what a worker has not flushed: some 20 ms.

Names are bounded: queues are those of the configuration, kinds those of the catalog; whatever else is "other", number 0.
Pages that nobody has touched cost no memory, so a segment has room for every queue and kind.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Sequence

OTHER = "other"
KINDS_MAX = 256
"""Kinds that are told apart where the master has not imported the handlers (`process.preload = false`)."""
_NAMES_BYTES = 64 * 1024

DURATION_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
)  # fmt: skip
"""Upper bounds of the buckets for runs: from handlers that hardly do anything to the hour, by factors of 2 to 5, which is how
wrong a quantile can be. A run below the first costs the worker one comparison, which is why there is none below 1 ms."""
WAIT_S = (*DURATION_S, 21_600.0, 86_400.0)
"""The same for waiting, which has no time-out: up to a day."""
TURN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""A turn takes 1 to 10 ms; `database.statement_timeout_s` ends it at 30 s."""
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Up to `process.loop_stuck_s`, at which the worker is killed."""
BATCH_JOBS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)
"""Up to the largest `queues.<name>.batch_max`."""


def histogram_words(bounds: Sequence[float]) -> int:
    """A sum, in millionths, and a count for each bucket, the last of which has no upper bound."""
    return len(bounds) + 2


COMPLETED, CANCELLED, DISCARDED, RETRIED, SNOOZED, INTERRUPTED, TIMED_OUT, ATTEMPTS = range(8)
"""Words of a kind's block; then its two histograms."""
DURATION = 8
WAIT = DURATION + histogram_words(DURATION_S)
KIND_WORDS = WAIT + histogram_words(WAIT_S)

RECONNECTS, FENCED, DOUBTED, STUCK = range(4)
"""Words of a queue's block; then its four histograms."""
TURN = 4
FETCHED = TURN + histogram_words(TURN_S)
ACKNOWLEDGED = FETCHED + histogram_words(BATCH_JOBS)
LAG = ACKNOWLEDGED + histogram_words(BATCH_JOBS)
QUEUE_WORDS = LAG + histogram_words(LAG_S)

PLACE, PID, STARTED, PROVED, CLAIMED = range(5)
"""Words of a segment's header: the place's number + 1, the worker's pid, when it started and when its lease was last
proved (monotonic ns), and how many jobs it holds that have not started. Then, for each queue, whether it has written there."""
_HEADER = 5

RESTARTS = ("died", "stuck", "start", "threads", "fenced", "suspended", "recycled")
"""Why a child was replaced: it ended by itself or by a signal · the master killed it, because its loop or its drain stood
still · it could not start · it left threads behind · its lease was gone · it was suspended for too long · it was due."""
_OF_KEEPER = 3
"""A keeper is lost for one of the first three only."""
RESCUES = ("died", "suspended", "host", "lost")
"""Whose jobs were given back: a worker of ours that died, one that is suspended, one of another master that is silent, one
that is registered under our master though no child is it."""
_AGAIN, _ENDED, _HELD = len(RESCUES), len(RESCUES) + 1, len(RESCUES) + 2
_RESCUE_WORDS = len(RESCUES) + 3
RESCUED = {"again": _AGAIN, "discarded": _ENDED, "held": _HELD}


class Segment:
    """What one worker writes, as plain words."""

    def __init__(self, words: memoryview, queues: int, kinds: int) -> None:
        self.header = words[:_HEADER]
        self._used = words[_HEADER : _HEADER + queues]
        self._words = words[_HEADER + queues :]
        self._row = QUEUE_WORDS + kinds * KIND_WORDS

    @staticmethod
    def size(queues: int, kinds: int) -> int:
        return _HEADER + queues * (1 + QUEUE_WORDS + kinds * KIND_WORDS)

    def use(self, queue: int) -> None:
        """From now on the row of that queue is read."""
        self._used[queue] = 1

    def used(self, queue: int) -> bool:
        """Whether a worker of that queue has ever written here: a row that was not touched is not to be read either."""
        return bool(self._used[queue])

    def queue(self, queue: int) -> memoryview:
        """The block of a queue."""
        at = queue * self._row
        return self._words[at : at + QUEUE_WORDS]

    def kind(self, queue: int, kind: int) -> memoryview:
        """The block of a kind on a queue."""
        at = queue * self._row + QUEUE_WORDS + kind * KIND_WORDS
        return self._words[at : at + KIND_WORDS]


class Page:
    """The shared pages.

    Args:
        queues: the names of the queues of this master.
        places: the names of its places, in the order in which the master has them.
        kinds: the names of all kinds; None when only the workers import them.
        segments: how many sheets the board has.
    """

    def __init__(self, *, queues: Sequence[str], places: Sequence[str], kinds: Sequence[str] | None, segments: int) -> None:
        self.queues = [OTHER, *queues]
        self.places = list(places)
        self._kinds_max = 1 + (KINDS_MAX if kinds is None else len(kinds))
        of_master = 1 + len(self.places) + (1 + len(self.queues)) * len(RESTARTS)
        of_keeper = 1 + len(self.queues) * _RESCUE_WORDS
        size = Segment.size(len(self.queues), self._kinds_max)
        self._map = mmap.mmap(-1, 8 * (1 + of_master + of_keeper + segments * size) + _NAMES_BYTES)
        whole = memoryview(self._map)
        self._names = whole[-_NAMES_BYTES:]
        words = whole[:-_NAMES_BYTES].cast("q")
        self._names_bytes, words = words[:1], words[1:]
        self._master, words = words[:of_master], words[of_master:]
        self._keeper, words = words[:of_keeper], words[of_keeper:]
        self.segments = [
            Segment(words[at : at + size], len(self.queues), self._kinds_max)
            for at in range(0, segments * size, size)
        ]
        if kinds is not None:
            self.kind_numbers(kinds)

    # --- names ----------------------------------------------------------------------------------------------------

    def queue_number(self, queue: str) -> int:
        """The number of a queue; 0 when it is none of this master's."""
        return self.queues.index(queue) if queue in self.queues else 0

    def kinds(self) -> list[str]:
        """The names behind the numbers of kinds, "other" first."""
        return [OTHER, *json.loads(bytes(self._names[: self._names_bytes[0]]) or b"[]")]

    def kind_numbers(self, names: Sequence[str]) -> dict[str, int]:
        """The numbers of kinds; those not seen before are added while there is room.

        Workers that do this at the same time write the same names, because they have imported the same modules.
        """
        known = self.kinds()
        more = [name for name in names if name not in known][: self._kinds_max - len(known)]
        while more and len(data := json.dumps([*known[1:], *more]).encode()) > _NAMES_BYTES:
            more.pop()
        if more:
            self._names[: len(data)] = data
            self._names_bytes[0] = len(data)
        numbers = {name: number for number, name in enumerate([*known, *more])}
        return {name: numbers.get(name, 0) for name in names}

    # --- written by the master ------------------------------------------------------------------------------------

    def drains(self) -> None:
        """The master drains."""
        self._master[0] = 1

    @property
    def draining(self) -> bool:
        return bool(self._master[0])

    def ended(self, queue: str | None, cause: str) -> None:
        """A child was lost for one of RESTARTS; `queue` is None for the keeper."""
        self._master[self._restart(queue, cause)] += 1

    def dies_young(self, place: str, times: int) -> None:
        """How often in a row the processes of a place have died young."""
        self._master[1 + self.places.index(place)] = times

    def young_deaths(self, place: int) -> int:
        return self._master[1 + place]

    def restarts(self) -> Iterator[tuple[str | None, str, int]]:
        """(queue, or None for the keeper; cause; count)."""
        for queue in (None, *self.queues[1:]):
            for cause in RESTARTS if queue else RESTARTS[:_OF_KEEPER]:
                yield queue, cause, self._master[self._restart(queue, cause)]

    def _restart(self, queue: str | None, cause: str) -> int:
        row = 0 if queue is None else 1 + self.queue_number(queue)
        return 1 + len(self.places) + row * len(RESTARTS) + RESTARTS.index(cause)

    # --- written by the keeper ------------------------------------------------------------------------------------

    def keeper_reconnects(self) -> None:
        """The keeper has lost its connection."""
        self._keeper[0] += 1

    @property
    def keeper_reconnected(self) -> int:
        return self._keeper[0]

    def rescued(self, queue: str, cause: str, *, again: int, ended: int, held: int) -> None:
        """A shard was rescued for one of RESCUES."""
        at = 1 + self.queue_number(queue) * _RESCUE_WORDS
        self._keeper[at + RESCUES.index(cause)] += 1
        for word, count in ((_AGAIN, again), (_ENDED, ended), (_HELD, held)):
            self._keeper[at + word] += count

    def rescues(self) -> Iterator[tuple[str, dict[str, int], dict[str, int]]]:
        """(queue, cause → rescues, what became of their jobs → jobs)."""
        for number, queue in enumerate(self.queues):
            at = 1 + number * _RESCUE_WORDS
            words = self._keeper[at : at + _RESCUE_WORDS]
            yield queue, dict(zip(RESCUES, words, strict=False)), {what: words[at] for what, at in RESCUED.items()}

    # --- read -----------------------------------------------------------------------------------------------------

    def totals(self) -> Iterator[tuple[str, list[int], dict[str, list[int]]]]:
        """(queue, its block, kind → its block), added up over the segments, for every queue that a worker has run."""
        kinds = self.kinds()
        for number, queue in enumerate(self.queues):
            rows = [segment for segment in self.segments if segment.used(number)]
            if rows:
                blocks = {kind: _sum([row.kind(number, at) for row in rows]) for at, kind in enumerate(kinds)}
                yield queue, _sum([row.queue(number) for row in rows]), blocks


def _sum(blocks: list[memoryview]) -> list[int]:
    return [sum(words) for words in zip(*blocks, strict=True)]


def buckets(block: Sequence[int], at: int, bounds: Sequence[float]) -> tuple[list[tuple[float, int]], float]:
    """The histogram at `at` as Prometheus has it: (upper bound, how many are not above it) …, and the sum."""
    found, count = [], 0
    for bound, words in zip((*bounds, math.inf), block[at + 1 : at + histogram_words(bounds)], strict=True):
        count += words
        found.append((bound, count))
    return found, block[at] / 1e6


PACK = {words: struct.Struct(f"{words}q") for words in (QUEUE_WORDS, KIND_WORDS)}
"""How a worker writes a block: one call, word by word."""
