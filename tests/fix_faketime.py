"""Gives `faketime`, the environment of processes whose time of day is wrong, or skips loudly where libfaketime is not to be had.

The library is the machine's own, or comes from its package manager, unpacked into a temporary folder. The monotonic clock
stays as it is: clocks of hosts differ by what people have set, not by how fast they go.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LIBRARY = "libfaketimeMT.so.1"
DOWNLOAD_S = 30
OFF_S = 3600
SITECUSTOMIZE = """
import select, time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
"""What a process with a wrong time of day needs as `sitecustomize.py`: libfaketime takes the absolute monotonic time, until
which Python sleeps, for a time of day, and the sleep fails with EINVAL (0.9.10)."""


def wrong_by(library: Path, offset: str) -> dict[str, str]:
    """The environment of a process whose time of day is off by `offset`, e.g. `+1h`."""
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}


def found(folder: Path) -> Path | None:
    """The library below a folder."""
    return next(folder.rglob(LIBRARY), None) if folder.is_dir() else None


def fetched(folder: Path) -> Path | None:
    """The library of Debian's package, unpacked into `folder`."""
    try:
        for command in (["apt-get", "download", "-q", "libfaketime"], ["sh", "-c", "dpkg -x libfaketime*.deb ."]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=DOWNLOAD_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return found(folder)


def works(library: Path) -> bool:
    """Whether a Python has another time of day with it, and the same monotonic clock."""
    command = [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"]
    try:
        told = subprocess.run(
            command, env=os.environ | wrong_by(library, "+1h"), check=True, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return False
    day, monotonic = map(float, told.stdout.split())
    return abs(day - time.time() - OFF_S) < OFF_S / 4 and abs(monotonic - time.monotonic()) < OFF_S / 4


@pytest.fixture(scope="session")
def faketime() -> Iterator[Callable[[str], dict[str, str]]]:
    """`faketime("+1h")` gives the variables."""
    with tempfile.TemporaryDirectory(prefix="wq-faketime-") as name:
        library = found(Path("/usr/lib")) or fetched(Path(name))
        if library is None or not works(library):
            why = "is neither installed nor to be had from the package manager" if library is None else "does not work"
            pytest.skip(f"NOT TESTED: clocks of hosts that differ; {LIBRARY} {why}: install Debian's package faketime")
        yield lambda offset: wrong_by(library, offset)
