"""What is done to processes, server and network. Each fault is a generator: it acts, and yields how long it waits then.

All run in one thread, interleaved by `inject`, so a seed fixes every choice, though not what happens meanwhile. A fault
that is closed in the middle undoes what it has done: what is stopped is continued, and what is silent speaks.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress

import psutil
import psycopg

from tests.chaos.masters import Master
from tests.chaos.world import MASTERS, World

Waits = Generator[float, None, None]
Fault = Callable[[World, random.Random, Counter[str]], Waits]

REPLIES_AHEAD = 40
"""A reply to be dropped is that of one of so many next statements."""


def kill_worker(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGKILL for one worker, once or twice a second."""
    while True:
        yield choose.uniform(0.3, 1.5)
        workers = [worker for master in _living(world) for worker in master.children("worker")]
        if workers:
            _kill(world, choose.choice(workers).pid, "kill worker")
            count["workers killed"] += 1


def kill_keeper(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGKILL for one keeper: rescues that were asked for must not be forgotten."""
    while True:
        yield choose.uniform(0.8, 4.0)
        keepers = [keeper for master in _living(world) for keeper in master.children("keeper")]
        if keepers:
            # its master may look dead until another keeper beats, so all of its workers are concerned
            keeper = choose.choice(keepers)
            began = time.monotonic_ns()
            master = next(master for master in _living(world) if keeper.pid in master.tree())
            with suppress(psutil.NoSuchProcess):
                keeper.kill()
                count["keepers killed"] += 1
            world.fault("kill keeper", began, master.tree(), lasts_s=10.0)


def kill_master(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGKILL for a master; a new one is started, at once or a little later."""
    while True:
        yield choose.uniform(1.5, 7.0)
        number = choose.randrange(MASTERS)
        master = world.masters[number]
        if master is None or not master.alive():
            world.start_master(number)
            continue
        began, pids = time.monotonic_ns(), master.tree()
        master.process.kill()
        master.process.wait()
        world.fault("kill master", began, pids)
        count["masters killed"] += 1
        yield choose.choice((0.0, 0.0, choose.uniform(0.0, 4.0)))
        if not _alive(world, number):
            world.start_master(number)


def drain_master(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGTERM for a master, once or more often, and a new one when it has left: a rolling deploy."""
    while True:
        yield choose.uniform(1.0, 5.0)
        number = choose.randrange(MASTERS)
        master = world.masters[number]
        if master is None or not master.alive():
            continue
        began, pids = time.monotonic_ns(), master.tree()
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            with suppress(ProcessLookupError):
                master.process.send_signal(signal.SIGTERM)
            yield choose.uniform(0.0, 0.5)
        count["masters drained"] += 1
        while master.alive():
            pids = sorted({*pids, *master.tree()})
            yield 0.2
        world.fault("drain master", began, pids)
        if not _alive(world, number):
            world.start_master(number)


def suspend_worker(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGSTOP for a worker until it has lost its lease, or nearly, and then SIGCONT."""
    while True:
        yield choose.uniform(0.3, 2.0)
        workers = [worker for master in _living(world) for worker in master.children("worker")]
        if workers:
            count["workers suspended"] += 1
            yield from _suspend(world, choose, "suspend worker", [choose.choice(workers).pid])


def suspend_master(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """The same for a master alone: its workers go on, and its beat stops."""
    while True:
        yield choose.uniform(0.3, 2.0)
        masters = _living(world)
        if masters:
            master = choose.choice(masters)
            count["masters suspended"] += 1
            yield from _suspend(world, choose, "suspend master", [master.pid], touched=master.tree())


def suspend_tree(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """The same for a master and all its children: a machine that sleeps."""
    while True:
        yield choose.uniform(0.5, 3.0)
        masters = _living(world)
        if masters:
            master = choose.choice(masters)
            count["trees suspended"] += 1
            yield from _suspend(world, choose, "suspend tree", master.tree())


def terminate_backends(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """pg_terminate_backend for some of our connections, several times a second."""
    while True:
        yield choose.uniform(0.1, 0.5)
        began = time.monotonic_ns()
        with suppress(psycopg.OperationalError):  # another fault has the server; anything else is an error of ours
            count["connections terminated"] += world.scalar(
                "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity where "
                "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' "
                "order by random() limit %s) as chosen",
                choose.choice((1, 2, 20)),
            )
            world.fault("terminate backends", began)


def restart_server(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """An immediate stop of the server, and its recovery."""
    while True:
        yield choose.uniform(2.0, 8.0)
        began = time.monotonic_ns()
        world.cluster.crash()
        yield choose.choice((0.0, 0.0, choose.uniform(0.0, 3.0)))
        world.cluster.start()
        world.fault("restart server", began)
        count["server crashes"] += 1


def freeze_server(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """SIGSTOP for all of the server, for longer than a lease or shorter."""
    while True:
        yield choose.uniform(1.0, 5.0)
        began = time.monotonic_ns()
        try:
            world.cluster.freeze()
            yield choose.uniform(0.5, 6.0)
        finally:
            world.cluster.thaw()
            world.fault("freeze server", began)
            count["server freezes"] += 1


def cut_connections(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """FIN or RST on every connection of one road."""
    while True:
        yield choose.uniform(0.1, 1.5)
        world.fault("cut connections", time.monotonic_ns())
        choose.choice(world.proxies).cut(reset=choose.random() < 0.5)
        count["roads cut"] += 1


def silence(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """A black hole: one road is half-open for a while, longer than a lease or shorter."""
    while True:
        yield choose.uniform(0.3, 3.0)
        proxy, began = choose.choice(world.proxies), time.monotonic_ns()
        try:
            proxy.silence()
            yield choose.uniform(0.3, 6.0)
        finally:
            if choose.random() < 0.5:
                proxy.cut(reset=True)
            proxy.speak()
            world.fault("silence", began)
            count["black holes"] += 1


def drop_replies(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """A statement is carried out and its reply is lost, several times a second."""
    before = sum(proxy.dropped for proxy in world.proxies)
    while True:
        yield choose.uniform(0.05, 0.3)
        world.fault("drop replies", time.monotonic_ns(), lasts_s=1.0)
        choose.choice(world.proxies).drop_reply(choose.randrange(1, REPLIES_AHEAD))
        now = sum(proxy.dropped for proxy in world.proxies)
        count["replies dropped"] += now - before
        before = now


def slow_network(world: World, choose: random.Random, count: Counter[str]) -> Waits:
    """Delay and little bandwidth on one road for a while."""
    while True:
        yield choose.uniform(0.1, 2.0)
        proxy, began = choose.choice(world.proxies), time.monotonic_ns()
        try:
            proxy.delay_s = choose.choice((0.005, 0.03, 0.15))
            proxy.bytes_per_s = choose.choice((0.0, 20_000.0))
            yield choose.uniform(0.5, 5.0)
        finally:
            proxy.delay_s = proxy.bytes_per_s = 0.0
            world.fault("slow network", began)
            count["slow roads"] += 1


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, kill_keeper, kill_master, drain_master, suspend_worker, suspend_master, suspend_tree,
        terminate_backends, restart_server, freeze_server, cut_connections, silence, drop_replies, slow_network,
    )
}  # fmt: skip
TOGETHER_NEVER = {frozenset({"restart_server", "freeze_server"})}
"""A frozen server cannot be crashed, and a crashed one not frozen."""


class NeverInjected(RuntimeError):  # noqa: N818 - what happened, or rather did not
    """A fault of the plan has done nothing, so the verdict would claim more than was shown."""


def inject(world: World, faults: list[tuple[Fault, random.Random]], seconds: float) -> Counter[str]:
    """Injects faults for so long, then closes them; how often each thing was done. Raises NeverInjected."""
    counts: list[Counter[str]] = [Counter() for _ in faults]
    running = [fault(world, choose, count) for (fault, choose), count in zip(faults, counts, strict=True)]
    end = time.monotonic() + seconds
    # the first time comes early, so that a short campaign has all of its faults
    due = [(time.monotonic() + min(next(waits), seconds / 4), number) for number, waits in enumerate(running)]
    heapq.heapify(due)
    try:
        while due and due[0][0] < end:
            at, number = heapq.heappop(due)
            time.sleep(max(0.0, at - time.monotonic()))
            world.read_clocks()
            heapq.heappush(due, (time.monotonic() + next(running[number]), number))
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        for waits in running:
            waits.close()
    idle = [fault.__name__ for (fault, _), count in zip(faults, counts, strict=True) if not sum(count.values())]
    if idle:
        raise NeverInjected(", ".join(idle))
    return sum(counts, Counter())


def _living(world: World) -> list[Master]:
    return [master for master in world.masters if master is not None and master.alive()]


def _alive(world: World, number: int) -> bool:
    master = world.masters[number]
    return master is not None and master.alive()


def _kill(world: World, pid: int, what: str) -> None:
    began = time.monotonic_ns()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    world.fault(what, began, [pid])


def _suspend(
    world: World, choose: random.Random, what: str, pids: list[int], *, touched: list[int] | None = None
) -> Waits:
    """Stops these processes, the first one first, and continues them in the opposite order."""
    began = time.monotonic_ns()
    dead_after_s = world.settings.process.dead_after_s
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield choose.uniform(0.5, 1.0 + 2.5 * dead_after_s)
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        world.fault(what, began, touched or pids)
