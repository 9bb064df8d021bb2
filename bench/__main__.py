"""`python -m bench` measures wqcore beside its peers and writes a report; `python -m bench drain` one shape of load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import report
from .cluster import FOLDER, cluster
from .errors import BenchError
from .install import systems
from .plan import Mode
from .run import run
from .shapes import QUICK, SHAPES
from .targets import TARGETS


def main(
    shapes: Annotated[
        list[str] | None, typer.Argument(help=f"Shapes, of {', '.join(SHAPES)}; none: the mode's.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="full; quick: under 4 minutes; tiny: shows that all of it runs.")] = "full",
    only: Annotated[str, typer.Option(help="Queues, separated by commas; none: all that are here.")] = "",
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; 0: as many as the mode has.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = FOLDER / "report",
    postgresql: Annotated[int, typer.Option(help="Major version of the embedded server, 16 or 18.")] = 18,
    again: Annotated[
        bool, typer.Option(help="Put these shapes into the report that is in the folder, in place of its own.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 when a measurement failed.")] = False,
) -> None:
    """Measures queues side by side on a PostgreSQL of the benchmark's own, and writes a report."""
    names = shapes or list(QUICK if mode == "quick" else SHAPES)
    unknown = set(names) - set(SHAPES)
    if unknown:
        raise SystemExit(f"bench: no such shape: {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    before = report.read(out / "report.json").run if again else None
    failed: set[str] = set()
    try:
        found, unavailable = systems([name for name in only.split(",") if name], _say)
        with cluster(postgresql) as server:
            _say(f"PostgreSQL: {server.settings()}")
            for name, system in found.items():
                _say(f"{name}: {system.described.title} {system.described.version}, {system.described.settings}")
            for name, why in unavailable.items():
                _say(f"NOT HERE: {name}: {why}")
            for told in run(server, found, unavailable, mode=mode, shapes=names, rounds=rounds, say=_say):
                report.print_shape(told, told.shapes[-1])
                failed = set(told.unavailable) - set(unavailable)
                whole = told if before is None else report.merged(before, told)
                report.write(whole, _targets(whole), out)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"bench: interrupted; {out / 'report.md'} has the shapes that were finished") from None
    report.print_targets(told, _targets(told))
    _say(f"report: {out / 'report.md'}")
    if strict and failed:
        raise SystemExit(1)


def _targets(run: report.Run) -> list[report.Target]:
    """Those that a run can reach."""
    return [target for target in TARGETS if target.shape in {shape.name for shape in run.shapes}]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    typer.run(main)
