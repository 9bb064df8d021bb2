"""What stands beside the queues: the bare protocol loop, and PostgreSQL running statements with no worker at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..cluster import Cluster
from ..measure import Round
from ..system import System
from . import floor, pgbench


class Limit(NamedTuple):
    """A measure that is no queue's. `run` gets the system that makes wqcore's tables and inserts."""

    title: str
    run: Callable[[Cluster, System, int], Round]


DRAINS = {
    "floor": Limit("limit: bare protocol loop", partial(floor.drain, history=False)),
    "floor_history": Limit("limit: bare protocol loop, history kept", partial(floor.drain, history=True)),
    "pgbench_turn": Limit("limit: pgbench, the turn", pgbench.turn),
    "pgbench_classic": Limit("limit: pgbench, classic claim and delete", pgbench.classic),
}
INSERTS = {"pgbench_insert": Limit("limit: pgbench, the same statement", pgbench.insert)}
LIMITS = DRAINS | INSERTS
