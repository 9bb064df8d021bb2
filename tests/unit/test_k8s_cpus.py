"""`processes = "cores"` counts what a container may use: a CPU quota, in cgroups v1 and v2, and not the cores of its host."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wqcore
from wqcore import cpus
from wqcore.settings import Queue

CGROUPS = Path("/sys/fs/cgroup")
MANY = 64


@pytest.fixture(autouse=True)
def _many_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu_cgroup" not in request.fixturenames:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MANY)))


def made(folder: Path, own: str, files: dict[str, str]) -> int:
    """What is found in a tree of such files by a process whose /proc/self/cgroup has that text."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return cpus.usable(cgroups=folder / "cgroup", own=folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "usable"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {}, MANY),
        ("0::/\n", {"cpu.max": "nonsense"}, MANY),
        ("0::/\n", {"cpu.max": "999999999 100000\n"}, MANY),
        # the strictest of all that hold: a pod's limit is on the cgroup above the container's
        ("0::/pod/one\n", {"pod/one/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}, 4),
        ("0::/pod/one\n", {"pod/one/cpu.max": "300000 100000", "pod/cpu.max": "400000 100000"}, 3),
        # without a cgroup namespace the path is the host's, and only the container's own cgroup is mounted
        ("0::/kubepods/pod1/abc\n", {"cpu.max": "500000 100000\n"}, 5),
        ("4:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, MANY),
        ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, MANY),
        ("odd\n\n", {}, MANY),
    ],
)
def test_the_strictest_quota_counts_rounded_up(tmp_path: Path, own: str, files: dict[str, str], usable: int) -> None:
    assert made(tmp_path, own, files) == usable


def test_no_more_than_the_affinity_whatever_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert made(tmp_path, "0::/\n", {"cpu.max": "800000 100000"}) == 3


def test_a_process_for_each_core_is_never_more_than_there_are_slots() -> None:
    assert Queue(workers=100, processes="cores", slots=16).process_count(64) == 16
    assert Queue(workers=100, processes=64, slots=16).process_count() == 64  # asked for: refused by the check


@pytest.fixture
def cpu_cgroup() -> Iterator[Callable[[float], str]]:
    """`cpu_cgroup(1.5)` is the `cgroup.procs` of a real cgroup with that quota; skips loudly where none can be made."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    name = f"wqcore-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    v1 = [path for _, controllers, path in lines if "cpu" in controllers.split(",")]
    root = CGROUPS / "cpu" / v1[0].lstrip("/") if v1 else CGROUPS / lines[-1][2].lstrip("/")
    folder = root / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"NOT TESTED: no CPU cgroup can be made here ({error}); it takes root")

    def limited(cores: float) -> str:
        try:
            if v1:
                (folder / "cpu.cfs_quota_us").write_text(str(round(cores * 100_000)))
            else:
                (folder / "cpu.max").write_text(f"{round(cores * 100_000)} 100000")
        except OSError as error:
            pytest.skip(f"NOT TESTED: no CPU quota can be set here ({error}); it takes a delegated controller")
        return str(folder / "cgroup.procs")

    yield limited
    folder.rmdir()


def test_in_a_real_cgroup_the_quota_counts(cpu_cgroup: Callable[[float], str]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("NOT TESTED: with one CPU a quota of one changes nothing")
    program = """
import sys
from wqcore.settings import Queue

queue = Queue(workers=100, processes="cores")
before = queue.process_count()
with open(sys.argv[1], "w") as procs:  # not before the imports, which would take their time with half a CPU
    procs.write("0")
print(before, queue.process_count())
"""
    environ = os.environ | {"PYTHONPATH": str(Path(wqcore.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program, cpu_cgroup(1.0)], env=environ, capture_output=True, text=True, timeout=60
    )
    before, after = map(int, done.stdout.split())
    assert before > after == 1, done.stderr
