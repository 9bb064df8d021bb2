"""The tables of one queue in memory, and each statement of the protocol as a method that does what its SQL file does.

`test_statements_agree.py` holds it to that: it sends the same statements here and to PostgreSQL and compares. So what a
shard shows on these tables (`test_shard_simulated.py`, thousands of runs a minute) holds for PostgreSQL as well.

A method takes the parameters of its statement and returns its rows. A statement is one step; only the turn has two, its
snapshot and its commit, because it locks no job and what others commit in between matters. Times are in µs since 2000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from wqcore.job import ERRORS_KEPT_MAX

Params = dict[str, Any]
Rows = list[tuple[Any, ...]]

REPLACED = "replaced by a newer job of its job key"


class Row(NamedTuple):
    """A row of `job`; the first thirteen columns are those that a turn returns."""

    id: int
    slot: int
    priority: int
    kind: str
    revision: int
    attempt: int
    max_attempts: int
    deaths: int
    serial_key: str | None
    run_at: int | None
    created_at: int
    args: bytes
    metadata: bytes | None
    job_key: str | None
    errors: tuple[str, ...]


class Record(NamedTuple):
    """A row of `history`."""

    row: Row
    outcome: str
    attempt: int
    deaths: int
    shard: int | None
    errors: tuple[str, ...]


class Tables:
    """One queue.

    Args:
        slots: how many it has.
        now_us: the database's clock.
        notify: called with the payload of each notification.
    """

    def __init__(self, slots: int, now_us: Callable[[], int], notify: Callable[[str], None] = lambda _: None) -> None:
        self.jobs: dict[int, Row] = {}
        self.history: list[Record] = []
        self.shards: dict[int, str] = {}
        self.sessions: dict[int, int] = {}
        self.claims: dict[int, dict[int, list[int]]] = {}
        """Shard → turn → ids."""
        self.slots: dict[int, int | None] = dict.fromkeys(range(slots))
        self.requests: dict[int, str] = {}
        self.paused = False
        self.sequence = 0
        self.now_us = now_us
        self.notify = notify
        self._xid = 100
        self._open: set[int] = set()

    # --- who holds what ---------------------------------------------------------------------------------------------

    def newest(self, shard: int) -> list[int]:
        """The ids of the newest claim."""
        turns = self.claims.get(shard)
        return turns[max(turns)] if turns else []

    def held(self) -> dict[int, int]:
        """Job → the living shard whose newest claim names it."""
        return {job: shard for shard in self.shards for job in self.newest(shard)}

    # --- transactions -----------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """An xid."""
        self._xid += 1
        self._open.add(self._xid)
        return self._xid

    def end(self, xid: int) -> None:
        """That transaction has ended."""
        self._open.discard(xid)

    # --- the turn ---------------------------------------------------------------------------------------------------

    def turn_snapshot(self) -> dict[int, Row]:
        """What a turn that begins now will see of the jobs; rows never change, they are replaced."""
        return dict(self.jobs)

    def turn(self, p: Params, seen: dict[int, Row] | None = None, now: int | None = None) -> Rows:
        """turn.sql"""
        if p["shard"] not in self.shards:
            return []
        xid = self.begin()
        seen, now = (self.turn_snapshot() if seen is None else seen), (self.now_us() if now is None else now)
        done = list(self._at_revision(p["done_ids"].items, p["done_revisions"].items))
        for row in done:
            del self.jobs[row.id]
            if p["keep_hours"] > 0:
                self._record(row, "completed", row.attempt + 1, p["shard"])
        rows = self._ready(p, seen) + self._due(p, seen, now)
        claimed = bool(p["changed"] or rows)
        if claimed:
            turns = self.claims.setdefault(p["shard"], {})
            for turn in [turn for turn in turns if p["since"] <= turn < p["turn"]]:
                del turns[turn]
            turns[p["turn"]] = p["held"].items + [row.id for row in rows]
        self.end(xid)
        counts = (len(done), int(claimed))
        return [(*row[:13], *counts) for row in rows] or [(*[None] * 13, *counts)]

    def _at_revision(self, ids: list[int], revisions: list[int]) -> Iterable[Row]:
        for at, job in enumerate(ids):
            row = self.jobs.get(job)
            if row is not None and row.revision == (revisions[at] if revisions else 0):
                yield row

    def _lane(self, p: Params, seen: dict[int, Row], slot: int, priority: int) -> list[Row]:
        left_out, busy = set(p["exclude"].items), set(p["busy_keys"])
        return [
            row
            for row in seen.values()
            if row.slot == slot and row.priority == priority and row.id not in left_out and row.serial_key not in busy
        ]

    def _ready(self, p: Params, seen: dict[int, Row]) -> list[Row]:
        found: list[Row] = []
        for lane, cursor in _cursors(p).items():
            rows = [row for row in self._lane(p, seen, *lane) if row.run_at is None and row.id > cursor.after]
            found += sorted(rows)[: p["n"]]
        return found[: p["n"]]

    def _due(self, p: Params, seen: dict[int, Row], now: int) -> list[Row]:
        found: list[Row] = []
        for lane, cursor in _cursors(p).items():
            rows = [
                (row.run_at, row.id, row)
                for row in self._lane(p, seen, *lane)
                if row.run_at is not None and row.run_at <= now and (row.run_at, row.id) > cursor.due
            ]
            found += [row for _, _, row in sorted(rows)][: p["n"]]
        return found[: p["n"]]

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def settle_retry(self, p: Params) -> Rows:
        """settle_retry.sql"""
        if p["shard"] not in self.shards:
            return []
        columns = (p["ids"].items, p["revisions"].items, p["attempts"].items, p["delays_s"], p["errors"], p["ready_us"].items)
        changed = 0
        for job, revision, attempt, delay_s, error, ready_us in sorted(zip(*columns, strict=True)):
            row = self.jobs.get(job)
            if row is None or row.revision != revision:
                continue
            if error is not None and row.attempt >= attempt:
                continue
            if error is None and (row.created_at if row.run_at is None else row.run_at) > ready_us:
                continue
            reason = self.requests.get(job)
            if row.max_attempts == 0 or reason is not None:
                text = error or reason or REPLACED
                outcome = "discarded" if reason is None and error is not None else "cancelled"
                self.end_job(row, outcome, attempt, p["shard"], text)
                continue
            errors = row.errors if error is None else (*row.errors, error)[-ERRORS_KEPT_MAX:]
            self.jobs[job] = row._replace(attempt=attempt, run_at=self.now_us() + int(delay_s * 1e6), errors=errors)
            changed += 1
        return [(p["shard"], changed)]

    def settle_end(self, p: Params) -> Rows:
        """settle_end.sql"""
        if p["shard"] not in self.shards:
            return []
        done = 0
        columns = (p["ids"].items, p["revisions"].items, p["outcomes"], p["errors"], p["started"])
        for job, revision, outcome, error, started in zip(*columns, strict=True):
            row = self.jobs.get(job)
            if row is not None and row.revision == revision:
                self.end_job(row, outcome, row.attempt + started, p["shard"], error)
                done += 1
        return [(p["shard"], done)]

    def end_job(self, row: Row, outcome: str, attempt: int, shard: int | None, error: str | None, deaths: int = 0) -> None:
        del self.jobs[row.id]
        self.requests.pop(row.id, None)
        self._record(row, outcome, attempt, shard, error, deaths)

    def _record(
        self, row: Row, outcome: str, attempt: int, shard: int | None, error: str | None = None, deaths: int = 0
    ) -> None:
        errors = row.errors if error is None else (*row.errors, error)[-ERRORS_KEPT_MAX:]
        self.history.append(Record(row, outcome, attempt, row.deaths + deaths, shard, errors))

    # --- shards -----------------------------------------------------------------------------------------------------

    def shard_register(self, p: Params) -> Rows:
        """shard_register.sql"""
        self.shards.setdefault(p["shard"], p["process"])
        self.notify("slots")
        return [("",)]

    def shard_session(self, p: Params) -> Rows:
        """shard_session.sql"""
        if p["shard"] not in self.shards:
            return []
        self.sessions[p["shard"]] = self.sessions.get(p["shard"], 0) + 1
        return [(self.sessions[p["shard"]], "one")]

    def shard_leave(self, p: Params) -> Rows:
        """shard_leave.sql"""
        gone = self.shards.pop(p["shard"], None)
        self.free(p["shard"])
        self.notify("slots")
        return [(int(gone is not None), "")]

    def free(self, shard: int) -> None:
        self.slots = {slot: None if owner == shard else owner for slot, owner in self.slots.items()}
        self.claims.pop(shard, None)

    def slots_owned(self, p: Params) -> Rows:
        """slots_owned.sql"""
        return [(slot,) for slot, owner in self.slots.items() if owner == p["shard"]]

    def slots_take(self, p: Params) -> Rows:
        """slots_take.sql"""
        free = [slot for slot, owner in self.slots.items() if owner is None][: p["n"]]
        if p["shard"] not in self.shards:
            return []
        self.slots.update(dict.fromkeys(free, p["shard"]))
        return [(slot,) for slot in free]

    def slots_release(self, p: Params) -> Rows:
        """slots_release.sql"""
        session = self.sessions.get(p["shard"]) if p["shard"] in self.shards else None
        if session == p["session"]:
            self.slots.update(dict.fromkeys(slot for slot in p["slots"].items if self.slots[slot] == p["shard"]))
        self.notify("slots")
        return [(int(session == p["session"]), "")]

    def held_elsewhere(self, p: Params) -> Rows:
        """held_elsewhere.sql"""
        slots, found = set(p["slots"].items), []
        for shard in self.shards:
            rows = [self.jobs[job] for job in self.newest(shard) if job in self.jobs and shard != p["shard"]]
            found += [(row.id, row.slot, row.serial_key) for row in rows if row.slot in slots]
        return found

    def remaining(self, p: Params) -> Rows:
        """remaining.sql"""
        rows = [self.jobs[job] for job in p["ids"].items if job in self.jobs]
        return [(row.id, row.slot, row.priority) for row in rows]

    def cancels(self, p: Params) -> Rows:
        """cancels.sql"""
        return [(job, self.requests[job]) for job in p["held"].items if job in self.requests]

    def peek(self, p: Params) -> Rows:
        """peek.sql; xids and the sequence are those of these tables."""
        now, cursor = self.now_us(), _cursors(p)
        lanes = [row for slot, priority in cursor for row in self._lane(p, self.jobs, slot, priority)]
        ready = [row for row in lanes if row.run_at is None]
        timed = [(row.run_at, row.id, cursor[row.slot, row.priority]) for row in lanes if row.run_at is not None]
        gaps = list(zip(p["gap_above"].items, p["gap_below"].items, strict=True))
        gap = [
            row.priority
            for row in self.jobs.values()
            if row.slot in p["slots"].items and any(above < row.priority < below for above, below in gaps)
        ]
        after = {lane: found.after for lane, found in cursor.items()}
        free = sum(owner is None for owner in self.slots.values())
        return [
            (
                p["shard"] in self.shards, len(self.shards), free, len(self.slots_owned(p)), 0, 0, self.paused, "{}",
                '{"completed": 24}', bool(self.requests), self.sequence, now, min(self._open, default=self._xid + 1),
                self._xid + 1,
                any(row.id > after[row.slot, row.priority] for row in ready),
                any(p["floor"] < row.id <= after[row.slot, row.priority] for row in ready),
                any(at <= now and (at, job) > found.due for at, job, found in timed),
                min((at for at, job, found in timed if p["due_floor_us"] <= at and (at, job) <= found.due), default=None),
                min((at - now for at, _, _ in timed if at > now), default=None),
                max(gap, default=None),
                1 << 30,  # so large that only some looks are whole
            )
        ]  # fmt: skip


class _Cursor(NamedTuple):
    after: int
    due: tuple[int, int]


def _cursors(p: Params) -> dict[tuple[int, int], _Cursor]:
    """(slot, priority) → where that lane has been read to."""
    columns = ("lane_slots", "lane_priorities", "lane_after", "due_after_us", "due_after_id")
    lanes = zip(*(p[name].items for name in columns), strict=True)
    return {(slot, priority): _Cursor(after, (at, job)) for slot, priority, after, at, job in lanes}
