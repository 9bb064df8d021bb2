"""The small pure rooms: delays, wake-ups, error texts, the names, the board."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wqcore import backoff
from wqcore.db import wake
from wqcore.job import ERROR_TEXT_CHARS_MAX, Row, check_name
from wqcore.line.settle import Again, Outcomes, clean, error_of
from wqcore.outcome import Retry, Snooze
from wqcore.proc.board import RING_JOBS_MAX, Board

ROW = (1, 0, 1, "k", 0, 2, 3, 0, None, None, 0, b"{}", None)


# --- backoff


@given(st.integers(1, 1000))
def test_rivers_policy_is_the_fourth_power_within_a_tenth(attempt: int) -> None:
    assert 0.9 * attempt**4 <= backoff.river(attempt) <= 1.1 * attempt**4


def test_graphiles_policy_stops_growing_after_ten() -> None:
    assert backoff.graphile(1) == pytest.approx(math.e)
    assert backoff.graphile(10) == backoff.graphile(1000) == math.exp(10)


@given(st.floats())
def test_no_policy_waits_less_than_nothing_or_more_than_a_week(seconds: float) -> None:
    delay = backoff.delay_s(backoff.constant(seconds), 1)
    assert 0 <= delay <= backoff.DELAY_MAX_S


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, 1e10])
def test_an_impossible_delay_is_refused_where_it_is_written(delay: float) -> None:
    for outcome in (lambda: Retry(after=delay), lambda: Snooze(delay)):
        with pytest.raises(ValueError, match="100 years"):
            outcome()


# --- wake-ups

pairs = st.sets(st.tuples(st.integers(0, 255), st.integers(-1000, 1000)), max_size=600)


@given(pairs, st.booleans(), st.booleans())
def test_a_wake_up_says_what_it_was_given_or_means_everything(ready: set[tuple[int, int]], due: bool, past: bool) -> None:
    text = wake.payload(ready, due=due, past=past)
    assert len(text) < 8000
    heard = wake.parse(text)
    if len(ready) + due + past > 500:
        assert heard is None
    else:
        assert heard == (sorted(ready), due, past, False, False, [], [])


def test_slots_and_nonsense_are_understood() -> None:
    assert wake.parse("slots due past") == ([], True, True, True, False, [], [])
    assert wake.parse("queue gone:7,8 3:1") == ([(3, 1)], False, False, False, True, [7, 8], [])
    assert wake.parse("due back:7") == ([], True, False, False, False, [], [7])
    assert wake.parse("gone:7,x") is None
    assert wake.parse("all") is None
    assert wake.parse("1:x") is None


def test_a_channel_fits_and_tells_schemas_and_queues_apart() -> None:
    channels = {wake.channel(schema, queue) for schema in ("a", "é" * 60) for queue in ("b", "c" * 128)}
    assert len(channels) == 4
    assert {len(channel) for channel in channels} == {35}


# --- error texts


@given(st.text(st.characters(categories=None), max_size=200))
def test_a_cleaned_text_can_be_stored(text: str) -> None:
    cleaned = clean(text)
    assert "\x00" not in cleaned
    cleaned.encode()


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    cleaned = clean("x" * 20_000)
    assert cleaned.endswith("(20000 characters)")
    assert len(cleaned) < ERROR_TEXT_CHARS_MAX + 50


def test_an_error_is_kept_with_its_class_and_frames_but_no_source() -> None:
    try:
        raise ValueError("secret \x00 \ud800")
    except ValueError as error:
        entry = json.loads(error_of(ROW, error))
    assert entry["attempt"] == ROW[Row.ATTEMPT] + 1
    assert (entry["class"], entry["error"]) == ("ValueError", "secret � �")
    assert len(entry["traceback"]) == 1
    assert "raise" not in entry["traceback"][0]


def test_an_error_whose_text_raises_is_still_an_error() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "MuteError" in json.loads(error_of(ROW, MuteError()))["error"]


def test_outcomes_that_could_not_be_sent_go_first_next_time() -> None:
    sent, newer = Outcomes(), Outcomes()
    sent.done, newer.done = [(1, *ROW[1:])], [(2, *ROW[1:])]
    sent.again.append(Again(3, 0, 1, 0.0, None))
    assert not Outcomes()
    newer.absorb(sent)
    assert (newer.ids(), len(newer), bool(newer)) == ([1, 2, 3], 3, True)


# --- names


@pytest.mark.parametrize(
    ("name", "word"), [("", "empty"), ("a\x00", "NUL"), ("\ud800", "surrogate"), ("ü" * 65, "130 bytes")]
)
def test_a_name_that_cannot_be_stored_is_refused_with_the_reason(name: str, word: str) -> None:
    assert word in (check_name("queue", name) or "")
    assert check_name("queue", "ü" * 64) is None


# --- the board


def test_a_job_counts_as_started_from_its_start_until_it_is_acknowledged() -> None:
    sheet = Board([2]).sheets[0]
    sheet.assign(77, 1)
    sheet.set_kinds(["a", "b"])
    sheet.started(0, 101, 0, 1, 5.5)
    sheet.started(1, 102, 3, 9, 6)
    assert sheet.running() == [(101, 0, "b", 5.5), (102, 3, "#9", 6)]
    sheet.finished(0, 101, 0)
    mark = sheet.mark()
    sheet.finished(1, 102, 3)
    assert sheet.running() == []
    assert sorted(sheet.started_jobs()) == [(101, 0), (102, 3)]
    sheet.acknowledged(mark)
    assert sheet.started_jobs() == [(102, 3)]
    sheet.acknowledged(sheet.mark())
    assert sheet.started_jobs() == []
    assert sheet.shard == 77


def test_after_nothing_counts_as_started_a_run_that_ends_does_not_count_either() -> None:
    sheet = Board([2]).sheets[0]
    sheet.started(0, 101, 0, 1, 5.5)
    sheet.started(1, 102, 0, 1, 5.5)
    sheet.finished(0, 101, 0)
    sheet.nothing_started()
    assert sheet.started_jobs() == []
    sheet.finished(1, 102, 0)
    assert sheet.started_jobs() == []
    sheet.assign(78, 1)
    sheet.started(0, 103, 0, 1, 5.5)
    assert sheet.started_jobs() == [(103, 0)]


def test_the_ring_turns_and_each_sheet_is_its_own() -> None:
    first, second = Board([1, 1]).sheets
    second.started(0, 5, 0, 0, 0)
    for number in range(1, RING_JOBS_MAX + 11):
        first.started(0, number, 0, 0, 0)
        first.finished(0, number, 0)
        first.acknowledged(max(0, first.mark() - 3))
    assert sorted(first.started_jobs()) == [(RING_JOBS_MAX + n, 0) for n in (8, 9, 10)]
    assert second.started_jobs() == [(5, 0)]
    first.assign(1, 1)
    assert (first.started_jobs(), second.started_jobs()) == ([], [(5, 0)])


def test_more_kinds_than_fit_are_shown_by_number() -> None:
    sheet = Board([1]).sheets[0]
    sheet.set_kinds([f"kind-{number:090}" for number in range(500)])
    sheet.started(0, 1, 0, 499, 0)
    assert sheet.running()[0].kind == "#499"
