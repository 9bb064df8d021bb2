"""What a program's tests need: a database made ready, jobs run in this process, and the time moved on.

Everything here is the real thing: the same shards, statements and outcomes as in a worker, only in the process of the
test. In reading order::

    prepare           a database with schema, queues and the program's kinds
    drain             works off all that is ready or due, and returns what became of it
    working           workers in the background while a block runs
    run_inline        one job inside a transaction of the test, which can roll everything back
    assert_inserted   which jobs there are
    travel            lets time pass
    plugin            fixtures for pytest: wqcore_dsn, wqcore_client, wqcore_async_client
"""

from __future__ import annotations

from wqcore.errors import NotDrained
from wqcore.testing.crew import Drained, drain, working
from wqcore.testing.inline import Ran, run_inline
from wqcore.testing.look import assert_inserted, travel
from wqcore.testing.ready import prepare

__all__ = [
    "Drained",
    "NotDrained",
    "Ran",
    "assert_inserted",
    "drain",
    "prepare",
    "run_inline",
    "travel",
    "working",
]
