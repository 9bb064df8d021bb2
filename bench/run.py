"""Measures shapes one after the other and gathers what was found; a cell that fails is told, and the run goes on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import psycopg

from . import report
from .cluster import Cluster
from .errors import BenchError
from .limits import LIMITS
from .measure import Round
from .plan import MODES, Bench, Cell, Mode, Shape
from .shapes import SHAPES
from .system import System

Say = Callable[[str], None]

TINY_PEER_SHAPES = ("drain", "single_insert", "latency_idle")
"""Between them they use all that a peer's program can do; starting each peer for each shape took most of CI's three minutes."""


def run(
    cluster: Cluster,
    systems: Mapping[str, System],
    unavailable: Mapping[str, str],
    *,
    mode: Mode,
    shapes: Sequence[str],
    rounds: int,
    say: Say,
) -> Iterator[report.Run]:
    """Measures `shapes` and gives all that was found after each, so that an interrupted run leaves a report.

    `rounds` 0: as many as the mode has. Each cell's result is told to `say` as it comes.
    """
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    sizes = MODES[mode]
    failed = dict(unavailable)
    titles: dict[str, report.System] = {name: _system(system) for name, system in systems.items()}
    found: list[report.Shape] = []
    for name in shapes:
        here = systems
        if mode == "tiny" and name not in TINY_PEER_SHAPES:
            here = {key: system for key, system in systems.items() if key.startswith("wqcore")}
        shape = SHAPES[name](Bench(cluster, dict(here), sizes))
        results = _measure(shape, rounds or shape.rounds or sizes.rounds, failed, say)
        for cell in shape.cells:
            titles.setdefault(cell.label, _variant(cell, titles))
        found.append(
            report.Shape(
                name=shape.name,
                title=shape.title,
                question=shape.question,
                measure=shape.measure,
                unit=shape.unit,
                better=shape.better,
                results=results,
                series={title: [(x, y) for x, y in line] for title, line in shape.series.items()},
                x_title=shape.x_title,
                y_title=shape.y_title,
                notes=shape.notes,
            )
        )
        yield report.Run(
            started_at=started_at,
            mode=mode,
            machine=machine(),
            postgresql=cluster.settings(),
            systems=dict(titles),
            shapes=list(found),
            unavailable=dict(failed),
        )


def _measure(shape: Shape, rounds: int, failed: dict[str, str], say: Say) -> dict[str, list[Round]]:
    results: dict[str, list[Round]] = {cell.label: [] for cell in shape.cells}
    for number in range(rounds):
        # the machine's drift within a round falls on the last as often as on the first
        for cell in shape.cells if number % 2 == 0 else reversed(shape.cells):
            place = f"{shape.name} {number + 1}/{rounds} {cell.label}"
            try:
                round_ = cell.run()
            except (BenchError, psycopg.Error, subprocess.SubprocessError, psutil.Error, OSError) as error:
                failed[f"{shape.name}_{cell.label}"] = f"{cell.title}, {shape.title}: {error}"
                say(f"{place}: FAILED: {error}")
                round_ = {}
            else:
                say(f"{place}: {_told(shape, round_)}")
            results[cell.label].append(round_)
    return results


def _told(shape: Shape, round_: Round) -> str:
    more = [f"{name} {value:,.4g}" for name, value in round_.items() if name != shape.measure]
    return f"{report.number(round_[shape.measure], shape.unit)} {shape.unit} ({', '.join(more)})"


def _system(system: System) -> report.System:
    it = system.described
    return report.System(it.title, it.version, it.runtime, it.settings, it.keeps_finished)


def _variant(cell: Cell, titles: Mapping[str, report.System]) -> report.System:
    """A limit, or a system under a condition that the cell's title says."""
    base = max((name for name in titles if cell.label.startswith(name)), key=len, default="")
    if cell.label in LIMITS or not base:
        return report.System(cell.title, "", "", "bench/limits", keeps_finished=cell.label.endswith("_history"))
    it = titles[base]
    return report.System(cell.title, it.version, it.runtime, it.settings, it.keeps_finished)


def machine() -> report.Machine:
    """What this machine is."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in told if line.startswith("model name")), platform.processor())
    return report.Machine(
        cores=os.cpu_count() or 0,
        cpu=cpu,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
    )
