"""What `conf/prod.toml` costs while there is nothing to do: memory and CPU of the whole tree of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from cryptography.fernet import Fernet

from ..errors import BenchError
from ..measure import Round
from ..plan import Bench, Cell, Shape

CONFIG = Path("conf/prod.toml")
CALM_S = 8.0
"""Starting, importing and the first looks are over after this long."""
END_LIMIT_S = 60.0


def shape(bench: Bench) -> Shape:
    """The tree that the configuration starts on this machine: one worker process a queue, `default` one a core."""
    cells = [Cell("wqcore", "conf/prod.toml", partial(_run, bench))] if "wqcore" in bench.systems else []
    return Shape(
        "idle",
        "An idle production configuration",
        "How much memory (PSS) and CPU does the whole tree of processes take when nothing is to be done?",
        "pss_mb",
        "MB",
        cells,
        better="lower",
        rounds=1,
    )


def _run(bench: Bench) -> Round:
    with bench.cluster.database("bench_idle") as database, tempfile.TemporaryFile() as errors:
        env = os.environ | {
            "WQCORE_DATABASE__DSN": database.dsn,
            "WQCORE_APP__SMTP__SENDER": "bench@example.com",
            "WQCORE_APP__SECRETS__KEYS": Fernet.generate_key().decode(),
        }
        command = [sys.executable, "-m", "wqcore", "--config", str(CONFIG)]
        subprocess.run([*command, "migrate"], env=env, check=True, capture_output=True, timeout=60)
        master = subprocess.Popen(command, env=env, stderr=errors, stdout=errors)
        try:
            time.sleep(CALM_S)
            before = _cpu_s(master.pid)
            time.sleep(bench.sizes.idle_s)
            if master.poll() is not None:
                errors.seek(0)
                raise BenchError(f"the master ended with {master.returncode}: {errors.read()[-1500:].decode()}")
            tree = _tree(master.pid)
            return {
                "pss_mb": sum(process.memory_full_info().pss for process in tree) / 1e6,
                "cpu_percent": (_cpu_s(master.pid) - before) / bench.sizes.idle_s * 100,
                "processes": float(len(tree)),
            }
        finally:
            master.terminate()
            master.wait(END_LIMIT_S)


def _tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def _cpu_s(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _tree(pid))
