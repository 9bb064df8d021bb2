"""What a benchmark run found, judged and written down: numbers as they were measured, what is missing named first.

A run is plain data: for each shape (a drain, a latency, …) and each system the rounds, each a dict of name → number. Rounds
are paired by index: round i of every system ran next to round i of the others. A round that gave nothing is an empty dict,
so that later ones stay paired; a system may also have fewer rounds.

A ratio is the ratio of the medians, each over all rounds of its system; its spread is the lowest and the highest ratio of
paired rounds. `write` makes a folder of `report.json` (the run, the targets, and what was computed of them), plots, and
`report.md`, in this order: when drawing fails, the measured numbers are on disk. Then, or after a change here:

    python -m bench.report FOLDER/report.json

The names of numbers that the tables know are those of COLUMNS; others are only kept in `report.json`.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Round = dict[str, float]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+\Z")]
"""Of a shape or system; a shape's is also the name of its plot's file."""

REFERENCE = "wqcore"
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")
TIMES = ("s", "ms", "µs")


class Column(NamedTuple):
    """A number that a shape's table shows where rounds have it."""

    title: str
    unit: str


COLUMNS = {
    "p50_ms": Column("p50", "ms"),
    "p90_ms": Column("p90", "ms"),
    "p99_ms": Column("p99", "ms"),
    "cpu_us_workers": Column("CPU of workers", "µs/job"),
    "cpu_us_postgresql": Column("CPU of PostgreSQL", "µs/job"),
    "wal_bytes_job": Column("WAL", "bytes/job"),
    "wal_bytes_life": Column("WAL with the insert", "bytes/job"),
    "statements_job": Column("statements", "per job"),
    "commits_job": Column("commits", "per job"),
    "late_p50_ms": Column("due jobs late p50", "ms"),
    "late_p99_ms": Column("due jobs late p99", "ms"),
    "cpu_percent": Column("CPU", "% of a core"),
    "load_jobs_s": Column("load", "jobs/s"),
}


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it ran."""

    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    python: str


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue, or a bare loop, that was measured."""

    title: str
    version: str
    runtime: str
    settings: str
    keeps_finished: bool


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One load, its rounds by system, and optionally lines over time."""

    name: Name
    title: str
    question: str
    """One sentence: what it shows."""
    measure: str
    """The name of the main number."""
    unit: str
    better: Literal["higher", "lower"]
    results: dict[Name, list[Round]]
    series: dict[str, list[tuple[float, float]]] = {}
    x_title: str = ""
    y_title: str = ""
    notes: list[str] = []


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that was measured in one run."""

    started_at: str
    mode: Literal["tiny", "quick", "full"]
    machine: Machine
    postgresql: dict[str, str]
    systems: dict[Name, System]
    shapes: list[Shape]
    unavailable: dict[Name, str] = {}
    """What could not run → why."""


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number to reach: the median of `system` ("value"), or its ratio to that of `against` ("ratio")."""

    shape: Name
    text: str
    system: Name
    measure: str
    compare: Literal["ratio", "value"]
    op: Literal[">=", "<="]
    goal: float
    against: Name | None = None


class Spread(msgspec.Struct, frozen=True):
    """The median of some rounds, the lowest and the highest of them."""

    median: float
    low: float
    high: float
    rounds: int


class Ratio(msgspec.Struct, frozen=True):
    """A ratio of medians; `low` and `high` are of the `paired` rounds that both systems have, None when there are none."""

    ratio: float
    low: float | None
    high: float | None
    paired: int
    rounds: int
    """Rounds of the system that has more of them."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a target is reached; `reached` is None when that was not measured, and `missing` says why."""

    text: str
    reached: bool | None
    found: Spread | Ratio | None = None
    missing: str = ""


class Grid(NamedTuple):
    """A table before it is Markdown or lines of a terminal; `ours` are the rows that are of wqcore."""

    head: list[str]
    rows: list[list[str]]
    ours: list[bool]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`report.json`. What is in `computed` follows from the rest and is never read back."""

    run: Run
    targets: list[Target]
    computed: dict[str, Any] = {}


def values(rounds: Iterable[Round], name: str) -> list[float]:
    """The number `name` of the rounds that have it."""
    return [round_[name] for round_ in rounds if name in round_]


def spread(rounds: Iterable[Round], name: str) -> Spread | None:
    """Median, lowest and highest of a number; None when no round has it."""
    found = values(rounds, name)
    return Spread(statistics.median(found), min(found), max(found), len(found)) if found else None


def ratio(rounds: Sequence[Round], against: Sequence[Round], name: str) -> Ratio | None:
    """The ratio of two systems' medians; None when one has no such number or the divisor is 0."""
    above, below = spread(rounds, name), spread(against, name)
    if above is None or below is None or not below.median:
        return None
    pairs = zip(rounds, against, strict=False)
    paired = [a[name] / b[name] for a, b in pairs if name in a and name in b and b[name]]
    low, high = (min(paired), max(paired)) if paired else (None, None)
    return Ratio(above.median / below.median, low, high, len(paired), max(above.rounds, below.rounds))


def judge(run: Run, target: Target) -> Verdict:
    """Compares what was found with a target's goal, unrounded."""
    shape = next((shape for shape in run.shapes if shape.name == target.shape), None)
    if shape is None:
        return Verdict(target.text, None, missing=f"{target.shape} was not run")
    against = target.against or "no system to compare with"
    for system in [target.system] if target.compare == "value" else [target.system, against]:
        if spread(shape.results.get(system, []), target.measure) is None:
            why = run.unavailable.get(system, f"no round has its {target.measure}")
            return Verdict(target.text, None, missing=f"{title(run, system)}: {why}")
    rounds = shape.results[target.system]
    single = target.compare == "value"
    found = spread(rounds, target.measure) if single else ratio(rounds, shape.results[against], target.measure)
    if found is None:
        return Verdict(target.text, None, missing=f"{title(run, against)}: its median is 0")
    value = _value(found)
    return Verdict(target.text, value >= target.goal if target.op == ">=" else value <= target.goal, found)


def ranked(shape: Shape) -> list[str]:
    """The systems that have the shape's main number, the best first."""
    medians = {name: spread(rounds, shape.measure) for name, rounds in shape.results.items()}
    measured = {name: found.median for name, found in medians.items() if found is not None}
    return sorted(measured, key=lambda name: measured[name], reverse=shape.better == "higher")


def is_ours(system: str) -> bool:
    """Whether it is wqcore in one of its settings."""
    return system == REFERENCE or system.startswith(f"{REFERENCE}_")


def title(run: Run, system: str) -> str:
    """The name for people."""
    return run.systems[system].title if system in run.systems else system


def missing(run: Run) -> dict[str, str]:
    """What could not run, and what was to run and measured nothing at all → why."""
    measured = {system for shape in run.shapes for system in ranked(shape)}
    silent = {name: "no round gave a number" for name in run.systems if name not in measured}
    return silent | run.unavailable


def number(value: float, unit: str = "", digits: int = 3) -> str:
    """A number for people: 3 significant digits, 2 below 1; times have 1 decimal below 100."""
    if not value:
        return "0"
    significant = digits if abs(value) >= 1 else digits - 1
    rounded = float(f"{value:.{significant}g}")
    if 1 <= abs(rounded) < 100 and unit.split("/")[0] in TIMES:
        return f"{value:.{digits - 2}f}"
    return f"{rounded:,.{max(0, significant - 1 - math.floor(math.log10(abs(rounded))))}f}"


def merged(before: Run, again: Run) -> Run:
    """`before` with the shapes that a later run has measured again, which say so. Raises ValueError for another machine."""
    if (before.machine, before.postgresql) != (again.machine, again.postgresql):
        raise ValueError("the report in the folder is of another machine or server: choose another folder with --out")
    note = f"Measured again, in a run of its own that began {again.started_at}."
    newer = {shape.name: msgspec.structs.replace(shape, notes=[*shape.notes, note]) for shape in again.shapes}
    kept = [newer.pop(shape.name, shape) for shape in before.shapes]
    return msgspec.structs.replace(
        before,
        shapes=[*kept, *newer.values()],
        systems=before.systems | again.systems,
        unavailable=before.unavailable | again.unavailable,
    )


def write(run: Run, targets: Sequence[Target], folder: Path) -> None:
    """Writes `report.json`, the plots and `report.md`; whatever is refused or fails, what was measured is on disk by then.

    Raises `msgspec.ValidationError` for what cannot be read back (a NaN, a shape's name that is no file's name) and
    `ValueError` for a system of `results` that `systems` does not have, and for two shapes of one name.
    """
    document = Document(run, list(targets), _computed(run, targets))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    _check(read(path).run)
    try:
        from . import plots  # here, not above: what only prints does without matplotlib
    except ModuleNotFoundError as error:
        text = f"{error}: install wqcore's extra `bench`, then `python -m bench.report {path}` makes the rest"
        raise ModuleNotFoundError(text) from error

    for shape in run.shapes:
        plots.draw(run, shape, folder)
    (folder / "report.md").write_text(markdown(run, targets), encoding="utf-8")


def read(path: Path) -> Document:
    """A written `report.json`."""
    return msgspec.json.decode(path.read_bytes(), type=Document)


def markdown(run: Run, targets: Sequence[Target]) -> str:
    """The report as Markdown, with links to the plots beside it."""
    parts = ["# wqcore and other queues, side by side"]
    parts += [f"> **Could not run: {_line(title(run, name))}.** {_line(why)}" for name, why in missing(run).items()]
    if run.mode != "full":
        parts.append(
            f"> **A {run.mode} run**, not a full one: it shows that the benchmark works, and roughly who is how fast."
        )
    if targets:
        parts += [
            "## Targets",
            _markdown(targets_grid(run, targets)),
            "A ratio is that of the medians; in brackets, the "
            "lowest and the highest ratio of rounds that ran next to each other.",
        ]
    glance = glance_grid(run)
    if glance.rows:
        parts += ["## At a glance", _markdown(glance)]
    parts += ["## What ran where", *_surroundings(run), _markdown(systems_grid(run))]
    for shape in run.shapes:
        parts += _section(run, shape)
    return "\n\n".join(parts) + "\n"


def print_targets(run: Run, targets: Sequence[Target], console: Console | None = None) -> None:
    """Prints what could not run, and the table of targets."""
    console = console or _console()
    for name, why in missing(run).items():
        console.print(Text(f"Could not run: {title(run, name)}. {' '.join(why.split())}", style="bold red"))
    if targets:
        console.print(_rich("Targets", targets_grid(run, targets)))


def print_shape(run: Run, shape: Shape, console: Console | None = None) -> None:
    """Prints a shape's table."""
    (console or _console()).print(_rich(f"{shape.title}: {shape.question}", shape_grid(run, shape)))


def targets_grid(run: Run, targets: Sequence[Target]) -> Grid:
    """Each target, its goal, and what was reached."""
    units = {(shape.name, shape.measure): shape.unit for shape in run.shapes}
    rows = []
    for target in targets:
        column = COLUMNS.get(target.measure)
        unit = units.get((target.shape, target.measure)) or (column.unit if column else "")
        verdict = judge(run, target)
        rows.append([target.text, _goal(target, unit), _reached(target, unit, verdict), _met(verdict)])
    return Grid(["target", "goal", "reached", "met"], rows, [False] * len(rows))


def glance_grid(run: Run) -> Grid:
    """The medians of all systems in all shapes."""
    names = [name for name in run.systems if any(spread(s.results.get(name, []), s.measure) for s in run.shapes)]
    rows = []
    for name in names:
        found = [(spread(shape.results.get(name, []), shape.measure), shape.unit) for shape in run.shapes]
        rows.append([title(run, name), *(number(one.median, unit) if one else "" for one, unit in found)])
    head = ["", *(f"{shape.title}, {_measured(shape)}" for shape in run.shapes)]
    return Grid(head, rows, [is_ours(name) for name in names])


def systems_grid(run: Run) -> Grid:
    """What each system is and how it was set."""
    rows = [
        [it.title, it.version, it.runtime, it.settings, "kept" if it.keeps_finished else "deleted"]
        for it in run.systems.values()
    ]
    return Grid(["", "version", "runtime", "settings", "finished jobs"], rows, [is_ours(name) for name in run.systems])


def shape_grid(run: Run, shape: Shape) -> Grid:
    """A row for each system, the best first; columns that no system has are left out."""
    names = ranked(shape)
    against = shape.results.get(REFERENCE, [])
    ratios = {name: ratio(shape.results[name], against, shape.measure) for name in names}
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if name != shape.measure and any(values(rounds, name) for rounds in shape.results.values())
    }
    of_reference = [f"ratio to {title(run, REFERENCE)}"] if any(ratios.values()) else []
    head = ["", _measured(shape), "from – to", *of_reference, *(f"{it.title}, {it.unit}" for it in columns.values())]
    uneven = len({len(values(shape.results[name], shape.measure)) for name in names}) > 1
    rows = []
    for name in names:
        rounds = shape.results[name]
        main = spread(rounds, shape.measure)
        assert main is not None, "ranked"
        row = [title(run, name), number(main.median, shape.unit), _between(main, shape.unit)]
        row += [_ratio(ratios[name], itself=name == REFERENCE)] if of_reference else []
        more = [(spread(rounds, name), column.unit) for name, column in columns.items()]
        row += [number(one.median, unit) if one else "" for one, unit in more]
        rows.append(row + ([str(main.rounds)] if uneven else []))
    return Grid(head + (["rounds"] if uneven else []), rows, [is_ours(name) for name in names])


def _check(run: Run) -> None:
    unknown = {system for shape in run.shapes for system in shape.results if system not in run.systems}
    if unknown:
        raise ValueError(f"results of {', '.join(sorted(unknown))}: name each system of `results` in `systems`, too")
    names = [shape.name for shape in run.shapes]
    if len(set(names)) < len(names):
        raise ValueError(f"shapes {', '.join(names)}: give each a name of its own, plots are named by it")


def _computed(run: Run, targets: Sequence[Target]) -> dict[str, Any]:
    """Medians, spread and ratios to wqcore of every number that a round has, and the verdicts."""
    shapes: dict[str, Any] = {}
    for shape in run.shapes:
        against = shape.results.get(REFERENCE, [])
        shapes[shape.name] = {
            system: {
                name: {"spread": spread(rounds, name), "ratio": ratio(rounds, against, name)}
                for name in dict.fromkeys(name for round_ in rounds for name in round_)
            }
            for system, rounds in shape.results.items()
        }
    return {"shapes": shapes, "targets": [judge(run, target) for target in targets]}


def _value(found: Spread | Ratio) -> float:
    return found.median if isinstance(found, Spread) else found.ratio


def _measured(shape: Shape) -> str:
    """The head of a shape's main number; a percentile's median over the rounds is not to be read as the p50."""
    column = COLUMNS.get(shape.measure)
    return f"{column.title}, {shape.unit}" if column else shape.unit


def _goal(target: Target, unit: str) -> str:
    sign = {">=": "≥", "<=": "≤"}[target.op]
    return f"{sign} {target.goal:,.10g}{_suffix(target, unit)}"


def _suffix(target: Target, unit: str) -> str:
    return "×" if target.compare == "ratio" else f" {unit}".rstrip()


def _reached(target: Target, unit: str, verdict: Verdict) -> str:
    found = verdict.found
    if found is None:
        return verdict.missing
    unit_shown = "" if isinstance(found, Ratio) else unit
    text = _apart(_value(found), target.goal, unit_shown) + _suffix(target, unit)
    if isinstance(found, Spread):
        return f"{text} ({_between(found, unit)})"
    if found.low is None or found.high is None:
        return f"{text} (no rounds ran side by side)"
    some = f"; {found.paired} of {found.rounds} rounds paired" if found.paired < found.rounds else ""
    return f"{text} ({_range(found.low, found.high, found.paired)}{some})"


def _apart(value: float, goal: float, unit: str) -> str:
    """With as many digits as it takes to see on which side of the goal it is: "3.00" must not be short of 3."""
    for digits in range(3, 8):
        text = number(value, unit, digits)
        if value == goal or text != number(goal, unit, digits):
            break
    return text


def _met(verdict: Verdict) -> str:
    return {True: "yes", False: "no", None: "not measured"}[verdict.reached]


def _between(found: Spread, unit: str) -> str:
    return _range(found.low, found.high, found.rounds, unit)


def _range(low: float, high: float, rounds: int, unit: str = "") -> str:
    return "one round" if rounds == 1 else f"{number(low, unit)} – {number(high, unit)}"


def _ratio(found: Ratio | None, *, itself: bool) -> str:
    if itself:
        return "1"
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{number(found.ratio)}×"
    return f"{number(found.ratio)}× ({_range(found.low, found.high, found.paired)})"


def _surroundings(run: Run) -> list[str]:
    it = run.machine
    settings = ", ".join(f"{name} {value}" for name, value in run.postgresql.items() if name != "server_version")
    return [
        f"Started {_line(run.started_at)}, mode {run.mode}. {it.cores} cores ({_line(it.cpu)}), "
        f"{number(it.memory_gib)} GiB of memory, kernel {_line(it.kernel)}, Python {_line(it.python)}.",
        _line(f"PostgreSQL {run.postgresql.get('server_version', '')} ({settings})."),
    ]


def _section(run: Run, shape: Shape) -> list[str]:
    rounds = sorted({len(values(shape.results[name], shape.measure)) for name in ranked(shape)})
    counted = f"{rounds[0]} rounds" if len(rounds) == 1 and rounds[0] > 1 else ""
    better = f"{shape.better.capitalize()} is better{'; medians of ' + counted if counted else ''}."
    parts = [f"## {_line(shape.title)}", f"{_line(shape.question)} {better}"]
    if rounds:
        parts += [_markdown(shape_grid(run, shape)), f"![{_line(shape.title)}]({shape.name}.svg)"]
    left_out = [title(run, name) for name in run.systems if name not in ranked(shape)]
    if left_out:
        parts.append(f"Not measured here: {_line('; '.join(left_out))}.")
    if any(shape.series.values()):
        parts.append(f"![{_line(shape.title)}, {_line(shape.x_title)}]({shape.name}_series.svg)")
    if shape.notes:
        parts.append("\n".join(f"- {_line(note)}" for note in shape.notes))
    return parts


def _line(text: str) -> str:
    """One line of Markdown: a reason or a note may come from an error's text."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(text.split()))


def _markdown(grid: Grid) -> str:
    lines = ["| " + " | ".join(_line(name) for name in grid.head) + " |"]
    lines.append("|" + "|".join("--:" if _is_number(grid, at) else "---" for at in range(len(grid.head))) + "|")
    for row, ours in zip(grid.rows, grid.ours, strict=True):
        cells = [_line(cell) for cell in row]
        if ours:
            cells[0] = f"**{cells[0]}**"
        lines.append(
            "| " + " | ".join(f"**{cell}**" if cell in ("no", "not measured") else cell for cell in cells) + " |"
        )
    return "\n".join(lines)


def _rich(heading: str, grid: Grid) -> Table:
    table = Table(title=Text(heading), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(grid.head):
        table.add_column(Text(name), justify="right" if _is_number(grid, at) else "left", no_wrap=at == 0)
    styles = {"yes": "green", "no": "bold red", "not measured": "bold red"}
    for row, ours in zip(grid.rows, grid.ours, strict=True):
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row), style="bold" if ours else "")
    return table


def _is_number(grid: Grid, at: int) -> bool:
    """Whether the column is numbers, with their spread or not, in every row that has it: then it is aligned to the right."""
    cells = [row[at] for row in grid.rows if row[at]]
    return (
        at > 0
        and bool(cells)
        and all(re.fullmatch(r"[\d,.]+×?( – [\d,.]+| \(.*\))?|one round", cell) for cell in cells)
    )


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=200)  # a file has no width of its own; 80 would cut


def main(path: Annotated[Path, typer.Argument(help="A report.json; what stands beside it is written anew.")]) -> None:
    """Renders a report again from its JSON."""
    found = read(path)
    write(found.run, found.targets, path.parent)
    print_targets(found.run, found.targets)
    for shape in found.run.shapes:
        print_shape(found.run, shape)


if __name__ == "__main__":
    typer.run(main)
