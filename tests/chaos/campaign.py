"""A campaign is a seed: it chooses what clients do and three faults that overlap; then heal, drain, check.

The seed fixes every choice, not the timing: processes and the server take the time they take. So a seed that has found
something finds it again often, not always; the history of a failure is kept, and `python -m tests.check` reads it.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.chaos import load
from tests.chaos.faults import FAULTS, TOGETHER_NEVER, inject
from tests.chaos.world import World, world
from tests.check.finding import Finding
from tests.check.history import read
from tests.check.verdict import findings, verdict

FAULTS_AT_ONCE = 3
CLIENTS = 2
DRAIN_S = 60.0
"""How long the healed system has to finish everything; what is left then is stranded."""
CLIENT_END_S = 30.0


class Plan(msgspec.Struct, frozen=True):
    """What a seed chooses."""

    seed: int
    mix: load.Mix
    faults: list[str]
    per_second: float


class Result(msgspec.Struct):
    """What a campaign found; `folder` has its history when that was kept."""

    plan: Plan
    findings: list[Finding]
    verdict: str
    done: dict[str, int]
    jobs: int
    folder: Path


def plan(seed: int) -> Plan:
    """The choices of a seed."""
    choose = random.Random(f"{seed} plan")
    together = [
        list(some)
        for some in itertools.combinations(FAULTS, FAULTS_AT_ONCE)
        if not any(never <= set(some) for never in TOGETHER_NEVER)
    ]
    return Plan(seed, load.chosen_mix(choose), choose.choice(together), choose.choice((40.0, 80.0, 150.0)))


def run(chosen: Plan, seconds: float, *, say: Callable[[str], None] = print, engine: Path | None = None) -> Result:
    """Carries a plan out. The history is kept when it has findings, or when the campaign itself failed."""
    kept = True
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it warns of each lost connection, and we cut them
    with world(engine=engine, keep=lambda: kept) as here:
        say(f"history: {here.folder}")
        clients = _start(here, chosen)
        choices = [(FAULTS[name], random.Random(f"{chosen.seed} {name}")) for name in chosen.faults]
        done = inject(here, choices, seconds)
        say("injected: " + ", ".join(f"{count} {what}" for what, count in sorted(done.items())))
        here.heal()
        _end(clients)
        began = time.monotonic()
        in_time = here.drained(DRAIN_S)
        say(f"{'drained' if in_time else 'NOT DRAINED'} within {time.monotonic() - began:.1f} s after healing")
        here.finish()
        history = read(here.folder)
        found = findings(history)
        kept = bool(found)
        return Result(
            chosen, found, verdict(history, found), dict(Counter(done)), len(history.end.finished), here.folder
        )


def _start(here: World, chosen: Plan) -> list[load.Client]:
    for number in range(len(here.masters)):
        here.start_master(number)
    here.wait_ready()
    journal = load.journal(here.folder)
    clients = [
        load.Client(
            here.client_settings(),
            journal,
            seed=f"{chosen.seed} client {number}",
            mix=chosen.mix,
            per_second=chosen.per_second / CLIENTS,
        )
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    return clients


def _end(clients: list[load.Client]) -> None:
    """Lets the clients finish; raises what ended one of them, since a load that has stopped shows nothing."""
    for client in clients:
        client.finish()
    for client in clients:
        client.join(CLIENT_END_S)
        if client.error is not None:
            raise client.error
        if client.is_alive():
            raise RuntimeError(f"a client did not end within {CLIENT_END_S:g} s")
