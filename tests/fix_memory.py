"""Gives `memory_cgroup`, a memory cgroup of the test's own (v1 or v2), or skips loudly where none can be made."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """Processes put here, and all that they fork from then on, may have `limit` bytes together."""

    def __init__(self, folder: Path, limit_file: str) -> None:
        self.folder = folder
        self._limit_file = folder / limit_file

    def limit(self, size: int) -> None:
        self._limit_file.write_text(str(size))

    def put(self, *pids: int) -> None:
        for pid in pids:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Moves what still lives back to where it came from: a cgroup with processes cannot be removed."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (self.folder.parent / "cgroup.procs").write_text(pid)
        self.folder.rmdir()


def make() -> MemoryCgroup:
    """A new cgroup below ours. Raises OSError."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    name = f"wqcore-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            made = MemoryCgroup(ROOT / "memory" / path.lstrip("/") / name, "memory.limit_in_bytes")
            made.folder.mkdir()
            return made
    path = next(path for number, _, path in lines if number == "0")
    made = MemoryCgroup(ROOT / path.lstrip("/") / name, "memory.max")
    made.folder.mkdir()
    try:
        made.limit(1 << 30)  # there is no such file unless the parent hands the controller down
    except OSError:
        made.folder.rmdir()
        raise
    return made


@pytest.fixture
def memory_cgroup() -> Iterator[MemoryCgroup]:
    try:
        made = make()
    except (OSError, StopIteration) as error:
        pytest.skip(f"NOT TESTED: no memory cgroup can be made here ({error}); it takes root and a delegated controller")
    yield made
    made.remove()
