"""The protocol of shards, turns and rescues as a model for the explorer, each step as the statement or module it names.

Broken variants leave one thing out, so that a test can show that it was needed. A turn takes its snapshot when it is
sent and commits later, as in PostgreSQL: whatever others commit between, it does not see, except the shard's own row and
the job rows that it deletes, which it locks. All other statements are one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model.explorer import Move
from tests.model.protocol_sql import Sql
from tests.model.protocol_state import (
    CANCEL,
    CANCELLED,
    DEAD,
    DISCARD,
    FAIL,
    FROZEN,
    HOST_DEAD,
    LEFT,
    OK,
    REFUSED,
    SETTLED,
    SETTLING,
    SNOOZE,
    TURNED,
    TURNING,
    UNBORN,
    UP,
    WAITING,
    Budget,
    Job,
    Outcome,
    Run,
    Sent,
    Shard,
    State,
)  # fmt: skip

MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class Bounds:
    """A small world: the slot of each job, what shares a serial key, and how much may go wrong."""

    slots: tuple[int, ...] = (0, 0)
    """Of each job."""
    one_key: bool = False
    """All jobs have one serial key."""
    unborn: frozenset[int] = frozenset()
    """Jobs that exist only once a job key was replaced."""
    budget: Budget = field(default_factory=Budget)
    shards: int = 2


class Protocol:
    """Moves and rules; `variant` names what is left out (None: nothing)."""

    def __init__(self, bounds: Bounds, variant: str | None = None) -> None:
        self.bounds = bounds
        self.variant = variant
        self.sql = Sql(bounds.slots, variant)

    def initial(self) -> State:
        """All jobs wait, the first shard owns all slots, the second has just registered."""
        bounds = self.bounds
        jobs = tuple(Job(UNBORN if at in bounds.unborn else WAITING) for at in range(len(bounds.slots)))
        slots = frozenset(range(max(bounds.slots) + 1))
        shards = (Shard(lease=True, slots=slots), *[Shard(lease=True)] * (bounds.shards - 1))
        return State(jobs, shards, (0,) * len(slots), bounds.budget)

    def done(self, state: State) -> bool:
        """Every job that was inserted has ended."""
        return all(job.state not in (WAITING,) for job in state.jobs)

    def broken(self, state: State) -> str | None:
        """The rule that a state breaks by itself."""
        for at, job in enumerate(state.jobs):
            if job.records > 1:
                return f"job {at} has two terminal records"
        runs = [(shard, run.job) for shard in state.shards if shard.process in (UP, FROZEN) for run in shard.running]
        for number, (one, first) in enumerate(runs):
            for other, second in runs[:number]:
                if one.lease and other.lease:
                    if first == second:
                        return f"two runs of job {first} overlap, and neither has lost its shard"
                    if self.bounds.one_key:
                        return f"jobs {second} and {first} of one serial key run at once, and neither has lost its shard"
        return None

    def moves(self, state: State) -> Iterator[Move]:
        """Every step out of a state."""
        for at, shard in enumerate(state.shards):
            yield from self._server(state, at, shard)
            if shard.process == UP:
                yield from self._turns(state, at, shard)
                yield from self._runs(state, at, shard)
                yield from self._shares(state, at, shard)
            yield from self._fate(state, at, shard)
            yield from self._rescues(state, at, shard)
        yield from self._people(state)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _turns(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """A shard sends its statements one after the other, and takes in their replies."""
        sent = shard.sent
        if sent is None:
            held = frozenset(run.job for run in shard.waiting | shard.running)
            if self.variant == "hand-over forgets running jobs":
                held = frozenset(number for number in held if self.bounds.slots[number] in shard.slots)
            if shard.finished or shard.dirty or self._claimable(state, at, shard, held, frozenset()):
                settles = any(outcome.what != OK for outcome in shard.finished)
                sent = Sent(SETTLING if settles else TURNING, held, shard.finished)
                if not settles:
                    sent = self._snapshot(state, at, shard, sent)
                what = "its outcomes that are no completions" if settles else "a turn"
                after = shard._replace(sent=sent, finished=frozenset())
                yield Move(f"shard {at} sends {what}", state.with_shard(at, after))
        elif sent.stage == REFUSED:
            yield Move(f"shard {at} learns that it is fenced and ends", state.with_shard(at, ended(shard)))
        elif sent.stage == SETTLED:
            after = shard._replace(sent=self._snapshot(state, at, shard, sent._replace(stage=TURNING)))
            yield Move(f"shard {at} sends a turn", state.with_shard(at, after))
        elif sent.stage == TURNED:
            mine = sent.rows if not shard.draining else ()
            after = shard._replace(
                sent=None,
                waiting=shard.waiting | frozenset(mine),
                dirty=bool(shard.draining and sent.rows),
                blocked=False,
            )
            yield Move(f"shard {at} has the reply and holds {ids(mine)} more", state.with_shard(at, after))

    def _snapshot(self, state: State, at: int, shard: Shard, sent: Sent) -> Sent:
        """The turn as it begins on the server: the rows that its snapshot shows."""
        return sent._replace(rows=self._claimable(state, at, shard, sent.held, sent.outcomes))

    def _claimable(
        self, state: State, at: int, shard: Shard, held: frozenset[int], outcomes: frozenset[Outcome]
    ) -> tuple[Run, ...]:
        """The rows that a turn would claim now: in our slots, not ours already, not held elsewhere."""
        if shard.draining:
            return ()
        acknowledged = {(outcome.run.job, outcome.run.revision) for outcome in outcomes if outcome.what == OK}
        return tuple(
            Run(number, job.revision, job.attempt, job.time, job.superseded, 0)
            for number, job in enumerate(state.jobs)
            if job.state == WAITING
            and self.bounds.slots[number] in shard.slots
            and number not in held
            and number not in shard.elsewhere
            and (number, job.revision) not in acknowledged
            and not (self.variant == "lost reply not repaired" and state.holder(number) is not None)
        )

    def _server(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """The server commits what a shard has sent, also when the shard stands still or is dead by then."""
        if shard.sent is not None and shard.sent.stage in (SETTLING, TURNING):
            after, broken = self.sql.commit(state, at, shard.sent)
            if shard.process in (DEAD, HOST_DEAD):
                after = after.with_shard(at, after.shards[at]._replace(sent=shard.sent._replace(stage=REFUSED)))
            yield Move(f"the server commits what shard {at} has sent", after, broken=broken)
        if state.ghost is not None and state.ghost[0] == at:
            kept = shard.sent
            after, broken = self.sql.commit(state, at, state.ghost[1])
            after = after.with_shard(at, after.shards[at]._replace(sent=kept))._replace(ghost=None)
            yield Move(f"the server commits late what shard {at} sent on a lost connection", after, True, broken)

    # --- runs -------------------------------------------------------------------------------------------------------

    def _runs(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """Handlers start and end."""
        budget = state.budget
        for run in shard.waiting:
            rest = shard._replace(waiting=shard.waiting - {run})
            if shard.draining or not self._may_start(shard, run):
                continue
            if run.superseded:
                after = rest._replace(finished=rest.finished | {Outcome(run, CANCEL)})
                yield Move(f"shard {at} does not run job {run.job}, which was superseded", state.with_shard(at, after))
                continue
            job = state.jobs[run.job]
            running = state.with_shard(at, rest._replace(running=rest.running | {run}))
            if job.newest < run.claim:
                running = running.with_job(run.job, job._replace(newest=run.claim))
            yield Move(f"shard {at} starts job {run.job}", running)
        for run in shard.running:
            last = run.attempt + 1 >= MAX_ATTEMPTS
            ends = [(OK, 1, budget), (DISCARD if last else FAIL, budget.fail, budget._replace(fail=budget.fail - 1)),
                    (SNOOZE, budget.snooze, budget._replace(snooze=budget.snooze - 1))]  # fmt: skip
            for what, allowed, left in ends:
                if allowed:
                    after = shard._replace(
                        running=shard.running - {run}, finished=shard.finished | {Outcome(run, what)}
                    )
                    label = f"shard {at}: job {run.job} ends: {what}"
                    yield Move(label, state.with_shard(at, after)._replace(budget=left), what != OK)
            if state.jobs[run.job].asked and state.jobs[run.job].state == WAITING:
                after = shard._replace(running=shard.running - {run}, finished=shard.finished | {Outcome(run, CANCEL)})
                yield Move(f"shard {at} cancels its run of job {run.job}", state.with_shard(at, after))
        gone = {run for run in shard.waiting | shard.running if state.jobs[run.job].state == CANCELLED}
        if gone:
            after = shard._replace(waiting=shard.waiting - gone, running=shard.running - gone, dirty=True)
            yield Move(f"shard {at} hears that {ids(gone)} are gone", state.with_shard(at, after))

    def _may_start(self, shard: Shard, run: Run) -> bool:
        """Whether the job's serial key has room in this shard."""
        if not self.bounds.one_key or self.variant == "two jobs of one key":
            return True
        return not shard.running and not shard.elsewhere

    # --- slots ------------------------------------------------------------------------------------------------------

    def _shares(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """Slots go from one shard to another, and a worker drains; `line/shares.py` and `Shard._drained`."""
        budget = state.budget
        if shard.sent is None and not shard.lease:
            yield Move(f"shard {at} looks, finds itself fenced and ends", state.with_shard(at, ended(shard)))
            return
        if shard.sent is None and shard.giving is None and not shard.draining:
            for slot in sorted(shard.slots) if budget.give else ():
                left = budget._replace(give=budget.give - 1)
                yield Move(
                    f"shard {at} disowns slot {slot}",
                    state.with_shard(at, self._disowned(shard, slot))._replace(budget=left),
                    True,
                )
            free = [slot for slot, owner in enumerate(state.owner) if owner is None]
            if free:
                after = state._replace(owner=tuple(at if slot in free else own for slot, own in enumerate(state.owner)))
                yield Move(f"shard {at} takes the free slots", after)
            own = frozenset(slot for slot, owner in enumerate(state.owner) if owner == at)
            seen = self._seen_elsewhere(state, at, own)
            if self.variant == "slots read before it is known who holds their jobs" and own != shard.slots:
                seen = frozenset()
            if own != shard.slots or seen != shard.elsewhere:
                after = shard._replace(slots=own, elsewhere=seen)
                yield Move(f"shard {at} owns {sorted(own)} and leaves out {sorted(seen)}", state.with_shard(at, after))
        if shard.giving is not None and shard.sent is None and not shard.blocked:
            given = [shard.giving] if shard.giving >= 0 else range(len(state.owner))
            owner = tuple(None if own == at and slot in given else own for slot, own in enumerate(state.owner))
            after = state._replace(owner=owner).with_shard(at, shard._replace(giving=None))
            yield Move(f"shard {at} releases the slots that it has disowned", after)
        if budget.drain and not shard.draining and shard.sent is None:
            after = shard._replace(
                draining=True, waiting=frozenset(), slots=frozenset(), elsewhere=frozenset(), dirty=True, giving=-1,
                blocked=True,
            )  # fmt: skip
            left = budget._replace(drain=budget.drain - 1)
            yield Move(f"shard {at} drains", state.with_shard(at, after)._replace(budget=left), True)
        if shard.draining and not (shard.running or shard.finished or shard.sent or shard.giving is not None):
            owner = tuple(None if own == at else own for own in state.owner)
            yield Move(f"shard {at} leaves", state._replace(owner=owner).with_shard(at, ended(shard, lease=False)))

    def _disowned(self, shard: Shard, slot: int) -> Shard:
        """The shard without a slot: what waited in it is given back; what runs stays in the claim."""
        back = {run for run in shard.waiting if self.bounds.slots[run.job] == slot}
        write = bool(back or shard.running)
        return shard._replace(
            slots=shard.slots - {slot}, waiting=shard.waiting - back, giving=slot, dirty=shard.dirty or write, blocked=write
        )

    def _seen_elsewhere(self, state: State, at: int, slots: frozenset[int]) -> frozenset[int]:
        """held_elsewhere.sql: jobs in these slots that the newest claims of other living shards name."""
        return frozenset(
            number
            for number, job in enumerate(state.jobs)
            if job.state == WAITING and self.bounds.slots[number] in slots and state.holder(number, but=at) is not None
        )

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _fate(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """Connections are lost, processes freeze and die, and new ones come."""
        budget = state.budget
        if shard.process == UP and budget.lost and shard.sent is not None:
            after = state._replace(budget=budget._replace(lost=budget.lost - 1))
            sent = shard.sent
            broken_off = shard._replace(
                sent=None,
                finished=shard.finished | sent.outcomes,
                dirty=True,
                giving=None if shard.draining else shard.giving,
                blocked=shard.giving is not None and bool(shard.running),
            )
            yield Move(f"shard {at} loses its connection", after.with_shard(at, broken_off), True)
            if budget.late and state.ghost is None and sent.stage in (SETTLING, TURNING):
                after = after._replace(budget=after.budget._replace(late=budget.late - 1), ghost=(at, sent))
                label = f"shard {at} loses its connection, and the server has not done with it"
                yield Move(label, after.with_shard(at, broken_off), True)
        for what, process, allowed in (("crash", DEAD, budget.crash), ("host", HOST_DEAD, budget.host)):
            if allowed and shard.process in (UP, FROZEN):
                left = budget._replace(**{what: allowed - 1})
                yield Move(
                    f"the worker of shard {at} is killed" if process == DEAD else f"the host of shard {at} dies",
                    state.with_shard(at, shard._replace(process=process))._replace(budget=left),
                    True,
                )
        if budget.freeze and shard.process == UP:
            left = budget._replace(freeze=budget.freeze - 1)
            yield Move(
                f"shard {at} freezes", state.with_shard(at, shard._replace(process=FROZEN))._replace(budget=left), True
            )
        if shard.process == FROZEN:
            yield Move(f"shard {at} thaws", state.with_shard(at, shard._replace(process=UP)))
        if shard.process == UP and (self.bounds.budget.host or self.bounds.budget.freeze):
            started = shard.started()
            if started != shard.report:
                yield Move(f"the host of shard {at} beats", state.with_shard(at, shard._replace(report=started)))
        if shard.process in (DEAD, HOST_DEAD, LEFT) and not shard.lease and (state.ghost is None or state.ghost[0] != at):
            yield Move(f"a new worker registers as shard {at}", state.with_shard(at, Shard(lease=True)))

    def _rescues(self, state: State, at: int, shard: Shard) -> Iterator[Move]:
        """Keepers rescue: the own one, which has the board, and that of another master, which has the last heartbeat."""
        again = self.variant == "double rescue" and shard.rescued and shard.process in (DEAD, FROZEN)
        if not (shard.lease or again):
            return
        if shard.process in (DEAD, FROZEN):
            after, broken = self.sql.rescue(state, at, shard.started(), suspect_rest=False)
            yield Move(f"its own keeper rescues shard {at}", after, broken=broken)
        silent = shard.process in (HOST_DEAD, FROZEN)
        if silent or (self.variant == "beat stops before the drain" and shard.draining):
            after, broken = self.sql.rescue(state, at, shard.report, suspect_rest=True)
            yield Move(f"the keeper of another host rescues shard {at}", after, broken=broken)

    # --- what people do ---------------------------------------------------------------------------------------------

    def _people(self, state: State) -> Iterator[Move]:
        """Inserts with a job key, cancellations, jobs put back; and the keeper's sweep of cancellations."""
        budget, sql = state.budget, self.sql
        for at, job in enumerate(state.jobs):
            if job.state == WAITING:
                if budget.replace and not job.superseded and at == 0:
                    left = budget._replace(replace=budget.replace - 1)
                    yield Move("somebody inserts with the job key of job 0", sql.replace(state)._replace(budget=left), True)
                if budget.cancel and not job.asked:
                    left = budget._replace(cancel=budget.cancel - 1)
                    yield Move(f"somebody cancels job {at}", sql.cancel(state, at)._replace(budget=left), True)
                if job.asked and state.holder(at) is None:
                    yield Move(f"a keeper cancels job {at}, which nobody holds", sql.cancel(state, at))
            elif job.state != UNBORN and budget.back:
                left = budget._replace(back=budget.back - 1)
                yield Move(f"somebody puts job {at} back", sql.put_back(state, at)._replace(budget=left), True)


def ended(shard: Shard, *, lease: bool | None = None) -> Shard:
    """A worker that has ended by itself: drained, or because it is fenced."""
    return Shard(
        lease=shard.lease if lease is None else lease,
        claim=shard.claim if lease is None else frozenset(),
        process=LEFT,
        rescued=shard.rescued,
    )


def ids(runs: object) -> str:
    """The jobs of some runs, for a trace."""
    return ", ".join(f"job {number}" for number in sorted({run.job for run in runs})) or "nothing"  # type: ignore[attr-defined]
