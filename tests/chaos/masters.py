"""A master of a campaign, and how its processes are found: those that live, and those that it left behind."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil


class Master:
    """A master and whatever it forks; found again by the session that it leads."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def children(self, title: str = "") -> list[psutil.Process]:
        """Its living children whose title has this in it: worker, keeper."""
        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                with suppress(psutil.Error):
                    if title in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
        return found

    def tree(self) -> list[int]:
        """The pids of the master and its children."""
        return [self.pid, *(child.pid for child in self.children())]


def processes_of(sessions: set[int]) -> list[tuple[int, str]]:
    """(pid, what it is) of each process in these sessions; a fork cannot leave them, whoever is its parent now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, f"{process.pid} {' '.join(process.cmdline())[:100]}"))
    return found
