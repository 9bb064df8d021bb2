"""`python -m bench` measures wqcore beside its peers and writes a report; `python -m bench drain` one shape of load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .cluster import FOLDER, cluster
from .peers_here import find
from .plan import MODES, Bench
from .run import run
from .shapes import QUICK, SHAPES


def main(
    shapes: Annotated[list[str] | None, typer.Argument(help="What to measure (default: all of the mode's shapes).")] = None,
    mode: Annotated[str, typer.Option(help="full, quick (under 4 minutes) or tiny (shows that all of it runs).")] = "full",
    only: Annotated[str, typer.Option(help="Names of queues, separated by commas; default: all.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds, instead of the mode's.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = FOLDER / "report",
    postgresql: Annotated[int, typer.Option(help="Major version of the embedded server: 16 or 18.")] = 18,
) -> None:
    """Runs the benchmark."""
    ...


if __name__ == "__main__":
    typer.run(main)
