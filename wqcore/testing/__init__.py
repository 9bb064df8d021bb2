"""What a program's tests need: a database made ready, jobs run in this process, and the time moved on.

Everything here is the real thing: the same shards, statements and outcomes as in a worker, only in the process of the
test. In reading order::

    prepare         a database with schema, queues and the program's kinds
    drain           works off all that is ready or due, and returns what became of it
    working         workers in the background while a block runs
"""

from __future__ import annotations

from wqcore.errors import NotDrained
from wqcore.testing.crew import Drained, drain, working
from wqcore.testing.ready import prepare

__all__ = ["Drained", "NotDrained", "drain", "prepare", "working"]
