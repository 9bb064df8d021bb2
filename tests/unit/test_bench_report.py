"""The report of a benchmark says what was measured, judges targets by it, and names what is missing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from bench import plots  # fails where matplotlib is not installed, and must: a skipped plot is a plot nobody looked at
from bench.report import (
    Machine,
    Round,
    Run,
    Shape,
    Spread,
    System,
    Target,
    judge,
    markdown,
    merged,
    number,
    print_shape,
    print_targets,
    ratio,
    read,
    shape_grid,
    spread,
    write,
)

REPOSITORY = Path(__file__).parents[2]
OURS = [{"jobs_s": 100.0, "wal_bytes_job": 200.0}, {"jobs_s": 120.0, "wal_bytes_job": 220.0}, {"jobs_s": 90.0}]
PEER = [{"jobs_s": 40.0}, {"jobs_s": 30.0}, {"jobs_s": 45.0}]
SLOW = [{"jobs_s": 0.3}, {"jobs_s": 0.25}]


def drain(**more: Any) -> Shape:
    usual = Shape(
        "drain",
        "Drain",
        "How fast a backlog is worked off.",
        "jobs_s",
        "jobs/s",
        "higher",
        {"slow": SLOW, "peer": PEER, "wqcore": OURS},
        notes=["slow got 1 % of the jobs"],
    )
    return msgspec.structs.replace(usual, **more)


def latency() -> Shape:
    def rounds(p50: float) -> list[Round]:
        return [{"p50_ms": p50 * step, "p90_ms": p50 * step * 3, "p99_ms": p50 * step * 40} for step in (1.0, 1.2, 0.9)]

    results = {"wqcore": rounds(1), "peer": rounds(2.5)}
    series = {"wqcore": [(0.0, 1.0), (1.0, 2.0)], "peer": [(0.0, 3.0), (1.0, 2.0)]}
    question = "How long a job waits."
    return Shape("latency_idle", "Latency", question, "p50_ms", "ms", "lower", results, series, "seconds", "ms")


def system(title: str, *, keeps: bool = False) -> System:
    return System(title, "1.2.3", "python 3.11", "2 processes", keeps)


def run(*shapes: Shape, **more: Any) -> Run:
    usual = Run(
        "2026-11-24T10:00:00Z",
        "full",
        Machine(2, "a CPU", 23.5, "6.1", "3.11.7"),
        {"server_version": "18.1", "fsync": "on"},
        {"wqcore": system("wqcore"), "peer": system("A Peer", keeps=True), "slow": system("slow one")},
        list(shapes or (drain(), latency())),
    )
    return msgspec.structs.replace(usual, **more)


def against_peer(goal: float, **more: Any) -> Target:
    usual = Target("drain", "faster than a peer", "wqcore", "jobs_s", "ratio", ">=", goal, "peer")
    return msgspec.structs.replace(usual, **more)


def row(text: str, first: str) -> list[str]:
    """The cells of the first Markdown row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_number_has_its_median_and_spread_over_the_rounds_that_have_it() -> None:
    assert spread(OURS, "jobs_s") == Spread(100.0, 90.0, 120.0, 3)
    assert spread(OURS, "wal_bytes_job") == Spread(210.0, 200.0, 220.0, 2)
    assert spread(OURS, "commits_job") is None


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_paired_rounds() -> None:
    found = ratio(OURS, PEER, "jobs_s")
    assert found is not None
    assert found.ratio == 100 / 40  # the median of the paired ratios is 2.5 too, see the next test
    assert (found.low, found.high, found.paired, found.rounds) == (90 / 45, 120 / 30, 3, 3)


def test_the_median_of_paired_ratios_is_not_what_is_judged() -> None:
    ours: list[Round] = [{"x": 1.0}, {"x": 2.0}, {"x": 9.0}]
    other: list[Round] = [{"x": 4.0}, {"x": 1.0}, {"x": 3.0}]
    found = ratio(ours, other, "x")  # paired: 0.25, 2, 3
    assert found is not None
    assert found.ratio == 2 / 3


def test_a_round_that_gave_nothing_leaves_the_later_ones_paired() -> None:
    found = ratio([{"x": 10.0}, {}, {"x": 30.0}], [{"x": 1.0}, {"x": 1.0}, {"x": 2.0}, {"x": 9.0}], "x")
    assert found is not None
    assert (found.ratio, found.low, found.high) == (20 / 1.5, 10, 15)
    assert (found.paired, found.rounds) == (2, 4)


def test_no_ratio_is_made_of_nothing() -> None:
    assert ratio(OURS, [], "jobs_s") is None
    assert ratio(OURS, [{"jobs_s": 0.0}], "jobs_s") is None
    apart = ratio([{}, {"x": 2.0}], [{"x": 1.0}, {}], "x")
    assert apart is not None
    assert (apart.ratio, apart.low, apart.paired) == (2, None, 0)


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (against_peer(2.5), True),
        (against_peer(2.51), False),
        (against_peer(2.5, op="<="), True),
        (against_peer(100, compare="value", against=None), True),
        (against_peer(99.9, compare="value", against=None, op="<="), False),
    ],
)
def test_a_target_is_judged_by_the_unrounded_median(target: Target, reached: bool) -> None:
    assert judge(run(), target).reached is reached


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (against_peer(1, shape="steady"), "steady was not run"),
        (against_peer(1, against="river"), "river: go is not installed"),
        (against_peer(1, measure="commits_job"), "wqcore: no round has its commits_job"),
        (against_peer(1, against=None), "no system to compare with: no round has its jobs_s"),
    ],
)
def test_a_target_that_could_not_be_measured_is_neither_reached_nor_missed(target: Target, why: str) -> None:
    here = run(unavailable={"river": "go is not installed"})
    verdict = judge(here, target)
    assert (verdict.reached, verdict.missing) == (None, why)
    assert row(markdown(here, [target]), "faster than a peer")[-1] == "**not measured**"


def test_the_markdown_says_in_words_whether_targets_are_reached() -> None:
    text = markdown(run(), [against_peer(2, text="twice"), against_peer(3, text="thrice")])
    assert row(text, "twice") == ["twice", "≥ 2×", "2.50× (2.00 – 4.00)", "yes"]
    assert row(text, "thrice") == ["thrice", "≥ 3×", "2.50× (2.00 – 4.00)", "**no**"]
    assert text.index("## Targets") < text.index("## What ran where") < text.index("## Drain")


def test_a_value_that_just_misses_its_goal_is_not_rounded_to_it() -> None:
    shape = drain(results={"wqcore": [{"jobs_s": 2.9996}], "peer": [{"jobs_s": 1.0}]})
    assert row(markdown(run(shape), [against_peer(3)]), "faster than a peer")[2:] == ["2.9996× (one round)", "**no**"]


def test_rounds_that_are_missing_are_told_beside_the_ratio_and_in_the_table() -> None:
    text = markdown(run(), [against_peer(2, against="slow")])
    assert "2 of 3 rounds paired" in row(text, "faster than a peer")[2]
    grid = shape_grid(run(), drain())
    assert grid.head[-1] == "rounds"
    assert [cells[-1] for cells in grid.rows] == ["3", "3", "2"]


def test_what_could_not_run_is_named_before_all_numbers() -> None:
    here = run(unavailable={"river": "go:\nnot | installed"})
    text = markdown(here, [against_peer(2)])
    assert text.index("> **Could not run: river.** go: not \\| installed") < text.index("## Targets")
    told = io.StringIO()
    print_targets(here, [], Console(file=told, width=200))
    assert "Could not run: river. go: not | installed" in told.getvalue()


def test_a_system_that_gave_no_number_at_all_is_named_too() -> None:
    text = markdown(run(drain(results={"wqcore": OURS, "peer": PEER, "slow": [{}, {}]})), [])
    assert "> **Could not run: slow one.** no round gave a number" in text
    assert "Not measured here: slow one." in text


def test_a_run_that_is_not_a_full_one_says_so() -> None:
    assert "**A quick run**" in markdown(run(mode="quick"), [])
    assert "not a full one" not in markdown(run(), [])


def test_the_table_of_a_shape_has_the_best_first_and_only_columns_that_some_system_has() -> None:
    grid = shape_grid(run(), drain())
    assert grid.head == ["", "jobs/s", "from – to", "ratio to wqcore", "WAL, bytes/job", "rounds"]
    assert grid.rows[0] == ["wqcore", "100", "90.0 – 120", "1", "210", "3"]
    assert grid.rows[1] == ["A Peer", "40.0", "30.0 – 45.0", "0.40× (0.25 – 0.50)", "", "3"]
    assert grid.ours == [True, False, False]
    assert [cells[0] for cells in shape_grid(run(), latency()).rows] == ["wqcore", "A Peer"]  # lower is better


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (134_449, "jobs/s", "134,000"),
        (999.6, "jobs/s", "1,000"),
        (461, "jobs/s", "461"),
        (0.0025, "", "0.0025"),
        (0.332, "", "0.33"),
        (2, "", "2.00"),
        (1.72, "ms", "1.7"),
        (99.96, "ms", "100"),
        (1234, "ms", "1,230"),
        (0.04, "ms", "0.040"),
        (26.04, "µs/job", "26.0"),
        (0, "ms", "0"),
    ],
)
def test_numbers_are_for_people(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_the_terminal_shows_the_same_numbers() -> None:
    told = io.StringIO()
    console = Console(file=told, width=200)
    print_targets(run(), [against_peer(3)], console)
    print_shape(run(), drain(title="Drain [red]"), console)
    for text in ("2.50× (2.00 – 4.00)", "no", "Drain [red]", "0.40× (0.25 – 0.50)", "90.0 – 120"):
        assert text in told.getvalue()


def test_a_report_is_read_back_as_it_was_and_rendered_again_to_the_same_bytes(tmp_path: Path) -> None:
    targets = [against_peer(2.0)]
    write(run(), targets, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["drain.svg", "latency_idle.svg", "latency_idle_series.svg", "report.json", "report.md"]
    found = read(tmp_path / "report.json")
    assert (found.run, found.targets) == (run(), targets)
    assert found.computed["shapes"]["drain"]["peer"]["jobs_s"]["ratio"]["ratio"] == 0.4
    assert found.computed["targets"][0]["reached"] is True

    for name in first.keys() - {"report.json"}:
        (tmp_path / name).unlink()
    command = [sys.executable, "-m", "bench.report", str(tmp_path / "report.json")]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert "faster than a peer" in told


def test_plots_are_well_formed_and_say_the_medians(tmp_path: Path) -> None:
    for shape, labels in (
        (drain(), {"100", "40.0", "0.28", "A Peer"}),
        (latency(), {"p50 1.0", "p99 40.0", "A Peer"}),
    ):
        path = plots.draw(run(), shape, tmp_path)[0]
        found = {element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")}
        assert labels <= found


@pytest.mark.parametrize(
    "shape",
    [
        drain(results={"wqcore": [{"jobs_s": 0.0}]}),
        drain(results={}),
        drain(results={}, series={"wqcore": [], "peer": [(1.0, 0.0)]}),
    ],
    ids=["only zero", "nothing", "one point"],
)
def test_a_shape_that_found_next_to_nothing_is_still_reported(shape: Shape, tmp_path: Path) -> None:
    write(run(shape), [against_peer(2)], tmp_path)
    text = (tmp_path / "report.md").read_text()
    for path in tmp_path.glob("*.svg"):
        ElementTree.parse(path)
        assert f"({path.name})" in text
    assert text.count("![") == len(list(tmp_path.glob("*.svg")))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (run(drain(results={"wqcore": [{"jobs_s": float("nan")}]})), "Expected `float`, got `null`"),
        (run(drain(name="../drain")), "matching regex"),
        (run(drain(results={"river": PEER})), "results of river"),
        (run(drain(), drain()), "a name of its own"),
    ],
)
def test_a_run_that_cannot_be_reported_is_refused_but_not_lost(bad: Run, error: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error):
        write(bad, [], tmp_path)
    assert "a CPU" in (tmp_path / "report.json").read_text()


def test_a_shape_that_is_measured_again_takes_the_place_of_the_old_one_and_says_so() -> None:
    later = run(drain(results={"wqcore": PEER}), started_at="2026-11-24T12:00:00Z")
    found = merged(run(), later)
    assert [shape.name for shape in found.shapes] == ["drain", "latency_idle"]
    assert found.shapes[0].results == {"wqcore": PEER}
    assert "2026-11-24T12:00:00Z" in found.shapes[0].notes[-1]
    assert found.shapes[1] == latency()
    with pytest.raises(ValueError, match="another machine"):
        merged(run(), run(postgresql={"server_version": "16.1"}))
