"""A claimed job that was deleted, is held already, or was acknowledged by the same turn does not start."""

from __future__ import annotations

import math
from typing import Any, cast

from wqcore.job import Row
from wqcore.line.gone import GONE_KEPT_S, Gone
from wqcore.line.progress import PROGRESS_EVERY_S, Progress
from wqcore.line.settle import Outcomes
from wqcore.line.turn import Protocol


class Table:
    """The statements that these rooms send, without a database."""

    def __init__(self, *unfinished: int) -> None:
        self.unfinished = unfinished
        self.progress: dict[int, float] = {}

    async def remaining(self, ids: list[int]) -> list[tuple[int, int, int]]:
        return [(job_id, 0, 1) for job_id in ids if job_id in self.unfinished]

    async def write_progress(self, items: list[tuple[int, float, str | None]]) -> None:
        self.progress |= {job_id: fraction for job_id, fraction, _ in items}

    async def forget_progress(self, ids: list[int]) -> None:
        for job_id in ids:
            del self.progress[job_id]

    def protocol(self) -> Protocol:
        return cast(Protocol, self)


def row(id_: int, *, run_at: int | None = None, revision: int = 1) -> tuple[Any, ...]:
    columns: list[Any] = [None] * 13
    columns[Row.ID], columns[Row.RUN_AT], columns[Row.REVISION] = id_, run_at, revision
    return tuple(columns)


def test_a_deleted_job_is_dropped_for_as_long_as_a_turn_can_bring_it_back() -> None:
    gone = Gone(Table().protocol())
    gone.deleted([2], now=100.0)
    assert gone.sift([row(1), row(2)], [], Outcomes()) == [row(1)]
    gone.deleted([9], now=100.0 + GONE_KEPT_S)
    assert gone.sift([row(1), row(2)], [], Outcomes()) == [row(1), row(2)]


def test_a_job_that_comes_a_second_time_as_a_due_one_is_dropped() -> None:
    gone, outcomes = Gone(Table().protocol()), Outcomes()
    outcomes.done = [row(4, revision=1), row(5, revision=1)]
    rows = [row(3, run_at=7), row(4, run_at=7), row(5, run_at=7, revision=2), row(6, run_at=7)]
    assert gone.sift(rows, [3], outcomes) == [rows[2], rows[3]]


async def test_after_a_reconnect_what_is_not_in_the_table_is_missing_unless_its_handler_completed_it() -> None:
    gone = Gone(Table(1).protocol())
    gone.completed_tx = {2, 8}
    assert await gone.missing([1, 2, 3]) == {3}
    assert gone.completed_tx == {2}


async def test_after_a_reconnect_a_job_that_was_put_back_meanwhile_runs() -> None:
    """The notification that it is back was lost with the connection; so was any reply that could bring it wrongly."""
    gone = Gone(Table().protocol())
    gone.deleted([1], now=0.0)
    assert gone.sift([row(1)], [], Outcomes()) == []
    assert await gone.missing([]) == set()
    assert gone.sift([row(1)], [], Outcomes()) == [row(1)]


async def test_only_the_newest_word_of_a_job_that_is_held_is_written_and_none_stays_after_its_end() -> None:
    table = Table()
    progress = Progress(table.protocol())
    assert progress.say(1, 0.1, None)
    assert not progress.say(1, 0.2, None)
    assert not progress.say(2, 0.5, None)
    await progress.write(progress.due_at, [1])
    assert table.progress == {1: 0.2}
    await progress.forget_ended([])
    assert table.progress == {}
    assert not progress.written


async def test_words_are_written_once_a_second_at_most() -> None:
    progress = Progress(Table().protocol())
    progress.say(1, 0.1, None)
    wrote_at = progress.due_at
    await progress.write(wrote_at, [1])
    assert progress.due_at == math.inf
    progress.say(1, 0.2, None)
    assert progress.due_at == wrote_at + PROGRESS_EVERY_S
