"""A configuration is right as a whole, or all its problems are named at once."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest

from wqcore.errors import ConfigError
from wqcore.settings import Database, Queue, Schedule, Settings, load

DSN = "postgresql://me:s3cret@db.example/x"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text, "utf-8")
    return path


def problems_of(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), environ=environ)
    return caught.value.problems


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        """
        [database]
        dsn = "x"
        statement_timeout_s = -1
        colour = "red"
        [process]
        deaths_max = "many"
        [nonsense]
        [queues.default]
        workers = 0
        size = 3
        """,
    )
    for key in ("database.statement_timeout_s", "database.colour", "process.deaths_max", "[nonsense]",
                "queues.default.workers", "queues.default.size"):  # fmt: skip
        assert len([problem for problem in problems if key in problem]) == 1, (key, problems)
    assert len(problems) == 6


def test_what_types_alone_cannot_show_is_found_too(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        """
        [database]
        schema = "pg_mine"
        [process]
        group = "nobody"
        dead_after_s = 2
        beat_interval_s = 1
        [queues.default]
        processes = 20
        workers = 50
        """,
    )
    for key in ("database.dsn", "database.schema", "process.group", "process.dead_after_s", "queues.default.processes"):
        assert [problem for problem in problems if key in problem], (key, problems)


def test_a_schedule_that_cannot_work_is_named_with_all_its_problems(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        """
        [database]
        dsn = "x"
        [schedules.a]
        kind = "k"
        cron = "61 * * * *"
        [schedules.b]
        kind = "k"
        cron = "* * * * *"
        every_s = 5
        [schedules.c]
        kind = "k"
        [schedules.d]
        kind = "k"
        cron = "* * * * *"
        timezone = "Berlin"
        job_key = ""
        """,
    )
    texts = ["a: .*Bad minute", "b: .*not both", "c: .*either cron or every_s", "d: .*job key is empty", "d: .*IANA"]
    assert len(problems) == len(texts)
    for text in texts:
        assert [problem for problem in problems if re.search(f"schedules.{text}", problem)], (text, problems)


def test_a_schedule_without_its_kind_or_with_a_wrong_key_is_named(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path, '[database]\ndsn = "x"\n[schedules.a]\ncron = "* * * * *"\n[schedules.b]\nkind = "k"\nevery = 3'
    )
    assert "schedules.a.kind is missing" in problems[0]
    assert "schedules.b.every" in problems[1]


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, '[database]\ndsn = "file"\n[process]\ndeaths_max = 2\ndrain_timeout_s = 1')
    environ = {
        "WQCORE_DATABASE__DSN": "environ", "WQCORE_PROCESS__DEATHS_MAX": "4", "WQCORE_PROCESS__DRAIN_TIMEOUT_S": "2.5",
        "WQCORE_APP__SMTP__PASSWORD": "12345", "OTHER": "x",
    }  # fmt: skip
    settings = load(path, environ=environ, overrides={"database.dsn": "command line", "process.group": None})
    assert settings.database.dsn == "command line"
    assert (settings.process.deaths_max, settings.process.drain_timeout_s) == (4, 2.5)
    assert settings.app == {"smtp": {"password": "12345"}}
    assert load(path, environ=environ).database.dsn == "environ"


def test_a_variable_without_a_table_is_refused(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path, '[database]\ndsn = "x"', WQCORE_DSN="y")
    assert "WQCORE_DSN" in problem
    assert "WQCORE_<TABLE>__<KEY>" in problem


@pytest.mark.parametrize(
    "text",
    [
        f'[database]\ndsn = ["{DSN}"]',
        f'[database]\ndsn = "{DSN}"\nschema = 5',
        f'[database]\ndsn = "{DSN}"\nembedded = true',
        f'database = "{DSN}"',
        f'[database]\ndsn = "{DSN}"\n[queues.default]\nworkers = 0',
    ],
)
def test_a_dsn_is_never_in_a_message(tmp_path: Path, text: str) -> None:
    assert "s3cret" not in str(problems_of(tmp_path, text))


def test_a_file_that_cannot_be_read_or_parsed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.toml"):
        load(tmp_path / "nowhere.toml", environ={})
    assert "not valid TOML" in problems_of(tmp_path, "a = ")[0]


def test_a_queue_is_its_own_group_unless_it_says_otherwise() -> None:
    settings = Settings(queues={"a": Queue(), "b": Queue(group="x")}, process=msgspec.convert({"group": "x"}, _process()))
    assert (settings.group_of("a"), settings.group_of("b"), list(settings.queues_here())) == ("a", "x", ["b"])


def test_there_are_never_more_processes_than_workers() -> None:
    assert Queue(workers=2, processes=8).process_count() == 2
    assert Queue(workers=1, processes="cores").process_count() == 1


@pytest.mark.parametrize("schema", ["", "pg_x", "x" * 64, "a\x00b", "\ud800"])
def test_an_impossible_schema_name_is_refused(schema: str) -> None:
    assert [p for p in Settings(database=Database(dsn="x", schema=schema)).check() if "database.schema" in p]


def _process() -> Any:
    return msgspec.structs.fields(Settings)[2].type


REFERENCE = Path(__file__).parents[2] / "conf" / "reference.toml"


def test_the_reference_shows_every_option_with_its_default() -> None:
    text = REFERENCE.read_text("utf-8")
    tree = msgspec.toml.decode(text.encode())
    for table in msgspec.structs.fields(Settings):
        if table.name == "app":
            continue
        if table.name == "schedules":
            for field in msgspec.structs.fields(Schedule):
                default = ""
                if not field.required and not _may_be_unset(field.type):
                    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
                    default = json.dumps(value)
                assert f"# {field.name} = {default}" in text, f"schedules.{field.name}"
            continue
        if table.name == "databases":  # its keys are those of [database]
            assert "# [databases." in text
            continue
        if table.name == "queues":
            assert tree["queues"], "no example queue"
            example, defaults = next(iter(tree["queues"].values())), Queue
        else:
            example, defaults = tree.get(table.name, {}), table.type
        fields = {field.name: field for field in msgspec.structs.fields(defaults)}
        assert set(example) <= set(fields), f"[{table.name}] has unknown keys"
        for name, field in fields.items():
            if _may_be_unset(field.type):
                assert f"{name} =" in text or f"{name}=" in text, f"{table.name}.{name} is not mentioned"
            else:
                default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
                assert name in example, f"{table.name}.{name} is missing"
                assert example[name] == default, f"{table.name}.{name}"


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_shipped_configurations_load(tmp_path: Path, name: str) -> None:
    environ = {"WQCORE_DATABASE__DSN": DSN} if name == "prod" else {}
    # a copy, because a checkout may belong to another user than the one who tests
    assert load(write(tmp_path, REFERENCE.with_name(f"{name}.toml").read_text("utf-8")), environ=environ).queues


def _may_be_unset(type_: Any) -> bool:
    return get_origin(type_) in (Union, types.UnionType) and msgspec.UnsetType in get_args(type_)
