"""How many CPUs this process may really use: its affinity, and the CPU quota of every cgroup that it is in.

A container's CPU limit is a quota (CFS bandwidth): the kernel stops all threads of the cgroup for the rest of a period of
100 ms once they have used it up. Neither `sched_getaffinity` nor `os.process_cpu_count` sees it, so a container with a limit of
two on a host of 64 would fork 64 workers that share two CPUs, and be stopped most of the time.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable(*, cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """CPUs, at least 1. A quota of two and a half counts as three: with two processes a half would lie idle."""
    quotas = _quotas(cgroups, own)
    return max(1, min(len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas), 1 << 20))


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """The quotas of our cgroup and of those above it, in CPUs, as far as they can be seen from here."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found: list[float | None] = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0":
            found += [_of_v2(folder) for folder in _upwards(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for root in (cgroups / "cpu", cgroups / controllers):  # the second where cpu and cpuacct are mounted together
                found += [_of_v1(folder) for folder in _upwards(root, path)]
    return [quota for quota in found if quota is not None]


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a cgroup and those above it. In a container without a cgroup namespace the path is the host's, and only
    the root, which is then our own cgroup, is there to see."""
    inner = root / path.lstrip("/")
    return [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]


def _of_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _of_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
