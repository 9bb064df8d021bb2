"""What is recorded is what happened: journals keep every line of processes that are killed, the audit every row."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.check import record
from tests.check.history import AUDIT, HANDLERS, Ran, Wrote, lines
from tests.fix_pg import Fresh

WRITERS, LINES = 8, 200


def test_lines_of_many_processes_are_whole_also_of_those_that_are_killed(tmp_path: Path) -> None:
    pids = []
    for writer in range(WRITERS):
        pid = os.fork()
        if pid == 0:
            journal = record.Journal(tmp_path / HANDLERS)
            for number in range(LINES):
                journal.write(Ran(at=number, run=f"{writer}.{number}", phase="start", kind="k" * (number % 50)))
            os.kill(os.getpid(), signal.SIGKILL)
        pids.append(pid)
    for pid in pids:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    found = list(lines(tmp_path / HANDLERS, Ran))
    assert len(found) == WRITERS * LINES
    for writer in range(WRITERS):
        own = [line.at for line in found if line.run.startswith(f"{writer}.")]
        assert own == list(range(LINES))


@pytest.mark.parametrize("schema", ["wqcore", 'we"ird; schema'], indirect=True)
def test_the_audit_has_every_row_that_was_committed_and_no_other(database: Fresh, tmp_path: Path) -> None:
    record.install_audit(database.conn, database.schema)
    insert = "insert into {s}.job (queue, slot, kind, args) values ('default', 0, 'k', %s) returning id"
    job = database.one(insert, '{"token": 7}')
    with database.conn.transaction(force_rollback=True):
        database.one(insert, '{"token": 8}')
    database.sql("update {s}.job set attempt = 1, deaths = 1, revision = 1")
    database.sql("insert into {s}.shard (id, process, queue) values (5, gen_random_uuid(), 'default')")
    database.sql("insert into {s}.claim (shard, turn, ids) values (5, 1, '{{1,2}}')")
    database.sql(
        "with gone as (delete from {s}.job j returning j as job) insert into {s}.history "
        "select e.* from gone cross join lateral {s}.ending(job, 'completed', 2, 5, null, null, null, 10) e"
    )
    database.sql("delete from {s}.shard")
    record.save_audit(database.conn, database.schema, tmp_path)
    found = list(lines(tmp_path / AUDIT, Wrote))
    assert [(line.table, line.op) for line in found] == [
        ("job", "insert"), ("job", "update"), ("shard", "insert"), ("claim", "insert"), ("job", "delete"),
        ("history", "insert"), ("shard", "delete"),
    ]  # fmt: skip
    inserted, changed, _, claimed, deleted, ended, _ = found
    assert (inserted.job, inserted.token, inserted.was_attempt) == (job, 7, None)
    assert (changed.was_attempt, changed.attempt, changed.was_revision, changed.revision) == (0, 1, 0, 1)
    assert claimed.ids == [1, 2]
    assert (deleted.was_attempt, deleted.was_revision, deleted.token) == (1, 1, 7)
    assert (ended.outcome, ended.attempt, ended.deaths, ended.shard) == ("completed", 2, 1, 5)
    assert deleted.xid == ended.xid != changed.xid
    assert abs(found[0].at - record.clocks()[1]) < 60e9
    assert record.rows_left(database.conn, database.schema)["journals"] == 1


def test_a_reading_of_the_clocks_that_was_interrupted_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in 1,770 was, by 1.4 ms: 26 jobs of half an hour seemed to end before their handlers had."""
    ahead_ns, pauses_ns = 10**18, iter([0, 0, 2_754_000])  # the core is lost before the third read
    now_ns = 0

    def read() -> int:
        nonlocal now_ns
        now_ns += 50 + next(pauses_ns, 0)
        return now_ns

    monkeypatch.setattr(record.time, "monotonic_ns", read)
    monkeypatch.setattr(record.time, "time_ns", lambda: ahead_ns + read())
    at_ns, day_ns = record.clocks()
    assert day_ns - at_ns == ahead_ns
