"""The master: forks, watches, reaps, replaces, drains. It cannot be hung by a database, an event loop or a handler.

Its loop runs every `TICK_S` and whenever a signal arrives: it says on the board that it lives, reaps children, looks at
their ticks, fills empty places, and, when asked, drains.

What happens when something dies:

- a worker: its sheet shows which jobs had started; the keeper is told (a line in a pipe) to rescue the shard, and a
  replacement is forked, at once the first time and with growing delay when it keeps dying young. The sheet is not used
  again until the keeper has answered. A keeper that dies is replaced and told again.
- a worker whose loop stands still for `loop_stuck_s`: SIGABRT, at which it dumps the stacks of all threads, then SIGKILL.
- a worker that is suspended (SIGSTOP): left alive; after `dead_after_s` its shard is rescued and its place filled. When
  it thaws it finds itself fenced and leaves.
- the master: the kernel kills its children; a keeper of another master notices the missing beat.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass

from wqcore import clock
from wqcore.proc.board import DRAINING, FREE, WORKING, Board
from wqcore.proc.children import (
    EXIT_BOOT_FAILED,
    EXIT_FENCED,
    EXIT_LEFT_THREADS,
    Child,
    Children,
    Death,
    Place,
    suspended,
)
from wqcore.proc.recycling import Recycler, Recycling
from wqcore.proc.signals import Flags
from wqcore.watch.page import Page

log = logging.getLogger("wqcore.master")

TICK_S = 0.2
ABORT_GRACE_S = 1.0
RESPAWN_MAX_S = 10.0
YOUNG_S = 5.0
"""A child that dies younger than this counts towards a growing respawn delay."""
BOOT_FAILURES_MAX = 3
KILL_AFTER_DRAIN_S = 5.0
SAY_EVERY_S = 2.0
KEEPER_LEAVE_S = 10.0

EXIT_OK, EXIT_BOOT, EXIT_QUIT = 0, 70, 131


@dataclass(frozen=True)
class Orders:
    """What a master is to run, already decided by others."""

    places: list[Place]
    worker_entry: str
    keeper_entry: str
    program: object
    """What the entry functions need besides their post; the master only passes it on."""
    drain_timeout_s: float
    cancel_grace_s: float
    boot_timeout_s: float
    loop_stuck_s: float
    dead_after_s: float
    recycling: Recycling
    page: Page | None = None
    """Where lost children are counted; None: nobody asks."""


@dataclass(frozen=True)
class Post:
    """What a child is told: the argument of its entry function."""

    place: str
    queue: str | None
    workers: int
    board: Board
    sheet_number: int
    program: object
    orders_fd: int = -1
    answers_fd: int = -1


def sheets_of(places: int) -> int:
    """How many sheets the board of a master has: a spare one a place, and two for keepers."""
    return 2 * places + 2


class Master:
    """The loop described above. `run()` returns the exit code."""

    def __init__(self, orders: Orders, *, title: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._orders = orders
        self._title = title
        self._say = say
        self._flags = Flags()
        self._keeper_place = Place("keeper", None, 0)
        seats = [place.workers for place in orders.places]
        # a spare sheet a place: its next child may start while the last one's sheet still waits for its rescue
        self.board = Board([*seats, *seats, 0, 0])
        self._free_sheets = list(range(len(self.board.sheets)))
        self.children = Children(self._master_only_fds)
        self._drain_limit_s = orders.drain_timeout_s + orders.cancel_grace_s + KILL_AFTER_DRAIN_S
        self._recycler = Recycler(orders.recycling, self._drain_limit_s)
        self._rescues: dict[int, str] = {}
        self._said_ready = False
        self._failure: str | None = None
        self._last_tick = clock.monotonic()
        self._patience_until = 0.0
        self._drain_began = 0.0
        self._drains_sent = 0
        self._said_at = 0.0

    def run(self) -> int:
        """Runs until drained. 0: drained; 70: children could not start; 131: quit at once."""
        self._flags.install()
        poll = select.poll()
        poll.register(self._flags.fileno(), select.POLLIN)
        polled = -1
        while True:
            keeper = self._keeper()
            answers = keeper.pipes["answers"] if keeper else -1
            if answers != polled:
                if polled >= 0:
                    poll.unregister(polled)
                if answers >= 0:
                    poll.register(answers, select.POLLIN)
                polled = answers
            poll.poll(TICK_S * 1000)
            self._flags.clear()
            now = self._tick()
            if keeper is not None:
                self._hear(keeper)
            for death in self.children.reap():
                if death.child.place is self._keeper_place and death.child.pipes.get("answers") == polled:
                    poll.unregister(polled)
                    polled = -1
                self._died(death, now)
            self._watch(now)
            if self._flags.quit:
                return self._quit()
            if self._flags.drains or self._failure:
                if self._drain(now):
                    if self._failure:
                        self._say(self._failure)
                        return EXIT_BOOT
                    return EXIT_OK
            else:
                if self._said_ready:
                    self._recycler.step(self.children, now)
                self._fill(now)
                self._announce()

    # --- one tick -------------------------------------------------------------------------------------------------

    def _tick(self) -> float:
        now = clock.monotonic()
        if now - self._last_tick > max(2.0, 5 * TICK_S):
            # we were suspended or starved ourselves; the children may have been too, so their silence proves nothing
            log.warning("master was away for %.1f s", now - self._last_tick)
            self._patience_until = now + self._orders.loop_stuck_s
        self._last_tick = now
        self.board.tick(clock.monotonic_ns())
        return now

    def _fill(self, now: float) -> None:
        """Forks a child for every empty place whose time has come; the keeper first, it rescues."""
        filled = {id(child.place) for child in self.children.by_pid.values() if not (child.disowned or child.relieved)}
        for place in (self._keeper_place, *self._orders.places):
            if id(place) not in filled and now >= place.respawn_at:
                self._fork(place, now)

    def _fork(self, place: Place, now: float) -> None:
        number = next((free for free in self._free_sheets if self.board.sheets[free].seats == place.workers), None)
        if number is None:
            return
        self._free_sheets.remove(number)
        sheet = self.board.sheets[number]
        sheet.assign(clock.new_shard_id() if place.queue else 0, clock.monotonic_ns())
        child = Child(0, place, sheet, number, now)
        if place is self._keeper_place:
            self._fork_keeper(child)
        else:
            post = Post(place.name, place.queue, place.workers, self.board, number, self._orders.program)
            self.children.fork(child, self._orders.worker_entry, post)
        log.debug("forked %s as %d", place.name, child.pid)

    def _fork_keeper(self, child: Child) -> None:
        orders_read, orders_write = os.pipe2(os.O_CLOEXEC)
        answers_read, answers_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(orders_write, False)
        os.set_blocking(answers_read, False)
        child.pipes = {"orders": orders_write, "answers": answers_read}
        post = Post("keeper", None, 0, self.board, child.sheet_number, self._orders.program, orders_read, answers_write)
        self.children.fork(child, self._orders.keeper_entry, post)
        os.close(orders_read)
        os.close(answers_write)
        for number, reason in self._rescues.items():
            self._tell(child, number, reason)

    def _watch(self, now: float) -> None:
        """Looks at every child's tick: booting too long, stuck, or suspended."""
        if now < self._patience_until:
            return
        for child in list(self.children.by_pid.values()):
            silent = now - child.sheet.tick_ns / 1e9
            if child.killed_at:
                if now - child.killed_at > ABORT_GRACE_S:
                    self.children.signal(child, signal.SIGKILL)
            elif child.disowned:
                continue
            elif child.sheet.state not in (WORKING, DRAINING):
                if silent > self._orders.boot_timeout_s and not suspended(child.pid):
                    self._abort(
                        child, now, f"{child.place.name} did not start within {self._orders.boot_timeout_s:g} s"
                    )
            elif silent > self._orders.loop_stuck_s and not suspended(child.pid):
                jobs = ", ".join(
                    f"job {job.id} ({job.kind}, for {now - job.began:.1f} s)" for job in child.sheet.running()
                )
                self._abort(child, now, f"loop stuck for {silent:.1f} s; running: {jobs or 'no job'}")
            elif silent > self._orders.dead_after_s and child.place.queue and suspended(child.pid):
                log.warning("%s (pid %d) is suspended: its jobs are rescued", child.place.name, child.pid)
                child.disowned = True
                self._rescue(child.sheet_number, "worker suspended for longer than dead_after_s")

    def _abort(self, child: Child, now: float, why: str) -> None:
        """SIGABRT: the child writes the stacks of its threads to its log and dies; SIGKILL follows if it does not."""
        log.error("%s (pid %d): %s", child.place.name, child.pid, why)
        child.killed_at, child.why_killed = now, why
        self.children.signal(child, signal.SIGABRT)

    def _died(self, death: Death, now: float) -> None:
        child, place = death.child, death.child.place
        for descriptor in child.pipes.values():
            os.close(descriptor)
        booted = child.sheet.state in (WORKING, DRAINING)
        ended = place.queue is None or child.sheet.has_ended_by_itself
        clean = ended and death.exit_code == 0 and (self._drains_sent > 0 or child.leaving_at > 0)
        fenced = ended and death.exit_code == EXIT_FENCED
        if fenced:
            log.info("%s (pid %d): left, because its jobs had been rescued", place.name, child.pid)
        elif not clean:
            log.error("%s (pid %d): %s", place.name, child.pid, death.describe())
        self._count(death, clean=clean, fenced=fenced, booted=booted)
        if place.queue is None or clean or fenced or child.disowned:
            if child.sheet_number not in self._rescues:
                self._free(child.sheet_number)
        else:
            self._rescue(child.sheet_number, death.describe())
        if not booted and (death.exit_code == EXIT_BOOT_FAILED or child.why_killed):
            place.boot_failures += 1
            if place.boot_failures >= BOOT_FAILURES_MAX and not self._said_ready:
                self._failure = (
                    f"{place.name} could not start in {place.boot_failures} tries; the reason is in the log above"
                )
        elif booted:
            place.boot_failures = 0
        if child.relieved:
            return  # its place is filled, and the end of it says nothing about that
        if now - child.started_at < YOUNG_S:
            place.quick_deaths += 1
            place.respawn_at = now + min(RESPAWN_MAX_S, 0.05 * 2**place.quick_deaths) if place.quick_deaths > 1 else now
        else:
            place.quick_deaths, place.respawn_at = 0, now
        if self._orders.page is not None and place.queue is not None:
            self._orders.page.dies_young(place.name, place.quick_deaths)

    def _count(self, death: Death, *, clean: bool, fenced: bool, booted: bool) -> None:
        """Counts a child that has to be replaced, by the cause; one that has drained with the master does not."""
        child = death.child
        if self._orders.page is None or (clean and not child.leaving_at):
            return
        if child.disowned:
            cause = "suspended"
        elif clean:
            cause = "recycled"
        elif fenced:
            cause = "fenced"
        elif not booted:
            cause = "start"
        elif child.why_killed:
            cause = "stuck"
        else:
            cause = "threads" if death.exit_code == EXIT_LEFT_THREADS else "died"
        self._orders.page.ended(child.place.queue, cause)

    # --- rescue ---------------------------------------------------------------------------------------------------

    def _rescue(self, sheet_number: int, reason: str) -> None:
        self._rescues[sheet_number] = reason
        keeper = self._keeper()
        if keeper is not None:
            self._tell(keeper, sheet_number, reason)

    def _tell(self, keeper: Child, sheet_number: int, reason: str) -> None:
        """One short line: the keeper reads the rest from the board. A full pipe is told again by the next keeper."""
        line = json.dumps({"rescue": sheet_number, "reason": reason[:2000]}) + "\n"
        try:
            os.write(keeper.pipes["orders"], line.encode())
        except (BlockingIOError, BrokenPipeError) as error:
            log.error("cannot reach the keeper (%s): replacing it", error)
            self.children.signal(keeper, signal.SIGKILL)

    def _hear(self, keeper: Child) -> None:
        """Answers of the keeper: sheets whose shards are rescued."""
        try:
            data = os.read(keeper.pipes["answers"], 65536)
        except BlockingIOError:
            return
        for word in data.split():
            number = int(word)
            if self._rescues.pop(number, None) is None:
                continue
            # a suspended child may thaw and write on its sheet once more: that one is free only when it has died
            if all(child.sheet_number != number for child in self.children.by_pid.values()):
                self._free(number)

    def _free(self, sheet_number: int) -> None:
        self.board.sheets[sheet_number].set_state(FREE)
        self._free_sheets.append(sheet_number)

    def _keeper(self) -> Child | None:
        return next((child for child in self.children.by_pid.values() if child.place is self._keeper_place), None)

    # --- the end --------------------------------------------------------------------------------------------------

    def _drain(self, now: float) -> bool:
        """One step of a drain; True when everybody has left. The keeper, and with it the beat, goes last."""
        if not self._drain_began:
            self._drain_began = now
            self._title("wqcore: master draining")
            if self._orders.page is not None:
                self._orders.page.drains()
        workers = [child for child in self.children.by_pid.values() if child.place is not self._keeper_place]
        wanted = max(1, self._flags.drains)
        while self._drains_sent < wanted:
            self._drains_sent += 1
            for child in workers:
                if self._drains_sent > 1 or not child.leaving_at:  # else it drains already; TERM again would hurry it
                    self.children.signal(child, signal.SIGTERM)
        if (workers or self._rescues) and self._keeper() is None and not self._failure:
            self._fork(self._keeper_place, now)
        limit = self._drain_limit_s
        if workers:
            self._tell_waiting(workers, now)
            if now - self._drain_began > limit or self._failure or wanted > 2:
                for child in workers:
                    if child.killed_at == 0.0 and (wanted <= 2 or now - self._drain_began > 1.0):
                        child.killed_at, child.why_killed = now, "did not end within the drain's time"
                        self.children.signal(child, signal.SIGKILL)
            return False
        keeper = self._keeper()
        if self._rescues and not self._failure and now - self._drain_began < limit + KEEPER_LEAVE_S:
            return False
        if keeper is None:
            return True
        if keeper.sheet.state != DRAINING and not keeper.killed_at:
            keeper.sheet.set_state(DRAINING)
            self.children.signal(keeper, signal.SIGTERM)
            keeper.started_at = now
        elif now - keeper.started_at > KEEPER_LEAVE_S:
            self.children.signal(keeper, signal.SIGKILL)
        return False

    def _tell_waiting(self, workers: list[Child], now: float) -> None:
        if now - self._said_at < SAY_EVERY_S:
            return
        jobs = [job for child in workers for job in child.sheet.running()]
        if self._said_at or jobs:
            shown = ", ".join(f"{job.kind} {job.id} ({now - job.began:.0f} s)" for job in jobs[:5])
            more = f" and {len(jobs) - 5} more" if len(jobs) > 5 else ""
            self._say(
                f"draining: waiting for {len(jobs)} running jobs: {shown}{more}" if jobs else "draining: flushing"
            )
        else:
            self._say("draining")
        self._said_at = now

    def _quit(self) -> int:
        """Ends at once; the jobs are rescued by the next master's keeper, or by another's."""
        self._say("quit: ending at once, without a drain")
        for child in self.children.by_pid.values():
            self.children.signal(child, signal.SIGKILL)
        while self.children.by_pid:
            self.children.reap()
            clock.sleep(0.01)
        return EXIT_QUIT

    def _announce(self) -> None:
        """Says once that all places are at work."""
        if self._said_ready:
            return
        working = [child for child in self.children.by_pid.values() if child.sheet.state == WORKING]
        if len(working) == len(self._orders.places) + 1:
            self._said_ready = True
            self._say(f"ready: {len(self._orders.places)} worker processes and a keeper")

    def _master_only_fds(self) -> list[int]:
        pipes = [descriptor for child in self.children.by_pid.values() for descriptor in child.pipes.values()]
        return [*pipes, self._flags._read, self._flags._write]
