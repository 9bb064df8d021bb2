"""The command line on a real database: what is shown, what is asked before it is done, and the exit code of each end."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.db.test_control_changes import finish
from tests.db.test_protocol_turns import NewShard, add, lanes_of, turn
from tests.fix_pg import QUEUES, Fresh
from wqcore import cli
from wqcore.cli import front


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(database: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("jobs", "list")` runs a command in this process, on the test's database."""
    config = tmp_path / "wq.toml"
    tables = "".join(f"[queues.{json.dumps(name)}]\nslots = {queue.slots}\n" for name, queue in QUEUES.items())
    config.write_text(f"[database]\ndsn = {json.dumps(database.dsn)}\nschema = {json.dumps(database.schema)}\n{tables}")
    monkeypatch.setattr(front.Choices, "config", config)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["wqcore", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 1, *capfd.readouterr())

    return run


def kept(database: Fresh) -> dict[int, str]:
    return dict(database.sql("select id, state from {s}.jobs"))


# --- looking ------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_by_a_search(database: Fresh, run: Run) -> None:
    red = add(database, kind="a", args='{"user": {"id": 7}}', metadata='{"tags": ["vip", "eu"]}', serial_key="s")
    text = add(database, kind="a", args='{"user": {"id": "7"}}', job_key="s")
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    old = add(database, kind="b", queue="mail", created_at=long_ago, args='{"flag": true, "x": null}')
    dead = finish(database, "discarded", kind="b")
    for words, expected in [
        ((), [red, text, old, dead]),
        (("kind:a",), [red, text]),
        (("kind:a,b", "queue:mail"), [old]),
        (("state:discarded",), [dead]),
        (("key:s",), [red, text]),
        (("args.user.id=7",), [red, text]),
        (('args.user.id="7"',), [text]),
        (("args.user.id=8",), []),
        (("args.flag=true",), [old]),
        (("args.x=null",), [old]),
        (("tag:vip",), [red]),
        (("tag:vip", "tag:eu"), [red]),
        (("tag:vip", "tag:us"), []),
        (("error:discarded it is",), [dead]),
        (("older:1h",), [old]),
        (("newer:1h", "kind:a"), [red, text]),
        ((str(red), str(old), "kind:b"), [old]),
        (("--limit", "1", "--after", str(red)), [text]),
    ]:
        assert [job["id"] for job in run("jobs", "list", *words, "--json").json] == expected, words


def test_what_a_job_carries_is_shown_only_when_asked_for(database: Fresh, run: Run) -> None:
    job = add(database, args='{"token": "canary"}', metadata='{"m": "canary"}')
    ended = finish(database, "completed", args='{"token": "canary"}')
    for words in (("list",), ("list", "--json"), ("show", str(job)), ("show", str(ended), "--json"), ("wait", str(ended))):
        said = run("jobs", *words)
        assert said.code == 0, said.err
        assert "canary" not in said.out, words
        assert "canary" not in said.err, words
    assert run("jobs", "show", str(job), "--args", "--json").json["metadata"] == {"m": "canary"}
    assert "canary" in run("jobs", "show", str(ended), "--args").out


async def test_a_running_job_is_shown_with_where_it_runs(database: Fresh, run: Run, new_shard: NewShard) -> None:
    job = add(database, kind="a")
    await turn(await new_shard(1), lanes_of())
    database.sql(
        "insert into {s}.process (id, host, pid, version, report) values ('00000000-0000-4000-8000-000000000001', 'h', 4, "
        "'1', jsonb_build_object('shards', jsonb_build_object('1', jsonb_build_object('pid', 5, 'running', "
        "jsonb_build_array(jsonb_build_array(%s::bigint, 0, 'a', 2.5))))))", job,
    )  # fmt: skip
    said = run("jobs", "show", str(job))
    assert "running" in said.out
    assert "runs on h, worker 5, master 4, for 2.5s" in said.out
    owner = run("jobs", "show", str(job), "--json").json["owner"]
    assert (owner["worker_pid"], owner["running_s"], owner["held"]) == (5, 2.5, True)
    assert "1 running, their cancellation" in run("jobs", "cancel", str(job), "--reason", "enough").out
    assert "enough" in run("jobs", "show", str(job)).out


def test_the_history_of_a_job_is_shown(database: Fresh, run: Run) -> None:
    error = {"attempt": 1, "error": "no such host", "class": "OSError", "at": "2026-11-24T06:00:00Z"}
    errors = json.dumps([error | {"traceback": ["a.py:7 in f"]}])
    job = add(database, run_at="now() + interval '1 hour'", errors=errors, attempt=1)
    shown = run("jobs", "show", str(job)).out
    for part in ("is retryable", "1 of 3", "attempt 1 failed: OSError: no such host", "a.py:7 in f", "runs, in"):
        assert part in shown
    assert "no such host" in run("jobs", "list", "state:retryable").out


def test_a_list_that_is_piped_is_not_cut(database: Fresh, run: Run) -> None:
    kind, error = "k" * 24, "e" * 110
    add(database, kind=kind, run_at="now() + interval '1 hour'", errors=json.dumps([{"error": error}]))
    # a process of its own, in whose environment nobody has told a width, as pytest-xdist does
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "wqcore", "--config", str(front.Choices.config), "jobs", "list"]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout
    assert kind in said
    assert error in said


# --- changing -----------------------------------------------------------------------------------------------------------


def test_a_change_of_many_is_counted_and_shown_and_needs_a_yes(
    database: Fresh, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [finish(database, "discarded", kind="a") for _ in range(5)]
    before = kept(database)
    refused = run("jobs", "retry", "state:discarded")
    assert refused.code == 1
    assert "Retry 5 jobs?" in refused.err
    assert "--yes" in refused.err
    assert refused.err.count("discarded it is") == 2
    assert "and 3 more" in refused.err
    assert run("jobs", "retry", "state:discarded", "--dry-run", "--json").json["matching"] == 5
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert run("jobs", "retry", "state:discarded").code == 1
    assert kept(database) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    said = run("jobs", "retry", "state:discarded")
    assert (said.code, said.out) == (0, "5 retried\n")
    assert kept(database) == dict.fromkeys(jobs, "available")
    assert run("jobs", "retry", "state:discarded", "--yes").out == "no job matches\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_change_by_ids_is_made_at_once_and_says_what_it_could_not_do(database: Fresh, run: Run) -> None:
    waiting, dead = add(database), finish(database, "discarded")
    said = run("jobs", "cancel", str(waiting), str(dead), "999999")
    assert said.code == 1
    assert said.out == "1 cancelled; 1 left alone: they have ended; 1 unknown\n"
    assert run("jobs", "retry", str(waiting), str(dead), "--json").json["changed"] == 2
    assert run("jobs", "delete", str(waiting), str(dead)).code == 0
    assert kept(database) == {}


def test_only_what_matches_is_changed(database: Fresh, run: Run) -> None:
    mail, other = add(database, kind="mail"), add(database, kind="other")
    assert run("jobs", "reschedule", "kind:mail", "--in", "2h", "--yes").code == 0
    assert kept(database) == {mail: "scheduled", other: "available"}
    assert run("jobs", "reschedule", str(mail), "--at", "2001-01-01").code == 0
    assert kept(database)[mail] == "available"
    assert run("jobs", "cancel", "kind:other", "--yes", "--reason", "why not").code == 0
    assert database.one("select errors -> 0 ->> 'error' from {s}.history") == "why not"
    assert run("jobs", "delete", "kind:mail", "--yes").code == 0
    assert kept(database) == {other: "cancelled"}


WRONG: dict[tuple[str, ...], tuple[int, str]] = {
    ("jobs", "retry"): (2, "say which to retry"),
    ("jobs", "delete", "--yes"): (2, "say which to delete"),
    ("jobs", "retry", "kind:a", "--yes"): (2, "state:discarded"),
    ("jobs", "retry", "17", "kind:a", "--yes"): (2, "state:discarded"),
    ("jobs", "list", "foo:bar"): (2, "'foo:bar' is neither an id nor a qualifier"),
    ("jobs", "list", "state:dead"): (2, "there is no state 'dead'"),
    ("jobs", "reschedule", "17"): (2, "--in or --at"),
    ("jobs", "reschedule", "17", "--in", "soon"): (2, "'soon' is no duration"),
    ("jobs", "wait", "x"): (2, "--help"),
    ("jobs", "lost"): (2, "No such command"),
    ("queues", "pause"): (2, "--all"),
    ("queues", "limits", "mail", "--rate", "much"): (2, "JOBS/TIME"),
    ("queues", "limits", "mail", "--unset", "speed"): (2, "no such limit"),
    ("queues", "pause", "nowhere"): (1, "unknown queue 'nowhere'"),
    ("workers", "drain", "nobody"): (1, "no master is called 'nobody'"),
    ("schedules", "pause", "never"): (1, "unknown schedule 'never'"),
    ("jobs", "show", "17"): (1, "neither unfinished nor in the history"),
    ("jobs", "wait", "17"): (1, "neither unfinished nor in the history"),
}


def test_what_is_refused_is_one_sentence_and_an_exit_code(run: Run) -> None:
    for words, (code, sentence) in WRONG.items():
        said = run(*words)
        assert (said.code, said.out) == (code, ""), words
        assert sentence in said.err
        assert said.err.count("\n") == 1


def test_an_unreachable_database_is_one_sentence_and_exit_code_3(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "lost.toml"
    config.write_text('[database]\ndsn = "host=/nowhere"\n[queues.default]\n')
    for words in (("jobs", "list"), ("status",), ("top", "--once"), ("workers", "list"), ("queues", "list")):
        said = run(*words, "--config", str(config))
        assert (said.code, said.out) == (3, "")
        assert said.err.count("\n") == 1


def test_waiting_ends_with_a_code_for_each_end(database: Fresh, run: Run) -> None:
    ends = ("completed", "cancelled", "discarded")
    codes = {outcome: run("jobs", "wait", str(finish(database, outcome))).code for outcome in ends}
    codes["none"] = run("jobs", "wait", str(add(database)), "--timeout", "0.1s").code
    assert codes == {"completed": 0, "discarded": 4, "cancelled": 5, "none": 6}
    assert run("jobs", "wait", str(finish(database, "completed")), "--json").json["state"] == "completed"


# --- queues, schedules, help --------------------------------------------------------------------------------------------


def test_queues_are_paused_limited_and_given_back(database: Fresh, run: Run) -> None:
    assert run("queues", "pause", "mail", "--json").json == {"paused": ["mail"], "unchanged": []}
    assert run("queues", "pause", "mail").out == "mail: paused already\n"
    assert [info["name"] for info in run("queues", "list", "--json").json if info["paused_at"]] == ["mail"]
    assert "paused since" in run("queues", "list").out
    assert set(run("queues", "resume", "--all", "--json").json["unchanged"]) == set(QUEUES) - {"mail"}
    limits = run("queues", "limits", "mail", "--rate", "100/m,burst=20", "--max-per-key", "3", "--json").json
    assert limits["changed"] == {"rate": {"jobs": 100.0, "per_s": 60.0, "burst": 20.0}, "max_per_key": 3}
    assert limits["configured"]["max_per_key"] == 1
    assert "100/m, burst 20" in run("queues", "limits", "mail").out
    assert run("queues", "limits", "mail", "--unset", "rate", "--rate-per-key", "5", "--json").json["changed"] == {
        "max_per_key": 3, "rate_per_key": {"jobs": 5.0, "per_s": 1.0},
    }  # fmt: skip
    assert run("queues", "limits", "mail", "--unset", "all", "--json").json["changed"] == {}


def test_changes_of_schedules_are_told_to_programs(database: Fresh, run: Run) -> None:
    database.sql("insert into {s}.kind (name, stands_for, queue, priority, max_attempts) values ('a', 'a', 'mail', 1, 3)")
    database.sql("insert into {s}.schedule (name, source, kind, every_s) values ('nightly', 'api', 'a', 60)")
    assert [info["name"] for info in run("schedules", "--json").json] == ["nightly"]
    assert [info["name"] for info in run("schedules", "list", "--json").json] == ["nightly"]
    assert run("schedules", "pause", "nightly", "--json").json == {"name": "nightly", "changed": True}
    assert run("schedules", "pause", "nightly", "--json").json == {"name": "nightly", "changed": False}
    assert run("schedules", "resume", "nightly").out == "resumed nightly\n"
    job = run("schedules", "trigger", "nightly", "--json").json["job"]
    assert kept(database) == {job: "available"}
    assert run("schedules", "delete", "nightly", "--json").json["deleted"] is True


def test_help_ends_with_the_exit_codes_and_the_page_has_the_same(run: Run) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/command-line.md").read_text("utf-8")
    for words in ((), ("jobs",), ("queues",), ("workers",), ("schedules",)):
        said = " ".join(run(*words, "--help").out.split())
        for code, text in front.EXIT_CODES.items():
            assert f"{code} {text.replace('`', '')}" in said, words
            assert f"| {code} | {text} |" in page


def test_every_command_speaks_to_programs_too(run: Run) -> None:
    """All but `run`, which logs JSON lines."""
    import typer.main

    def walk(command: Any, path: str) -> list[str]:
        inner = getattr(command, "commands", {})
        lacks = [found for name, each in inner.items() for found in walk(each, f"{path} {name}")]
        options = {option for param in command.params for option in param.opts}
        return lacks if inner or "--json" in options else [path]

    assert walk(typer.main.get_command(front.app), "wqcore") == ["wqcore run"]
