"""The SQL function `enqueue`: inserts what the Python client would insert, and refuses what it would refuse."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Json, Jsonb

from tests.fix_pg import ODD_SCHEMAS, Fresh
from wqcore import JobState, Unique, described, launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client import SyncClient
from wqcore.db import wake
from wqcore.errors import InsertError
from wqcore.line.insert import slot_of


class Plain(msgspec.Struct):
    n: int
    note: str = ""


class Keyed(msgspec.Struct, rename="camel"):
    """Every type of field that SQL can put into a key."""

    user_id: int
    room_name: str
    is_open: bool = False
    level: int | None = None


class Kebab(msgspec.Struct, rename="kebab"):
    größe_in_cm: int
    per_son: str = "ich"


class Coded(msgspec.Struct):
    n: int


class Later(msgspec.Struct):
    n: int


class Loose(msgspec.Struct, rename="camel"):
    the_map: dict[str, Any]
    the_list: list[Any] = []
    ratio: float = 0.5


class Tagged(msgspec.Struct, tag="v2"):
    n: int


def _catalog() -> Catalog:
    catalog = Catalog()

    def declare(name: str, args_type: type[msgspec.Struct], **options: Any) -> None:
        given: dict[str, Any] = {
            "queue": "default", "serial_key": None, "priority": 3, "max_attempts": 7, "timeout_s": 60, "backoff": river,
            "planned": False,
        }  # fmt: skip
        catalog.declare(Kind(name, args_type, **(given | options)))

    declare("plain", Plain)
    declare("keyed", Keyed, serial_key="r-{user_id}/{room_name}/{is_open}/{level}", unique=Unique(args=("user_id",)))
    declare("kebab", Kebab, serial_key="{größe_in_cm}{per_son}")
    declare("coded", Coded, serial_key=lambda args: f"n{args.n}")
    declare("later", Later, planned=True)
    declare("loose", Loose, unique=Unique())
    declare("tagged", Tagged, unique=Unique())
    return catalog


CATALOG = _catalog()


@pytest.fixture
def known(database: Fresh) -> Fresh:
    """A database that knows the kinds, and a small limit of args."""
    launch.sync_kinds(database.conn, database.settings, CATALOG)
    return database


@pytest.fixture
def client(known: Fresh) -> Iterator[SyncClient]:
    with SyncClient(known.settings, catalog=CATALOG) as client:
        yield client


def enqueue(database: Fresh, kind: str | None, args: Any = None, **options: Any) -> int:
    """Calls the function as a driver of any language would, with named arguments."""
    given = {"args": Json({} if args is None else args)} | options
    text = ", ".join([f"{name} => %s" for name in given])
    return int(database.one("select {s}.enqueue(%s, " + text + ")", kind, *given.values()))


def test_a_job_is_as_its_kind_declares(known: Fresh) -> None:
    job = enqueue(known, "plain", {"n": 1})
    assert known.sql("select id, queue, kind, priority, max_attempts, run_at, serial_key, args from {s}.job") == [
        (job, "default", "plain", 3, 7, None, None, {"n": 1, "note": ""})
    ]


def test_options_win_over_the_kind(known: Fresh) -> None:
    at = dt.datetime(2040, 1, 2, tzinfo=dt.UTC)
    enqueue(
        known, "plain", {"n": 1}, queue="mail", priority=-5, run_at=at, max_attempts=2, serial_key="k", job_key="j",
        metadata=Json({"from": "psql"}),
    )  # fmt: skip
    columns = "queue, priority, run_at, max_attempts, serial_key, job_key, metadata"
    assert known.sql("select " + columns + " from {s}.job") == [("mail", -5, at, 2, "k", "j", {"from": "psql"})]


def test_args_are_kept_as_sent_when_nothing_is_left_out(known: Fresh) -> None:
    known.sql("""select {s}.enqueue('plain', '{{"note":  "a", "n": 1e0}}')""")
    assert known.one("select args::text from {s}.job") == '{"note":  "a", "n": 1e0}'


REFUSALS: list[tuple[str, str, str | None]] = [
    ("'nope'", "unknown kind 'nope'", "spelling"),
    ("null", "unknown kind null", "spelling"),
    ("'later', '{\"n\": 1}'", "'later' is declared, but its handler is not written", "planned"),
    ("'plain', '[1]'", "must be a JSON object, not array", None),
    ("'plain', 'null'", "must be a JSON object, not null", None),
    ("'plain', null", "must be a JSON object, not null", None),
    ("'plain', '{}'", "args of 'plain' lack n", "as in JSON"),
    ("'keyed', '{\"user_id\": 1, \"roomName\": \"\"}'", "args of 'keyed' lack userId", "renaming"),
    ("'plain', json_build_object('n', repeat('x', 300000))", "take 300010 bytes; at most 262144", "reference"),
    ("'plain', '{\"n\": \"\\u0000\"}'", "contain a NUL", "Remove"),
    ("'plain', '{\"n\": \"\\ud800\"}'", "lone surrogate", "Remove"),
    ("'plain', '{\"n\": 1}', queue => 'nope'", "unknown queue 'nope' for kind 'plain'", "migrate"),
    ("'plain', '{\"n\": 1}', priority => 1001", "priority 1001 is outside", None),
    ("'plain', '{\"n\": 1}', priority => -1001", "priority -1001 is outside", None),
    ("'plain', '{\"n\": 1}', max_attempts => 0", "max_attempts 0 is outside", None),
    ("'plain', '{\"n\": 1}', max_attempts => 1001", "max_attempts 1001 is outside", None),
    ("'plain', '{\"n\": 1}', run_at => 'infinity'", "run_at infinity is not a time", None),
    ("'plain', '{\"n\": 1}', metadata => '[1]'", "metadata must be a JSON object", None),
    ("'plain', '{\"n\": 1}', job_key => 'j', job_key_mode => 'x'", "job_key_mode x is not one of replace", None),
    ("'plain', '{\"n\": 1}', job_key => 'j', job_key_mode => null", "job_key_mode <NULL> is not one of", None),
    ("'plain', '{\"n\": 1}', job_key => 'j', unique_by => '{}'", "a job_key or is unique, not both", "a name"),
    ("'plain', '{\"n\": 1}', serial_key => ''", "serial_key and job_key have 1 to 128 bytes", None),
    ("'plain', '{\"n\": 1}', job_key => ''", "1 to 128 bytes", None),
    ("'plain', '{\"n\": 1}', serial_key => repeat('ü', 65)", "1 to 128 bytes", None),
    ("'coded', '{\"n\": 1}'", "serial key of kind 'coded' is computed by its program", "Pass serial_key"),
    ("'plain', '{\"n\": 1}', unique_by => '{\"args\": [\"nope\"]}'", "unique_by: args of 'plain' lack nope", "JSON"),
]  # fmt: skip


def test_what_cannot_be_run_is_refused_and_nothing_is_written(known: Fresh) -> None:
    for call, message, hint in REFUSALS:
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            known.conn.execute(f"select wqcore.enqueue({call})")  # type: ignore[arg-type]
        assert message in (caught.value.diag.message_primary or ""), call
        assert (hint or "") in (caught.value.diag.message_hint or ""), call
    assert known.one("select count(*) from {s}.job") == 0


NOT_UNDERSTOOD = [
    "[]", "true", "null", '{"args": 1}', '{"args": []}', '{"args": [1]}', '{"args": null}', '{"queue": "mail"}',
    '{"period_s": 0}', '{"period_s": -1}', '{"period_s": 1e10}', '{"period_s": "1"}', '{"states": "completed"}',
    '{"states": ["available"]}', '{"states": [1]}', '{"what": 1}',
]  # fmt: skip
UNDERSTOOD = [
    "{}", '{"args": true}', '{"args": false}', '{"args": ["n"]}', '{"queue": true, "period_s": 0.5, "states": []}',
    '{"period_s": null}', '{"states": ["completed", "cancelled", "discarded"]}',
]  # fmt: skip


def test_a_unique_by_that_is_not_understood_is_refused(known: Fresh) -> None:
    for by in NOT_UNDERSTOOD:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="not understood") as caught:
            enqueue(known, "plain", {"n": 1}, unique_by=by)
        assert "states" in (caught.value.diag.message_hint or ""), by


def test_a_unique_by_that_is_understood_makes_the_second_one_the_first(known: Fresh) -> None:
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    for by in UNDERSTOOD:
        first = enqueue(known, "plain", {"n": 1}, unique_by=by, run_at=at)
        assert enqueue(known, "plain", {"n": 1}, unique_by=by, run_at=at) == first, by
        known.sql("delete from {s}.job")


def test_a_kind_that_is_unique_by_itself_is_so_from_sql(known: Fresh) -> None:
    first = enqueue(known, "keyed", {"userId": 1, "roomName": "a"})
    assert enqueue(known, "keyed", {"userId": 1, "roomName": "b"}) == first
    other = enqueue(known, "keyed", {"userId": 1, "roomName": "b"}, unique_by=Jsonb({"args": True}))
    named = enqueue(known, "keyed", {"userId": 1, "roomName": "b"}, job_key="j")
    assert len({first, other, named}) == 3


@pytest.mark.parametrize("mode", ["replace", "preserve_run_at", "unsafe_dedupe"])
def test_the_three_modes_of_a_job_key(known: Fresh, mode: str) -> None:
    at, later = dt.datetime(2040, 1, 1, tzinfo=dt.UTC), dt.datetime(2041, 1, 1, tzinfo=dt.UTC)
    first = enqueue(known, "plain", {"n": 1}, job_key="j", run_at=at)
    assert enqueue(known, "plain", {"n": 2}, job_key="j", job_key_mode=mode, run_at=later) == first
    expected = {"replace": (2, later), "preserve_run_at": (2, at), "unsafe_dedupe": (1, at)}[mode]
    assert known.sql("select (args ->> 'n')::int, run_at from {s}.job") == [expected]


def test_an_alias_inserts_the_kind_that_it_stands_for(known: Fresh) -> None:
    known.sql(
        "insert into {s}.kind (name, stands_for, queue, priority, max_attempts) values "
        "('old', 'plain', 'nowhere', 1, 1), ('lost', 'gone', 'default', 1, 1)"
    )
    enqueue(known, "old", {"n": 1})
    assert known.sql("select kind, queue, priority from {s}.job") == [("plain", "default", 3)]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not declared any more"):
        enqueue(known, "lost")


def test_the_slot_of_a_key_is_the_same_in_python(database: Fresh) -> None:
    for key in ["a", "runs-7", "schlüssel", "🔑", "x" * 128]:
        for slots in (1, 16, 256):
            assert database.one("select {s}.slot_of(%s, %s)", key, slots) == slot_of(key, slots), key


TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
WHOLE = st.integers(-(2**63), 2**63 - 1)
KEYED = st.builds(Keyed, user_id=WHOLE, room_name=TEXT, is_open=st.booleans(), level=st.none() | WHOLE)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | TEXT | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LOOSE = st.builds(Loose, the_map=st.dictionaries(TEXT, JSON, max_size=3), the_list=st.lists(JSON, max_size=3))
KEBAB = st.builds(Kebab, größe_in_cm=WHOLE, per_son=TEXT | st.just("ich"))
TAGGED = st.builds(Tagged, n=WHOLE)
COLUMNS = "queue, slot, priority, kind, max_attempts, serial_key, unique_key, args::jsonb"


@given(args=KEYED | KEBAB | LOOSE | TAGGED, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_makes_the_same_job_as_python_of_the_same_args(
    known: Fresh, client: SyncClient, args: msgspec.Struct, data: st.DataObject
) -> None:
    """Also when it leaves out what has a default."""
    kind = CATALOG.kind_of(args)
    sent = msgspec.to_builtins(args)
    usual = msgspec.json.decode(described.defaults(kind.args_type))
    for field in [name for name, value in usual.items() if sent[name] == value and type(sent[name]) is type(value)]:
        if data.draw(st.booleans(), label=f"leave out {field}"):
            del sent[field]
    columns = COLUMNS if kind.serial_key is not None else COLUMNS.replace("slot, ", "")
    known.sql("delete from {s}.job")
    try:
        client.insert(args)
    except InsertError:
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            enqueue(known, kind.name, sent)
        return
    of_python = known.sql("select " + columns + " from {s}.job")
    known.sql("delete from {s}.job")
    enqueue(known, kind.name, sent)
    assert known.sql("select " + columns + " from {s}.job") == of_python


@given(args=KEYED, by=st.sampled_from([True, False, ("room_name",), ("level", "user_id")]), queue=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_job_of_python_and_one_of_sql_meet_in_one_unique_key(
    known: Fresh, client: SyncClient, args: Keyed, by: Any, queue: bool
) -> None:
    known.sql("delete from {s}.job")
    unique = Unique(args=by, queue=queue, period_s=3600, states=(JobState.COMPLETED,))
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    try:
        first = client.insert(args, unique=unique, run_at=at)
    except InsertError:
        return
    assert enqueue(known, "keyed", msgspec.to_builtins(args), unique_by=unique.spec(Keyed), run_at=at) == first


def test_a_new_job_wakes_its_shard_when_the_transaction_commits(known: Fresh) -> None:
    with psycopg.connect(known.dsn, autocommit=True) as listener:
        listener.execute(f'listen "{wake.channel(known.schema, "default")}"')
        with known.conn.transaction():
            job = enqueue(known, "plain", {"n": 1})
            assert list(listener.notifies(timeout=0.1, stop_after=1)) == []
        [told] = listener.notifies(timeout=20, stop_after=1)
        hint = wake.parse(told.payload)
        slot = known.one("select slot from {s}.job where id = %s", job)
        assert hint is not None
        assert hint.ready == [(slot, 3)]
        enqueue(known, "plain", {"n": 1}, run_at=dt.datetime(2040, 1, 1, tzinfo=dt.UTC))
        assert [told.payload for told in listener.notifies(timeout=20, stop_after=1)] == ["due"]


def test_a_rollback_takes_the_job_back(known: Fresh) -> None:
    with known.conn.transaction(force_rollback=True):
        enqueue(known, "plain", {"n": 1})
    assert known.one("select count(*) from {s}.job") == 0


def test_a_trigger_enqueues_a_job_for_each_row(known: Fresh) -> None:
    known.sql("create table person (id bigint generated always as identity, name text)")
    known.sql(
        "create function on_person() returns trigger language plpgsql as $fn$ begin "
        "perform {s}.enqueue('plain', json_build_object('n', new.id, 'note', new.name)); return new; end $fn$"
    )
    known.sql("create trigger person_added after insert on person for each row execute function on_person()")
    known.sql("insert into person (name) values ('a'), ('b')")
    assert known.sql("select args ->> 'note' from {s}.job order by id") == [("a",), ("b",)]
    with known.conn.transaction(force_rollback=True):
        known.sql("insert into person (name) values ('c')")
    assert known.one("select count(*) from {s}.job") == 2


@pytest.mark.parametrize("schema", ODD_SCHEMAS, indirect=True)
def test_any_schema_will_do(known: Fresh) -> None:
    enqueue(known, "keyed", {"userId": 1, "roomName": "a"}, job_key="j")
    enqueue(known, "keyed", {"userId": 2, "roomName": "a"}, job_key="j")
    assert known.sql("select args ->> 'userId', serial_key from {s}.job") == [("2", "r-2/a/False/None")]


class Colour(enum.Enum):
    RED = "red"


def test_a_template_that_sql_could_fill_in_otherwise_is_left_to_python() -> None:
    class Odd(msgspec.Struct, rename="camel"):
        some_id: uuid.UUID
        at: dt.datetime
        colour: Colour
        ratio: float
        number: int
        anything: Any
        maybe: int | float | None = None

    for name in ("some_id", "at", "colour", "ratio", "anything", "maybe"):
        assert described.template_for_sql(f"k-{{{name}}}", Odd) is None
    for template in ("{number:03}", "{number!r}", "{{number}}", "{number.real}"):
        assert described.template_for_sql(template, Odd) is None
    assert described.template_for_sql("k-{number}", Odd) == "k-{number}"
    assert described.template_for_sql("all", Odd) == "all"
    assert described.template_for_sql(None, Odd) is None
