"""A soak of some seconds, so that it cannot rot; and what judges a long one can tell a leak from noise."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from tests.chaos.flatness import Rule, judge
from tests.chaos.soak import Plan, Report, run, write

RULE = Rule("memory", "memory", "MB", 0.05, 1.0)
PAGE = "# A page\n\n<!-- soak -->\nold\n<!-- /soak -->\nand more\n"


def test_a_short_soak_loses_nothing_does_all_that_it_says_and_writes_its_page(tmp_path: Path) -> None:
    seed = int(os.environ.get("WQ_TEST_SEED", random.randrange(10**6)))
    plan = Plan(
        seconds=4.0, seed=seed, per_second=120, sample_every_s=0.4, worker_killed_every_s=0.8,
        connections_cut_every_s=0.7, keeper_killed_every_s=1.1, master_replaced_every_s=1.3, restarts_at=(0.25,),
    )  # fmt: skip
    print(f"seed {seed}")
    (tmp_path / "reliability.md").write_text(PAGE)
    report = run(plan)
    write(report, tmp_path)
    print(report.verdict)
    assert report.findings == []
    assert {"roads cut", "server crashes", "masters drained"} <= report.events.keys()
    assert report.jobs > 50
    assert all(judged.flat is None for judged in report.judged)
    read = msgspec.json.decode((tmp_path / "reliability/soak.json").read_bytes(), type=Report)
    assert len(read.samples) >= 2
    assert any(sample.dead_rows_per_turn is not None for sample in read.samples)
    assert any(sample.shards_begun for sample in read.samples)
    assert any(sample.p50_ms is not None for sample in read.samples)
    assert (tmp_path / "reliability/soak.svg").read_text().startswith("<?xml")
    page = (tmp_path / "reliability.md").read_text()
    assert report.verdict in page
    assert "\nold\n" not in page
    assert page.endswith("<!-- /soak -->\nand more\n")


def samples(grows_mb: float, *, outliers: int = 0) -> tuple[list[float], list[float | None]]:
    """180 samples in half an hour that grow by so much over all of it, with 2 MB of noise."""
    choose = random.Random(1)
    values: list[float | None] = [50 + grows_mb * n / 180 + choose.uniform(-1, 1) for n in range(180)]
    for n in range(outliers):
        values[179 - 3 * n] = 500.0
    return [10.0 * n for n in range(180)], values


@pytest.mark.parametrize(("grows_mb", "outliers", "flat"), [
    (0.0, 0, True), (0.0, 25, True), (1.5, 0, True), (-20.0, 0, True), (6.0, 0, False), (6.0, 25, False),
])  # fmt: skip
def test_growth_is_told_from_noise_and_from_outliers(grows_mb: float, outliers: int, flat: bool) -> None:
    """Allowed are 5 % of 50 MB over the last two thirds."""
    found = judge(RULE, *samples(grows_mb, outliers=outliers), 1800.0)
    assert found.flat is flat
    assert found.growth == pytest.approx(grows_mb * 2 / 3, abs=0.8)


def test_a_warm_up_in_the_first_third_is_no_growth_and_gaps_are_left_out() -> None:
    at, values = samples(0.0)
    warm = [None if n % 7 == 0 else (value or 0) - 30 * max(0, 1 - n / 60) for n, value in enumerate(values)]
    found = judge(RULE, at, warm, 1800.0)
    assert (found.flat, found.samples) == (True, 120 - 17)


def test_too_few_samples_show_nothing() -> None:
    at, values = samples(1000.0)
    assert judge(RULE, at[:40], values[:40], 400.0).flat is None
