"""Status and top on a real database: what waits, for how long, at a cost that does not grow with the tables."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.db.test_cli_jobs import Run, run
from tests.db.test_control_changes import finish
from tests.db.test_protocol_turns import NewShard, add, lanes_of, turn
from tests.fix_pg import Fresh
from wqcore.cli import front
from wqcore.cli.top import _Looks
from wqcore.errors import DatabaseUnavailable
from wqcore.watch.status import Reader
from wqcore.watch.top import Top

__all__ = ["run"]


def queue(found: dict[str, Any], name: str = "default") -> dict[str, Any]:
    return next(row for row in found["queues"] if row["queue"] == name)


async def test_what_waits_is_told_from_what_is_held_and_what_is_for_later(
    database: Fresh, run: Run, new_shard: NewShard
) -> None:
    long_ago = "now() - interval '1 hour'"
    held = add(database)
    await turn(await new_shard(1), lanes_of())
    database.sql("update {s}.job set created_at = now() - interval '1 day' where id = %s", held)
    add(database, priority=5)
    add(database, run_at=long_ago, priority=-3, slot=2)
    add(database, run_at="now() + interval '1 hour'")
    add(database, run_at="now() + interval '1 hour'", attempt=2)
    finish(database, "discarded")
    found = run("status", "--json").json
    row = queue(found)
    assert (row["ready"], row["due"], row["held"], row["waiting"]) == (2, 1, 1, 2)
    assert (row["scheduled"], row["retryable"]) == (2, 1)
    assert 3600 <= row["oldest_waiting_s"] < 7200, "the held one is older, and does not wait"
    assert queue(found, "mail")["oldest_waiting_s"] is None
    assert found["last_hour"] == {"discarded": 1}
    assert found["last_hour_capped"] == []
    assert found["database"]["version"].split(".")[0] == str(database.one("show server_version_num"))[:2]
    shown = run("status").out
    assert "no master runs" in shown
    assert "1 discarded" in shown


def test_counts_stop_at_the_cap_and_say_so(database: Fresh) -> None:
    for when in ("null", "now() - interval '1 minute'", "now() + interval '1 hour'"):
        for slot in range(4):
            for priority in (1, 2):
                add(database, slot=slot, priority=priority, run_at=when)
    for _ in range(6):
        finish(database, "completed")
    reader = Reader(database.settings, database.dsn, cap=5)
    try:
        row = queue(found := reader.read())
    finally:
        reader.close()
    assert (row["ready"], row["due"], row["capped"], row["later_capped"]) == (5, 5, True, True)
    assert row["scheduled"] <= 5
    assert row["oldest_waiting_s"] >= 60
    assert found["last_hour"] == {"completed": 5}
    assert found["last_hour_capped"] == ["completed"]


def test_the_head_of_a_lane_is_found_by_index_however_many_jobs_wait(database: Fresh) -> None:
    """Without statistics, as after a restore: what a look reads is bounded, and so are the rows of its plan."""
    database.sql(
        "insert into {s}.job (queue, slot, priority, kind, args, run_at) select 'default', n % 4, n % 3, 'k', '{{}}', "
        "case n % 3 when 0 then null when 1 then now() - interval '1 minute' else now() + interval '1 day' end "
        "from generate_series(1, 30000) n"
    )
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("set enable_seqscan = off")
        conn.execute("set enable_bitmapscan = off")
        text = b"explain (analyze, format json) " + database.statements["status"]
        [(plan,)] = conn.execute(text, {"cap": 100}).fetchall()
    read = 0

    def walk(node: dict[str, Any]) -> None:
        nonlocal read
        if node.get("Relation Name") == "job":
            read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for inner in node.get("Plans", []):
            walk(inner)

    walk(plan[0]["Plan"])
    assert read < 1000, f"{read} of 30,000 rows were read"


def test_top_comes_back_when_the_database_does(database: Fresh) -> None:
    looks, top = _Looks(database.settings, database.dsn), Top("here", 1.0)
    try:
        assert looks.look(top, must=True) is not None
        database.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'wqcore top'")
        assert looks.look(top, must=False) is None
        assert "cannot use PostgreSQL" in top.lines()[0]
        assert looks.look(top, must=False) is not None
        assert "default: running 0/0" in top.lines()[0]
        database.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'wqcore top'")
        with pytest.raises(DatabaseUnavailable):
            looks.look(top, must=True)
    finally:
        looks.close()


def test_top_once_is_a_frame_for_people_and_a_document_for_programs(database: Fresh, run: Run) -> None:
    add(database)
    assert queue(run("top", "--once", "--json").json)["waiting"] == 1
    said = run("top", "--once")
    assert said.code == 0
    assert "no master runs" in said.out
    assert "\x1b" not in said.out


def on_a_terminal(*words: str, **environ: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command on a pseudo-terminal; what it writes is read from the descriptor."""
    control, terminal = pty.openpty()
    screen = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | screen | environ
    command = [sys.executable, "-m", "wqcore", "--config", str(front.Choices.config), *words]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    return process, control


def read_until(control: int, wanted: str) -> str:
    seen, until = b"", time.monotonic() + 60
    while wanted.encode() not in seen and time.monotonic() < until:
        if select.select([control], [], [], 0.2)[0]:
            try:
                seen += os.read(control, 65536)
            except OSError:  # the other side is closed
                break
    return seen.decode(errors="replace")


def test_top_lives_on_the_other_screen_of_a_terminal_until_q(database: Fresh, run: Run) -> None:
    add(database, queue="mail")
    process, control = on_a_terminal("top", "--every", "0.5")
    try:
        shown = read_until(control, "history:")
        assert "\x1b[?1049h" in shown
        assert "mail" in shown
        assert "\x1b[31m" in shown, "no worker for a job that waits is red"
        os.write(control, b"q")
        assert "\x1b[?1049l" in read_until(control, "\x1b[?1049l")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(control)


def test_no_color_leaves_colours_out_on_a_terminal(database: Fresh, run: Run) -> None:
    add(database, queue="mail")
    process, control = on_a_terminal("status", NO_COLOR="1")
    try:
        shown = read_until(control, "history:")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(control)
    assert "no worker" in shown
    assert not any(f"\x1b[{number}m" in shown or f";{number}m" in shown for number in range(30, 38))


def test_a_configuration_is_completed_without_a_database(tmp_path: Path) -> None:
    """As bash asks: it breaks words at colons."""
    config = tmp_path / "conf"
    config.mkdir()
    (tmp_path / "parcels.py").write_text(
        'import msgspec, wqcore\n@wqcore.kind("sendParcel")\nclass P(msgspec.Struct): ...\nprint("noise")\n'
    )
    (config / "dev.toml").write_text(
        '[database]\ndsn = "host=/nowhere"\n[process]\nhandlers = ["parcels"]\n[queues.parcels]\n[queues.post]\n'
    )
    code = "from wqcore.cli import main; main()"

    def completed(words: str, at: int) -> list[str]:
        asked = {"_WQCORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        env = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])} | asked
        command = [sys.executable, "-c", f"import sys; sys.argv[0] = 'wqcore'; {code}"]
        ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert ran.stderr == ""
        return ran.stdout.split()

    assert completed("wqcore jobs list kind : ", 4) == ["sendParcel"]
    assert completed("wqcore jobs list queue : p", 5) == ["parcels", "post"]
    assert completed("wqcore queues pause po", 3) == ["post"]


def test_json_lines_of_top_follow_each_other(database: Fresh, run: Run) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "wqcore", "--config", str(front.Choices.config), "top", "--json", "--every", "0.5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    try:
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert [queue(look)["waiting"] for look in looks] == [0, 0]
