"""The benchmark's own parts: what the probes wrote is read whole, and targets and cells name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.limits import LIMITS, pgbench
from bench.plan import MODES, Bench
from bench.probes import Probes
from bench.shapes import QUICK, SHAPES
from bench.targets import TARGETS

PEERS = Path(__file__).parents[2] / "bench/peers"
OPTIONS = ("priorities", "keys", "delay_s")


def named(name: str) -> Any:
    described = SimpleNamespace(
        title=name, jobs_scale=1.0, forks=True, processes=2, concurrency=100, feed_options=OPTIONS
    )
    return SimpleNamespace(name=name, described=described)


def bench() -> Bench:
    names = ("wqcore", "wqcore_history", "graphile_worker", "pg_boss", "pgqueuer", "procrastinate")
    return Bench(cast(Any, None), {name: named(name) for name in names}, MODES["tiny"])


def test_counts_of_all_workers_are_added_and_a_line_that_is_not_whole_waits(tmp_path: Path) -> None:
    probes = Probes(tmp_path)
    assert probes.handled() == 0
    (tmp_path / "1.count").write_text("100 1\n300 5\n")
    (tmp_path / "2.count").write_text("200 1\n400 1")
    assert probes.handled() == 6
    assert probes.first_ns == 100
    with (tmp_path / "2.count").open("a") as file:
        file.write("0\n")
    assert probes.handled() == 15
    assert probes.progress() == [(100, 1), (200, 2), (300, 6), (400, 15)]


def test_a_job_that_was_entered_twice_counts_from_the_first_time(tmp_path: Path) -> None:
    (tmp_path / "1.entered").write_text("0 10\n1 20\n0 30\n")
    assert Probes(tmp_path).entered() == {0: 10, 1: 20}


def test_every_target_names_cells_that_a_full_run_has() -> None:
    for target in TARGETS:
        labels = {cell.label for cell in SHAPES[target.shape](bench()).cells}
        assert target.system in labels, target.text
        assert target.against is None or target.against in labels, target.text


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_cells_with_names_of_their_own_and_is_called_as_it_is_listed(name: str) -> None:
    shape = SHAPES[name](bench())
    labels = [cell.label for cell in shape.cells]
    assert shape.name == name
    assert labels
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch("[a-z0-9_]+", label) for label in labels)


def test_the_quick_mode_measures_known_shapes() -> None:
    assert set(QUICK) <= set(SHAPES)
    assert set(LIMITS) & {cell.label for cell in SHAPES["drain"](bench()).cells}


def test_the_turn_for_pgbench_has_no_parameter_left() -> None:
    assert "%(" not in pgbench._turn_script()
    assert pgbench._turn_script().rstrip().endswith("\\gset")
    assert "%(" not in pgbench._insert_script()


def test_the_peers_libraries_are_pinned() -> None:
    lines = [
        line for line in (PEERS / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.]+", line) for line in lines)
    lock = (PEERS / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert '"integrity"' in lock
