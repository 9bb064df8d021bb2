"""The command line: parses, prints, exits; no logic.

Exit codes: 0 done · 1 some input was refused, or a problem was found · 2 wrong usage or configuration · 3 the database
cannot be used · 70 the workers could not start · 131 ended at once by SIGQUIT.
"""

from __future__ import annotations

import os
import sys

from wqcore.cli import front, insert, k8s, migrate, run, schedules, status
from wqcore.errors import ConfigError, DatabaseUnavailable, InsertError, SchemaError, WqcoreError

__all__ = ["insert", "k8s", "main", "migrate", "run", "schedules", "status"]  # importing a room makes its commands


def main() -> None:
    """The console script: every expected error becomes one sentence and an exit code."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # handlers live beside the configuration; `python -m` does the same
    try:
        front.app(standalone_mode=True)
    except ConfigError as error:
        for problem in error.problems:
            front.err.print(f"[red]error:[/red] {front.plain(problem)}")
        sys.exit(front.EXIT_USAGE)
    except (DatabaseUnavailable, SchemaError) as error:
        front.err.print(f"[red]error:[/red] {front.plain(str(error))}")
        sys.exit(front.EXIT_DATABASE)
    except InsertError as error:
        front.err.print(f"[red]refused:[/red] {front.plain(str(error))}")
        sys.exit(front.EXIT_REFUSED)
    except WqcoreError as error:
        front.err.print(f"[red]error:[/red] {front.plain(str(error))}")
        sys.exit(front.EXIT_USAGE)
