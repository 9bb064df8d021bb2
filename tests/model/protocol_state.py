"""The state of the abstract protocol: what the tables hold, what each worker has in memory, and what may still go wrong.

A shard is a worker with a master of its own, so two shards are two masters. Times are left out: a job that runs again
may be claimed at once, and silence lasts as long as somebody needs it to. What the docs call ghosts are fields that only
the rules read; no step of the protocol may look at them.
"""

from __future__ import annotations

from typing import NamedTuple

UNBORN, WAITING, COMPLETED, CANCELLED, DISCARDED = "unborn", "waiting", "completed", "cancelled", "discarded"
"""Of a job's row: not inserted, in the table `job` (claimed or not), or in the history with that outcome."""
OK, FAIL, SNOOZE, DISCARD, CANCEL = "ok", "fail", "snooze", "discard", "cancel"
"""What a run came to."""
UP, FROZEN, DEAD, HOST_DEAD, LEFT = "up", "frozen", "dead", "host dead", "left"
"""A worker; `host dead`: its master died with it. One that has left, or whose lease was taken from it, has ended."""
SETTLING, SETTLED, TURNING, TURNED, REFUSED = "settling", "settled", "turning", "turned", "refused"
"""A statement under way: sent (-ing) or with a reply on its way (-ed); refused: the reply says that we are fenced."""


class Job(NamedTuple):
    """One job in the database."""

    state: str = UNBORN
    revision: int = 0
    attempt: int = 0
    deaths: int = 0
    time: int = 0
    """run_at, as the number of its changes."""
    superseded: bool = False
    """A newer job has its job key (max_attempts 0)."""
    asked: bool = False
    """A cancellation waits for its owner."""
    claims: int = 0
    """Ghost: how often it was claimed."""
    newest: int = 0
    """Ghost: the newest claim from which a run was started; an older run may not write its outcome."""
    records: int = 0
    """Ghost: its rows in the history."""


class Run(NamedTuple):
    """A job as a shard has claimed it."""

    job: int
    revision: int
    attempt: int
    time: int
    superseded: bool
    claim: int


class Outcome(NamedTuple):
    """What became of a run; the shard keeps it until a turn has written it."""

    run: Run
    what: str


class Sent(NamedTuple):
    """A statement under way, and what the turn that it belongs to carries."""

    stage: str
    held: frozenset[int]
    outcomes: frozenset[Outcome]
    rows: tuple[Run, ...] = ()


class Shard(NamedTuple):
    """One worker: its rows in the database, then its memory, then what others see of it."""

    lease: bool
    claim: frozenset[int] = frozenset()
    """The newest row of its journal."""
    process: str = UP
    slots: frozenset[int] = frozenset()
    waiting: frozenset[Run] = frozenset()
    running: frozenset[Run] = frozenset()
    finished: frozenset[Outcome] = frozenset()
    elsewhere: frozenset[int] = frozenset()
    """Jobs in its slots that others still hold."""
    sent: Sent | None = None
    dirty: bool = False
    """The claim must be written anew."""
    giving: int | None = None
    """A slot that was disowned and is to be released; -1: all, in a drain."""
    blocked: bool = False
    """It is not released before a turn has written the claim without what was given back."""
    draining: bool = False
    report: frozenset[tuple[int, int]] = frozenset()
    """What the last heartbeat said had started."""
    rescued: bool = False
    """Ghost: its jobs have been given back."""

    def started(self) -> frozenset[tuple[int, int]]:
        """(job, attempt) of the runs that the board shows: those whose outcome no reply has confirmed."""
        outcomes = self.finished if self.sent is None else self.finished | self.sent.outcomes
        runs = self.running | {outcome.run for outcome in outcomes}
        return frozenset((run.job, run.attempt) for run in runs if not run.superseded)


class Budget(NamedTuple):
    """How often each thing may still happen."""

    lost: int = 0
    """A connection is lost, before or after its statement was committed."""
    late: int = 0
    """A statement of a lost connection is committed after all, when the shard has gone on with a new one."""
    crash: int = 0
    host: int = 0
    freeze: int = 0
    fail: int = 0
    snooze: int = 0
    replace: int = 0
    cancel: int = 0
    back: int = 0
    """A finished job is put back by hand."""
    give: int = 0
    """A shard gives a slot to the other one."""
    drain: int = 0


class State(NamedTuple):
    """All of it."""

    jobs: tuple[Job, ...]
    shards: tuple[Shard, ...]
    owner: tuple[int | None, ...]
    """Of each slot, as the table says."""
    budget: Budget
    ghost: tuple[int, Sent] | None = None
    """A statement of a lost connection that the server may still commit, and whose it is."""

    def with_job(self, at: int, job: Job) -> State:
        """This with another job."""
        return self._replace(jobs=(*self.jobs[:at], job, *self.jobs[at + 1 :]))

    def with_shard(self, at: int, shard: Shard) -> State:
        """This with another shard."""
        return self._replace(shards=(*self.shards[:at], shard, *self.shards[at + 1 :]))

    def holder(self, job: int, but: int | None = None) -> int | None:
        """A living shard (other than `but`) whose newest claim names the job."""
        for at, shard in enumerate(self.shards):
            if at != but and shard.lease and job in shard.claim:
                return at
        return None
