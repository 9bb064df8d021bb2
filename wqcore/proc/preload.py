"""Imports what the children need before the first fork, and proves that a fork is still safe after each module.

Ten workers forked from a master that had imported for them measured 81 MB PSS in all; 270 MB when each imported for
itself. The price is that an import runs in the master: it gets a time limit, and a module that starts a thread, opens a
socket or leaves an event loop running is refused by name. An import that hangs in C code, where no Python runs any more,
ends the process a second after its limit with exit code 1, after its stack was written to standard error.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from types import FrameType

from wqcore import clock
from wqcore.errors import PreloadError

_UNHEARD_S = 1.0
"""How long after the time limit the process is ended by a thread in C, when the import never let the alarm's handler run."""
_STDERR = 2


def preload(modules: list[str], *, timeout_s: float) -> None:
    """Imports `modules` in order and freezes the garbage collector. Raises PreloadError."""
    for module in modules:
        threads, sockets = _threads(), _sockets()
        _import(module, timeout_s)
        found = []
        if _more_threads_than(threads):
            names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
            found.append(f"started a thread ({names or 'not a Python one'})")
        if _sockets() > sockets:
            found.append("opened a socket")
        if _loop_runs():
            found.append("left an event loop running")
        if found:
            raise PreloadError(
                f"module {module!r} {' and '.join(found)} when it was imported, which does not survive a fork: move that "
                "into a @wqcore.resource, or set process.preload = false to import it in each worker instead"
            )
    gc.collect()
    gc.freeze()


def _import(module: str, timeout_s: float) -> None:
    def give_up(number: int, frame: FrameType | None) -> None:
        where = f" (at {frame.f_code.co_filename}:{frame.f_lineno})" if frame else ""
        raise PreloadError(
            f"module {module!r} was still being imported after {timeout_s:g} s{where}: "
            "make its import faster or raise process.boot_timeout_s"
        )

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    faulthandler.dump_traceback_later(timeout_s + _UNHEARD_S, exit=True, file=_STDERR)
    try:
        importlib.import_module(module)
    except (PreloadError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an import runs user code: SystemExit and the like must not pass for ours
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        raise PreloadError(f"cannot import {module!r}: {type(error).__name__}: {error}{where}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _more_threads_than(before: int) -> bool:
    """The watchdog's thread says that it has ended a moment before the kernel has removed it: 1 start in 100 saw it still."""
    for _ in range(100):
        if _threads() <= before:
            return False
        clock.sleep(0.01)
    return True


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _sockets() -> int:
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        except OSError:
            continue
    return count


def _loop_runs() -> bool:
    """Asks the event loop's own module, if anything has imported it at all."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None
