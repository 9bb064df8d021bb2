"""Draws a soak as small multiples over time: one panel a measure, restarts of PostgreSQL as dashed lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.plots import GRID, INK, MUTED, OURS, STYLE
from tests.chaos.flatness import JUDGED_FROM

if TYPE_CHECKING:
    from tests.chaos.soak import Report

COLUMNS = 3
PANEL_IN = (3.3, 1.75)


class Panel(NamedTuple):
    """Lines that share an axis: (field of a sample, label)."""

    title: str
    lines: list[tuple[str, str]]
    log: bool = False


PANELS = [
    Panel("jobs inserted a second", [("jobs_per_s", "")]),
    Panel("latency of a pulse, ms", [("p50_ms", "median"), ("p99_ms", "p99")], log=True),
    Panel("dead rows visited per turn", [("dead_rows_per_turn", "")]),
    Panel("pages of job and its indexes per turn", [("buffers_per_turn", "")]),
    Panel("dead rows that nobody may remove yet", [("job_dead_rows", "job"), ("claim_dead_rows", "claim")]),
    Panel("size of job and claim, MB", [("job_mb", "job"), ("claim_mb", "claim")]),
    Panel("USS of an old worker, keeper, master, MB",
          [("worker_uss_mb", "worker"), ("keeper_uss_mb", "keeper"), ("master_uss_mb", "master")]),
    Panel("PSS of both trees, MB", [("trees_pss_mb", "")]),
    Panel("connections", [("connections", "masters"), ("client_connections", "clients")]),
    Panel("WAL a job, bytes", [("wal_bytes_per_job", "")]),
    Panel("unfinished jobs", [("job_rows", "")]),
    Panel("age of the snapshot, min", [("snapshot_s", "")]),
]  # fmt: skip


def draw(report: Report, path: Path) -> None:
    """Writes the figure; the same report gives the same bytes."""
    rows = -(-len(PANELS) // COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(PANEL_IN[0] * COLUMNS, PANEL_IN[1] * rows))
        axes = figure.subplots(rows, COLUMNS, squeeze=False)
        for panel, each in zip(PANELS, axes.flat, strict=True):
            _panel(each, panel, report)
        figure.tight_layout(h_pad=1.2, w_pad=1.2)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path, facecolor="white", metadata=nothing)


def _panel(axes: Axes, panel: Panel, report: Report) -> None:
    minutes = [sample.at_s / 60 for sample in report.samples]
    for (field, label), color in zip(panel.lines, (OURS[0], "#bc4c00", MUTED), strict=False):
        values: list[Any] = [getattr(sample, field) for sample in report.samples]
        scale = 60 if field.endswith("_s") and "per_s" not in field else 1
        axes.plot(
            minutes, [None if value is None else value / scale for value in values],
            color=color, linewidth=0.9, label=label or None,
        )  # fmt: skip
    for at_s in report.restarts_s:
        axes.axvline(at_s / 60, color=MUTED, linewidth=0.6, linestyle=(0, (3, 3)))
    length = report.plan.seconds / 60
    axes.axvspan(length * JUDGED_FROM, length, color=OURS[0], alpha=0.05, linewidth=0)
    axes.set_xlim(0, length)
    axes.set_title(panel.title, fontsize=8, loc="left", color=INK)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.tick_params(length=0, labelsize=7, colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    if len(panel.lines) > 1:
        axes.legend(fontsize=6.5, frameon=False, labelcolor=INK, loc="best", ncols=len(panel.lines))
