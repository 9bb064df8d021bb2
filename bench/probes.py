"""What the probes in the workers have written: how many jobs were handled by when, and when each was entered.

The files are described in peers/README.md. They are read as they grow; a line that is not whole yet waits.
"""

from __future__ import annotations

from pathlib import Path


class Probes:
    """The probes of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._counts: dict[Path, list[tuple[int, int]]] = {}

    def handled(self) -> int:
        """How many jobs the workers have handled until now."""
        for path in self._folder.glob("*.count"):
            self._counts.setdefault(path, []).extend((int(a), int(b)) for a, b in self._new_lines(path))
        return sum(counts[-1][1] for counts in self._counts.values() if counts)

    @property
    def first_ns(self) -> int:
        """When the first job was handled."""
        return min(counts[0][0] for counts in self._counts.values() if counts)

    def progress(self) -> list[tuple[int, int]]:
        """(time in ns, jobs handled by then), over all workers."""
        steps = sorted(
            (at, count - before)
            for counts in self._counts.values()
            for (at, count), (_, before) in zip(counts, [(0, 0), *counts], strict=False)
        )
        found, total = [], 0
        for at, more in steps:
            total += more
            found.append((at, total))
        return found

    def entered(self) -> dict[int, int]:
        """The job's number → when its handler was entered, in ns; the first time if there were several."""
        found: dict[int, int] = {}
        for path in self._folder.glob("*.entered"):
            for number, at in self._new_lines(path):
                found.setdefault(int(number), int(at))
        return found

    def _new_lines(self, path: Path) -> list[list[bytes]]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        return [line.split() for line in whole.splitlines()]
