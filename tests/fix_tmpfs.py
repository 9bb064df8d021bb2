"""Gives `new_tmpfs`, small file systems of the test's own that can be filled, or skips loudly where none can be mounted."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PIECE_BYTES = 4096


class Tmpfs:
    """A file system in memory of `megabytes`, mounted at `folder`."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "wqcore-test", str(folder)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip

    def fill(self) -> None:
        """Takes every page that is left."""
        file = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                os.write(file, bytes(PIECE_BYTES))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(file)

    def free(self) -> None:
        """Gives back what `fill` has taken."""
        self._filler.unlink()

    def unmount(self) -> None:
        """Also while a process that is about to end has a file there."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        self.folder.rmdir()


@pytest.fixture
def new_tmpfs() -> Iterator[Callable[[int], Tmpfs]]:
    """`new_tmpfs(100)` gives one of 100 MB, which is gone after the test."""
    made: list[Tmpfs] = []

    def make(megabytes: int) -> Tmpfs:
        folder = Path(tempfile.mkdtemp(prefix="wq-tmpfs-"))
        try:
            made.append(Tmpfs(folder, megabytes))
        except (OSError, subprocess.CalledProcessError) as error:
            folder.rmdir()
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"NOT TESTED: no tmpfs can be mounted here ({why}); it takes root and the right to mount")
        return made[-1]

    yield make
    for tmpfs in made:
        tmpfs.unmount()
