"""`wqcore top`: a live display of queues, masters and the database."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.live import Live

from wqcore import clock, launch
from wqcore.cli import front
from wqcore.db.connect import describe
from wqcore.errors import DatabaseUnavailable
from wqcore.settings import Settings
from wqcore.watch.status import LIVE_CAP, Reader
from wqcore.watch.top import Top

ENDED_EVERY_S = 15.0
"""What ended within the hour is a longer walk than the rest of a look."""
RECONNECT_S = 1.0


@front.app.command("top")
def show_top(
    every: Annotated[float, typer.Option("--every", "-n", help="Seconds between two looks.", min=0.5, max=3600)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then leave.")] = False,
    as_json: front.JsonOption = False,
    config: front.ConfigOption = None,
) -> None:
    """Watch queues, masters and the database; q or Ctrl-C leaves. Plain lines where the output is no terminal."""
    settings = front.settings(config)
    with launch.database(settings) as dsn:
        looks = _Looks(settings, dsn)
        top = Top(describe(dsn) + f" schema={settings.database.schema}", every)
        try:
            if once or as_json or not front.out.is_terminal or front.out.is_dumb_terminal:
                _plain(looks, top, every, once=once, as_json=as_json)
            else:
                _live(looks, top, every)
        except KeyboardInterrupt:
            pass  # one of the two ways out
        finally:
            looks.close()


class _Looks:
    """Looks over a connection that is opened anew when it was lost."""

    def __init__(self, settings: Settings, dsn: str) -> None:
        self._settings, self._dsn = settings, dsn
        self._reader: Reader | None = None
        self._ended_at = 0.0

    def look(self, top: Top, *, must: bool) -> dict[str, object] | None:
        """One look; None when the database cannot be asked, unless it must be."""
        try:
            if self._reader is None:
                self._reader = Reader(self._settings, self._dsn, name="wqcore top", cap=LIVE_CAP)
            found = self._reader.live()
            if clock.monotonic() >= self._ended_at:
                found |= self._reader.ended()
                self._ended_at = clock.monotonic() + ENDED_EVERY_S
        except DatabaseUnavailable as error:
            self.close()
            if must:
                raise
            top.missed(str(error))
            return None
        top.saw(found, clock.monotonic())
        return found

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def _plain(looks: _Looks, top: Top, every: float, *, once: bool, as_json: bool) -> None:
    first = True
    while True:
        found = looks.look(top, must=once or first)
        first = False
        if as_json:
            (front.print_json if once else front.print_json_line)(found)
        elif once:
            front.out.print(top.frame(clock.monotonic(), front.out.width, 1000, live=False), soft_wrap=False)
        else:
            front.out.print("\n".join(top.lines()))
            sys.stdout.flush()
        if once:
            return
        clock.sleep(every)


def _live(looks: _Looks, top: Top, every: float) -> None:
    looks.look(top, must=True)  # an error that is there from the start is told as any other command tells it

    def frame() -> object:
        return top.frame(clock.monotonic(), front.out.width, front.out.height, live=True)

    with _keys(), Live(frame(), console=front.out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:  # type: ignore[arg-type]
        next_at = clock.monotonic() + every
        while True:
            live.update(frame(), refresh=True)  # type: ignore[arg-type]
            if _pressed(max(0.0, min(next_at - clock.monotonic(), 1.0))):
                return
            if clock.monotonic() >= next_at:
                found = looks.look(top, must=False)
                next_at = clock.monotonic() + (every if found is not None else min(every, RECONNECT_S))


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one and are not echoed; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bool:
    """Waits; True when q was pressed."""
    if not sys.stdin.isatty():
        clock.sleep(seconds)
        return False
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    keys = os.read(sys.stdin.fileno(), 64)
    return not keys or b"q" in keys or b"Q" in keys  # no key at all: the terminal is gone
