"""The command line: parses, prints, exits; no logic. What the exit codes mean is `front.EXIT_CODES`."""

from __future__ import annotations

import os
import sys

import typer

from wqcore.cli import doctor, front, insert, jobs, k8s, migrate, queues, run, schedules, status, top, workers
from wqcore.errors import (
    ConfigError,
    DatabaseUnavailable,
    InsertError,
    JobNotFound,
    NotInspectable,
    SchemaError,
    UnknownMaster,
    UnknownSchedule,
    WqcoreError,
)

__all__ = ["doctor", "insert", "jobs", "k8s", "main", "migrate", "queues", "run", "schedules", "status", "top", "workers"]
"""Importing a room makes its commands."""


def main() -> None:
    """The console script: every expected error becomes one sentence and an exit code."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # handlers live beside the configuration; `python -m` does the same
    sys.exit(_run())


def _run() -> int:
    """Runs the command; its exit code."""
    try:
        code = front.app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except ConfigError as error:
        for problem in error.problems:
            _say("error", problem)
        return front.EXIT_USAGE
    except (DatabaseUnavailable, SchemaError) as error:
        _say("error", error)
        return front.EXIT_DATABASE
    except (InsertError, JobNotFound, NotInspectable, UnknownMaster, UnknownSchedule, front.Refused) as error:
        _say("refused", error)
        return front.EXIT_REFUSED
    except WqcoreError as error:
        _say("error", error)
        return front.EXIT_USAGE
    except typer.Abort:
        return 130
    except (
        Exception
    ) as error:  # of usage errors: those of typer have had several base classes, but always these two names
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "wqcore")
        _say("error", f"{error.format_message().rstrip('.')}; `{command} --help` tells what there is")
        return front.EXIT_USAGE


def _say(what: str, error: object) -> None:
    front.err.print(f"[red]{what}:[/red] {front.plain(' '.join(str(error).split()))}")
