"""The live display: what was seen is drawn where it belongs, what was not seen is blank, and it fits the screen."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from wqcore.watch import tables
from wqcore.watch.top import CELL_S, History, Top, sparkline


def queue(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "queue": name, "paused": False, "seats": 20, "running": 5, "waiting": 0, "capped": False, "later_capped": False,
        "oldest_waiting_s": None, "completed_per_s": 0.0, "failed_per_s": 0.0, "scheduled": 0, "retryable": 0,
    } | changed  # fmt: skip


def look(*queues: dict[str, Any], masters: int = 1) -> dict[str, Any]:
    job = {"id": 1, "attempt": 1, "kind": "mail", "for_s": 3.0, "queue": "default"}
    master = {"host": "web", "pid": 7, "group": None, "beat_age_s": 0.5, "shards": 2, "running": 5, "seats": 20,
              "completed_per_s": 3.0, "memory_bytes": 50 << 20, "drain_asked_at": None, "jobs": [job]}  # fmt: skip
    base = dict.fromkeys(("hidden", "notify_queue", "jobs_estimate", "dead_estimate", "job_bytes", "history_bytes"), 0)
    base |= {"version": "18.4", "connections": 9, "connections_max": 100, "oldest_transaction_s": 400.0, "round_trip_s": 0.001}  # type: ignore[dict-item]
    return {"queues": list(queues), "processes": [master] * masters, "database": base, "last_hour": {"completed": 5},
            "last_hour_capped": ["completed"]}  # fmt: skip


def drawn(top: Top, now: float, width: int, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(top.frame(now, width, height, live=True))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_sparkline_has_the_lowest_bar_for_nothing_and_a_blank_for_what_is_not_known() -> None:
    assert sparkline([None, 0.0, 0.001, 5.0, 10.0]) == " ▁▂▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([None]) == " "


def test_a_cell_is_the_mean_of_its_looks_and_a_time_without_looks_is_unknown() -> None:
    history = History()
    for at, value in ((0.0, 2.0), (1.0, 4.0), (3 * CELL_S, 8.0)):
        history.add("a", value, at)
    assert history.means("a", 3 * CELL_S, 5) == [None, 3.0, None, None, 8.0]
    assert history.means("b", 0.0, 2) == [None, None]


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_fits_the_width_and_shows_every_queue(width: int) -> None:
    top = Top("host=h", 2.0)
    long = "a-queue-with-a-rather-long-name-" * 2
    rows = [queue("default", waiting=123_456, capped=True, oldest_waiting_s=7200.0, completed_per_s=1234.5), queue(long),
            queue("lost", seats=0, waiting=3), queue("off", paused=True, running=0)]  # fmt: skip
    for second in range(0, 400, 5):
        top.saw(look(*rows), float(second))
    shown = drawn(top, 399.0, width)
    assert max(map(len, shown.splitlines())) <= width
    seen = ("default", "123.5k+", "2h00m", "1234", "a-queue-w", "no worker", "paused", "web:7", "1 mail 3.0s", "5+ completed")
    for part in seen:
        assert part in shown, part
    assert "█████" in shown


def test_more_queues_than_lines_leave_those_out_that_have_the_least_to_do() -> None:
    top = Top("host=h", 2.0)
    top.saw(look(*(queue(f"q{n:02d}", waiting=n) for n in range(40))), 0.0)
    shown = drawn(top, 0.0, 80, 30)
    assert len(shown.splitlines()) <= 30
    assert "q39" in shown
    assert "q00" not in shown
    assert "more" in shown


def test_when_the_database_is_away_the_last_look_stays_and_says_that_it_is_old() -> None:
    top = Top("host=h", 2.0)
    top.saw(look(queue("default", waiting=17)), 0.0)
    top.missed("cannot use PostgreSQL at host=h")
    shown = drawn(top, 1.0, 80)
    assert "what follows is old: cannot use PostgreSQL" in shown
    assert "17" in shown
    assert top.lines()[0].endswith("cannot use PostgreSQL at host=h")
    top.saw(look(queue("default")), 2.0)
    assert "old:" not in drawn(top, 2.0, 80)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (tables.number(9999), "9999"), (tables.number(12_345), "12.3k"), (tables.number(2_000_000), "2M"),
        (tables.number(100_000, more=True), "100k+"), (tables.number(None), "–"),
        (tables.span(0.34), "0.3s"), (tables.span(59.4), "59s"), (tables.span(59.6), "1m00s"), (tables.span(3599.9), "1h00m"),
        (tables.span(7260), "2h01m"), (tables.span(90_000), "1d1h"), (tables.span(None), "–"), (tables.span(-3), "0.0s"),
        (tables.size(900), "900 B"), (tables.size(5 << 20), "5.0 MB"), (tables.size(3 << 40), "3072 GB"),
        (tables.rate(0.0), "0"), (tables.rate(0.01), "<0.1"), (tables.rate(12.34), "12.3"), (tables.rate(12_345.6), "12.3k"),
        (tables.gauge(0, 0).plain, "░░░░░░░░ 0/0"), (tables.gauge(1, 1000).plain, "█░░░░░░░ 1/1000"),
        (tables.gauge(30, 20, 4).plain, "████ 30/20"),
    ],
)  # fmt: skip
def test_numbers_take_few_characters(shown: str, expected: str) -> None:
    assert shown == expected
