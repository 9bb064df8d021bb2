"""Tells the master how much memory of its own a worker holds: the least of the last three samples, so no peak counts.

What counts is the unique set size: what the end of this process would give back. Memory that it shares with the master
(preloaded modules) does not count until it is written to. A thread samples, so that a busy loop does not hide anything.
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import psutil

from wqcore import clock
from wqcore.proc.board import Sheet

SAMPLE_EVERY_S = 1.0
SAMPLES = 3
BUSY_SHARE = 0.01
"""The kernel walks over all pages: measured 2.6 ms with 200 MB and 14 ms with 1.2 GB, so big processes are sampled less often."""


WORSE = 100
"""A tenth of the memory that the limit is about: more than a master holds beyond a worker at rest (73 to 54 MB measured)."""


def first_to_be_killed() -> None:
    """Asks the kernel to kill this worker rather than its master when memory runs out, however little it holds by itself.

    The kernel takes the largest, and at rest that is the master: it has read every module. As process 1 of a container it
    would take all workers with it. Raising one's own score needs no right.
    """
    try:
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + WORSE)))
    except (OSError, ValueError):
        pass  # /proc is hidden or read-only here: the kernel chooses by size alone


def watch_memory(sheet: Sheet) -> None:
    """Starts the thread; it ends with the process."""
    threading.Thread(target=_sample, args=(sheet,), name="wqcore memory", daemon=True).start()


def _sample(sheet: Sheet) -> None:
    process = psutil.Process()
    last: deque[int] = deque(maxlen=SAMPLES)
    while True:
        began = clock.monotonic()
        try:
            last.append(process.memory_full_info().uss)
        except (psutil.Error, OSError):
            return  # /proc is hidden here: the limit has no effect, and nothing else depends on it
        if len(last) == SAMPLES:
            sheet.memory(min(last))
        clock.sleep(max(SAMPLE_EVERY_S, (clock.monotonic() - began) / BUSY_SHARE))
