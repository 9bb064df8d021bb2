"""Draws the plots of a report as SVG: the same run gives the same bytes, and no label is cut off.

Bars are medians, lines go from the lowest to the highest round, dots are rounds. The background is white, so that a plot
can be read in a dark page, too. Titles and labels lie outside the axes, whose size is fixed; the picture grows with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .report import PERCENTILES, Run, Shape, is_ours, number, ranked, spread, title, values

INK, MUTED, GRID = "#1f2328", "#59636e", "#d8dee4"
OURS = ("#0969da", "#54aeff", "#0a3069")
OTHERS = ("#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#cf222e", "#6e7781")
BARS_OURS = ("#0969da", "#4c9aeb", "#80b8f2")
BARS = ("#8c959f", "#a3acb5", "#b9c1c9")
WIDTH_IN = 6.0
LINES_HEIGHT_IN = 3.0
LABEL_PT = 12.0
"""What the label of a line needs, in height."""
LOG_SPAN = 20.0
"""From here on the shortest bar of a linear axis says nothing any more."""
STYLE: Any = {
    "svg.hashsalt": "wqcore",  # else ids, and with them the bytes, differ each time
    # Text, not paths: a third of the size, and a page can be searched. Labels are placed by the first font, which comes with
    # matplotlib; readers' browsers take the first that they have, and none of these is wider.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a title may have a $
}


class Bar(NamedTuple):
    """One number of one system."""

    label: str
    rounds: list[float]
    median: float
    y: float
    color: str


def draw(run: Run, shape: Shape, folder: Path, suffix: str = ".svg") -> list[Path]:
    """Draws `NAME.svg`, the medians, and `NAME_series.svg`, the lines, as far as there are any; returns their paths."""
    made = []
    with rc_context(STYLE):
        if ranked(shape):
            made.append(_save(_medians(run, shape), folder / f"{shape.name}{suffix}"))
        if any(shape.series.values()):
            made.append(_save(_lines(run, shape), folder / f"{shape.name}_series{suffix}"))
    return made


def _save(figure: Figure, path: Path) -> Path:
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type")) if path.suffix == ".svg" else {}
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12, facecolor="white", metadata=nothing, dpi=150)
    return path


def _axes(width_in: float, height_in: float, heading: str, below: str) -> tuple[Figure, Axes]:
    """A figure that is all axes; `_save` adds the room that labels need."""
    figure = Figure(figsize=(width_in, height_in))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, colors=MUTED)
    place: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(heading, (0, 1), (0, 24), fontsize=11, fontweight="bold", **place)
    axes.annotate(below, (0, 1), (0, 9), fontsize=8, color=MUTED, **place)
    return figure, axes


def _medians(run: Run, shape: Shape) -> Figure:
    names = [p for p in PERCENTILES if any(values(rounds, p) for rounds in shape.results.values())]
    if shape.measure not in names or len(names) < 2:
        names = [shape.measure]
    bars, centers = _bars(shape, names)
    lowest, highest = min(min(bar.rounds) for bar in bars), max(max(bar.rounds) for bar in bars)
    log = len(names) > 1 and lowest > 0 and highest / lowest > LOG_SPAN
    mark = "diamond" if log else "bar"
    means = f"{shape.unit}, {shape.better} is better · {mark}: median, line: lowest to highest round, dots: rounds"
    top = max(bar.y for bar in bars) + 0.5
    figure, axes = _axes(WIDTH_IN, (top + 0.5) * (0.36 if len(names) == 1 else 0.22), shape.title, means)
    _scale(axes, lowest, highest, log=log)
    for bar in bars:
        _draw_bar(axes, bar, from_zero=not log)
    axes.set_ylim(top, -0.5)  # the best on top
    axes.set_yticks(list(centers.values()), [title(run, system) for system in centers])
    for system, label in zip(centers, axes.get_yticklabels(), strict=True):
        label.set(color=INK, fontweight="bold" if is_ours(system) else "normal")
    return figure


def _bars(shape: Shape, names: list[str]) -> tuple[list[Bar], dict[str, float]]:
    """The bars, a group for each system, and where the groups' centres are."""
    bars, centers, y = [], {}, 0.0
    for system in ranked(shape):
        first = y
        for at, name in enumerate(names):
            found = spread(shape.results[system], name)
            if found is None:
                continue
            text = number(found.median, shape.unit)
            label = text if len(names) == 1 else f"{name.partition('_')[0]} {text}"
            color = (BARS_OURS if is_ours(system) else BARS)[at]
            bars.append(Bar(label, values(shape.results[system], name), found.median, y, color))
            y += 1
        centers[system] = (first + y - 1) / 2
        y += 0 if len(names) == 1 else 0.6
    return bars, centers


def _draw_bar(axes: Axes, bar: Bar, *, from_zero: bool) -> None:
    low, high = min(bar.rounds), max(bar.rounds)
    if from_zero:
        axes.barh(bar.y, bar.median, height=0.72, color=bar.color, linewidth=0)
    else:  # a length means nothing on a log axis
        axes.plot([bar.median], [bar.y], marker="D", markersize=7, color=bar.color, markeredgewidth=0)
    if len(bar.rounds) > 1:
        axes.plot([low, high], [bar.y, bar.y], color=INK, linewidth=0.9, marker="|", markersize=6, clip_on=False)
        axes.plot(
            bar.rounds, [bar.y] * len(bar.rounds), "o", markersize=2.6, color="white", mec=INK, mew=0.6, clip_on=False
        )
    axes.annotate(
        bar.label,
        (max(high, bar.median), bar.y),
        (6, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def _scale(axes: Axes, lowest: float, highest: float, *, log: bool) -> None:
    if not log:  # each bar says its number
        axes.set_xlim(0, highest or 1)
        axes.set_xticks([])
        axes.axvline(0, color=INK, linewidth=0.8)
        return
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.3, highest * 1.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _lines(run: Run, shape: Shape) -> Figure:
    figure, axes = _axes(WIDTH_IN, LINES_HEIGHT_IN, shape.title, shape.y_title or shape.unit)
    ours, others = 0, 0
    ends = []
    for label, points in shape.series.items():
        if not points:
            continue
        if is_ours(label) or label.lower().startswith("wqcore"):
            color, style, ours = OURS[ours % len(OURS)], "-", ours + 1
        else:
            color = OTHERS[others % len(OTHERS)]
            style, others = "-" if others < len(OTHERS) else "--", others + 1
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, color=color, linestyle=style, linewidth=1.6)
        ends.append((ys[-1], title(run, label), color))
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.set_xlabel(shape.x_title, color=MUTED)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _label_ends(axes, ends)
    return figure


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names each line at its end, apart from each other where lines end together."""
    low, high = axes.get_ylim()
    top = LINES_HEIGHT_IN * 72
    ends = sorted(ends)
    places = [(y - low) / (high - low) * top for y, _, _ in ends]
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + LABEL_PT)
    for at in reversed(range(len(places))):
        places[at] = min(places[at], top - LABEL_PT * (len(places) - 1 - at))
    for place, (_, label, color) in zip(places, ends, strict=True):
        axes.annotate(
            label,
            (1, 0),
            (8, place),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=color,
            annotation_clip=False,
        )
