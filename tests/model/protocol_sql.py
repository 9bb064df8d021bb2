"""What each statement of the protocol does to the abstract tables, and which rule it breaks when it does.

Each method is one file of `wqcore/db/sql/`, or a function of the migrations, with its guards. The rules are judged here
because only the step that writes shows them: an outcome is written by the newest run, for the newest revision; attempts
only grow; a death is charged once, for a worker that has been away, and to no job that a living shard holds.
"""

from __future__ import annotations

from tests.model.protocol_state import (
    CANCEL,
    CANCELLED,
    COMPLETED,
    DISCARD,
    DISCARDED,
    FAIL,
    OK,
    REFUSED,
    SETTLED,
    SETTLING,
    SNOOZE,
    TURNED,
    UNBORN,
    UP,
    WAITING,
    Job,
    Outcome,
    Sent,
    State,
)  # fmt: skip

DEATHS_MAX = 2
MAX_ATTEMPTS = 2

Result = tuple[State, str | None]


class Sql:
    """The statements; `variant` names the guard that is left out."""

    def __init__(self, slots: tuple[int, ...], variant: str | None) -> None:
        self.slots = slots
        self.variant = variant

    def commit(self, state: State, at: int, sent: Sent) -> Result:
        """turn.sql, or settle_retry.sql and settle_end.sql: nothing, when the shard's row is gone."""
        shard = state.shards[at]
        if not shard.lease and not (self.variant == "turn without the fence" and sent.stage != SETTLING):
            return state.with_shard(at, shard._replace(sent=sent._replace(stage=REFUSED))), None
        broken = None
        for outcome in sorted(sent.outcomes):
            if (outcome.what == OK) != (sent.stage == SETTLING):
                state, rule = self._write(state, outcome)
                broken = broken or rule
        if sent.stage == SETTLING:
            return state.with_shard(at, state.shards[at]._replace(sent=sent._replace(stage=SETTLED))), broken
        return self._claim(state, at, sent), broken

    def _claim(self, state: State, at: int, sent: Sent) -> State:
        """The second half of turn.sql: the claim is written whole."""
        rows = []
        for row in sent.rows:
            job = state.jobs[row.job]
            rows.append(row._replace(claim=job.claims + 1))
            state = state.with_job(row.job, job._replace(claims=job.claims + 1))
        shard = state.shards[at]
        kept = sent.held
        if self.variant == "lost reply not repaired":
            kept = shard.claim - {outcome.run.job for outcome in sent.outcomes}
        claim = kept | {row.job for row in rows}
        sent = sent._replace(stage=TURNED, rows=tuple(rows))
        return state.with_shard(at, shard._replace(claim=claim, sent=sent))

    def _write(self, state: State, outcome: Outcome) -> Result:
        """One outcome, if the job still is what was claimed."""
        run, what = outcome
        job = state.jobs[run.job]
        if job.state != WAITING:
            if self.variant == "history from memory" and what == OK and job.state == COMPLETED:
                return state.with_job(run.job, job._replace(records=job.records + 1)), None
            return state, None
        checked = self.variant != "revision not checked" or what != OK
        if checked and job.revision != run.revision:
            return state, None
        if what == FAIL and job.attempt >= run.attempt + 1:
            return state, None  # the guards of settle_retry.sql against being sent again
        if what == SNOOZE and job.time != run.time and self.variant != "a snooze sent again":
            return state, None
        broken = None
        if run.claim < job.newest:
            broken = f"an outcome of job {run.job} is written by another run than its newest"
        if what == OK:
            if job.revision != run.revision:
                broken = f"job {run.job} is completed, but what was inserted last never ran"
            after = job._replace(state=COMPLETED)
        elif what in (DISCARD, CANCEL):
            after = job._replace(state=DISCARDED if what == DISCARD else CANCELLED)
        elif job.superseded or job.asked:
            after = job._replace(state=DISCARDED if what == FAIL and not job.asked else CANCELLED)
        else:
            attempt = run.attempt + (what == FAIL)
            if attempt < job.attempt:
                broken = f"an attempt of job {run.job} is taken back"
            after = job._replace(attempt=attempt, time=job.time + 1)
        if after.state != WAITING:
            after = after._replace(records=job.records + 1, asked=False)
        return state.with_job(run.job, after), broken

    def rescue(self, state: State, at: int, started: frozenset[tuple[int, int]], *, suspect_rest: bool) -> Result:
        """rescue_fence.sql and rescue.sql."""
        shard = state.shards[at]
        broken = None
        if shard.process == UP:
            broken = f"shard {at} is rescued although its worker lives: its jobs are charged with a death"
        for number, attempt in sorted(started):
            job = state.jobs[number]
            guarded = self.variant != "double rescue"
            if job.state != WAITING or (guarded and job.attempt != attempt):
                continue
            if number not in shard.claim and guarded and self.variant != "charge without a claim":
                continue
            if shard.rescued:
                broken = f"job {number} is charged twice for one death"
            elif state.holder(number, but=at) is not None:
                broken = f"job {number} is charged for the death of shard {at}, but another living shard holds it"
            state = state.with_job(number, charged(job))
        if suspect_rest:
            for number in shard.claim - {number for number, _ in started}:
                job = state.jobs[number]
                if job.state == WAITING:
                    state = state.with_job(number, job._replace(deaths=job.deaths + 1))
        lease = self.variant == "rescue unguarded" and not shard.rescued
        owner = tuple(None if own == at else own for own in state.owner)
        shard = shard._replace(lease=lease, claim=frozenset(), rescued=True)
        return state._replace(owner=owner).with_shard(at, shard), broken

    def replace(self, state: State) -> State:
        """insert_keyed() with the job key of job 0; job 1 is its successor where a shard holds it."""
        job = state.jobs[0]
        if state.holder(0) is None:
            return state.with_job(0, job._replace(revision=job.revision + 1, attempt=0, deaths=0, time=job.time + 1))
        state = state.with_job(0, job._replace(superseded=True))
        successor = state.jobs[1]
        return state.with_job(1, successor._replace(state=WAITING)) if successor.state == UNBORN else state

    def cancel(self, state: State, at: int) -> State:
        """cancel(): a job that is held gets a request."""
        job = state.jobs[at]
        if state.holder(at) is not None:
            return state.with_job(at, job._replace(asked=True))
        return state.with_job(at, job._replace(state=CANCELLED, records=job.records + 1, asked=False))

    def put_back(self, state: State, at: int) -> State:
        """control_retry.sql for a finished job: a revision that it never had, and one attempt more."""
        job = state.jobs[at]
        revision = job.revision if self.variant == "put back with its old revision" else job.revision + 10
        return state.with_job(
            at,
            job._replace(state=WAITING, revision=revision, attempt=0, deaths=0, superseded=False, records=job.records - 1,
                         newest=job.claims + 1),
        )  # fmt: skip


def charged(job: Job) -> Job:
    """A job whose process died: runs again, or ends when it was cancelled, or its attempts or deaths are used up."""
    after = job._replace(attempt=job.attempt + 1, deaths=job.deaths + 1, time=job.time + 1)
    if job.asked:
        return after._replace(state=CANCELLED, records=job.records + 1, asked=False)
    if after.attempt >= MAX_ATTEMPTS or after.deaths >= DEATHS_MAX or job.superseded:
        return after._replace(state=DISCARDED, records=job.records + 1)
    return after
