"""Args that cannot be run are refused at insert, by a text that names the field; what comes by SQL all the same gets an
outcome that says why, and holds up nobody."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
import psycopg
import pytest

from tests.fix_master import World, ready, until
from tests.fix_pg import Fresh
from wqcore import Client, InsertOptions, SyncClient, launch
from wqcore.backoff import river
from wqcore.catalog import Catalog, Kind
from wqcore.client.front import Item
from wqcore.db.connect import AsyncConnection
from wqcore.errors import ArgsTooLarge, InsertError, InvalidArgs, UnknownKind, UnknownQueue
from wqcore.upkeep.retire import discard_strays
from wqcore.watch import bulk

MB = 1024 * 1024


class Mail(msgspec.Struct):
    to: str
    parts: list[Any] = []
    size: int = 0


class Stranger(msgspec.Struct):
    pass


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED: dict[str, tuple[Item, type[InsertError], str]] = {
    "wrong type": (Mail("a", size="big"), InvalidArgs, r"\$\.size"),  # type: ignore[arg-type]
    "wrong type inside": (Mail(["a"]), InvalidArgs, r"\$\.to"),  # type: ignore[arg-type]
    "too deep": (Mail("a", deep(100_000)), InvalidArgs, "Mail.*recursion"),
    "NUL": (Mail("a", [{"k": "\x00"}]), InvalidArgs, r"\$\.parts\[0\]\.k.*NUL"),
    "lone surrogate": (Mail("\ud800"), InvalidArgs, "Mail.*surrogate"),
    "64 MB": (Mail("x" * 64 * MB), ArgsTooLarge, r"67108\d\d\d bytes.*args_bytes_max is 262144"),
    "not JSON": (Mail("a", [object()]), InvalidArgs, "Mail"),
    "unknown kind": (Stranger(), UnknownKind, "Stranger"),
    "unknown queue": ((Mail("a"), InsertOptions(queue="nope")), UnknownQueue, r"'nope'.*\[queues\.nope\]"),
}


@pytest.fixture
def catalog(database: Fresh) -> Catalog:
    found = Catalog()
    found.declare(
        Kind(
            "mail", Mail, queue="default", serial_key=None, priority=1, max_attempts=3, timeout_s=60, backoff=river,
            planned=False,
        )
    )  # fmt: skip
    launch.sync_kinds(database.conn, database.settings, found)
    return found


def test_both_clients_refuse_what_could_not_be_run_and_name_the_field(database: Fresh, catalog: Catalog) -> None:
    def separate(item: Item) -> tuple[msgspec.Struct, InsertOptions]:
        return item if isinstance(item, tuple) else (item, InsertOptions())

    with SyncClient(database.settings, catalog=catalog) as client:
        for what, (item, error, words) in REFUSED.items():
            with pytest.raises(error, match=f"(?s){words}"):
                client.insert(*separate(item))
                pytest.fail(f"{what} was accepted")
            with pytest.raises(error, match=f"(?s){words}"):  # the good one before it goes with it
                client.insert_many([Mail("good"), item])
                pytest.fail(f"{what} was accepted")

    async def with_asyncio() -> None:
        async with Client(database.settings, catalog=catalog) as client:
            for what, (item, error, words) in REFUSED.items():
                with pytest.raises(error, match=f"(?s){words}"):
                    await client.insert(*separate(item))
                    pytest.fail(f"{what} was accepted")

    asyncio.run(with_asyncio())
    assert database.one("select count(*) from {s}.job") == 0


def test_a_file_with_bad_lines_goes_in_without_them(database: Fresh, catalog: Catalog) -> None:
    bad = {
        b'{"kind": "mail", "args": {"to": 5}}': r"\$\.to",
        b'{"kind": "mail", "args": {"to": "a"}': "Input data was truncated",
        b'{"kind": "male", "args": {"to": "a"}}': "unknown kind 'male'",
        b'{"kind": "mail", "args": {"to": "a"}, "queue": "nope"}': "unknown queue 'nope'",
        b'{"kind": "mail", "args": {"to": "a\\u0000"}}': r"\$\.to contains a NUL",
        b'{"kind": "mail", "args": {"to": "\\ud800 and more"}}': "unexpected end of hex escape",
        b'{"kind": "mail", "args": {"to": "a", "parts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}": "recursion",
        b'{"kind": "mail", "args": {"to": "' + b"x" * MB + b'"}}': "args_bytes_max",
        b"\xff\xfe": "",
    }
    good = b'{"kind": "mail", "args": {"to": "a"}}'
    lines = [line for text in bad for line in (good, text)]
    said: list[str] = []
    with SyncClient(database.settings, catalog=catalog) as client:
        report = bulk.insert_lines(
            client, catalog, lines, strict=False, refused=said.append, read=lambda size, rows: None
        )
    assert (report.inserted, report.refused) == (len(bad), len(bad))
    for number, (line, words) in enumerate(zip(said, bad.values(), strict=True)):
        assert line.startswith(f"line {number * 2 + 2}: ")
        assert re.search(words, line), (line, words)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ('{"to": "a"', psycopg.errors.InvalidTextRepresentation, "json"),
        ("[" * 10_000 + "]" * 10_000, psycopg.Error, "stack depth|object"),
        ('{"to": "a\\u0000"}', psycopg.errors.InvalidParameterValue, "NUL"),
        ('{"to": "\\ud800"}', psycopg.errors.InvalidParameterValue, "surrogate"),
        ('{"to": "' + "x" * 64 * MB + '"}', psycopg.errors.InvalidParameterValue, "bytes; at most 262144"),
        ("[1]", psycopg.errors.InvalidParameterValue, "object, not array"),
        ("{}", psycopg.errors.InvalidParameterValue, "lack to"),
    ],
    ids=["malformed", "too deep", "NUL", "lone surrogate", "64 MB", "no object", "field missing"],
)
def test_enqueue_refuses_what_it_can_see(
    database: Fresh, catalog: Catalog, args: str, error: type[psycopg.Error], words: str
) -> None:
    with pytest.raises(error, match=words):
        database.sql("select {s}.enqueue('mail', %s)", args)
    assert database.one("select count(*) from {s}.job") == 0


def test_what_is_written_by_hand_has_an_outcome_and_costs_the_good_jobs_nothing(world: World) -> None:
    """Rows that nobody has checked, each among good ones: the same worker ends them all."""
    bad = {
        "null": "null", "a text": '"x"', "a number": "7", "a wrong type": '{"s": true}', "an empty list": "[]",
        "a huge number": '{"s": ' + "9" * 5000 + "}", "beyond float": '{"s": 1e999999}', "deep": "[" * 4000 + "]" * 4000,
        "deep inside": '{"s": ' + "[" * 4000 + "]" * 4000 + "}", "a surrogate": '{"group": "\\ud800"}',
        "a lone half": '{"group": "\\udc00x"}', "64 MB of a wrong type": '{"s": "' + "x" * 64 * MB + '"}',
    }  # fmt: skip
    odd = {
        "64 MB": '{"group": "' + "x" * 64 * MB + '"}', "a NUL": '{"group": "a\\u0000b"}', "a field too many": '{"x": [{}]}',
        "a key twice": '{"s": 0, "s": 0}', "blanks": ' { "s" :\n0 } ',
    }  # fmt: skip
    world.start(world.configure())
    ready(world)
    insert = "insert into wqcore.job (queue, slot, kind, args, metadata) values ('default', %s, 'nap', %s, %s) returning id"
    ids: dict[str, int] = {}
    good: list[int] = []
    for number, (what, args) in enumerate((bad | odd).items()):
        good += world.insert("nap", 20)
        ids[what] = world.scalar(insert, number % 16, args, '["no object"]' if number % 2 else None)
    until(lambda: not world.scalar("select count(*) from wqcore.job"), "everything has an outcome", 30)
    outcomes = dict(world.conn.execute("select id, outcome from wqcore.history").fetchall())
    assert {what: outcomes[ids[what]] for what in bad} == dict.fromkeys(bad, "discarded")
    assert {what: outcomes[ids[what]] for what in odd} == dict.fromkeys(odd, "completed")
    assert {outcomes[job] for job in good} == {"completed"}
    for what in bad:
        reason = world.scalar("select errors -> 0 ->> 'error' from wqcore.history where id = %s", ids[what])
        assert reason.startswith("args do not fit Nap: "), (what, reason)
        assert len(reason) < 1000
    assert world.scalar("select max(attempt) from wqcore.history where outcome = 'completed'") == 1
    assert len({pid for _, _, _, pid, _ in world.notes()}) == 1  # nobody died of it
    assert "Traceback" not in world.log()
    assert "the database failed us" not in world.log()


def test_jobs_in_a_queue_or_slot_that_does_not_exist_are_discarded_with_the_reason(world: World) -> None:
    config = world.configure(process={"unknown_kind_grace_s": 0.0})
    assert world.cli(config, "migrate").returncode == 0
    insert = "insert into wqcore.job (queue, slot, kind, args, run_at) values (%s, %s, 'nap', '{}', %s)"
    for row in (("nowhere", 0, None), ("nowhere", 3, "2099-01-01"), ("default", 16, None), ("zz';--", 0, "now")):
        world.conn.execute(insert, row)
    good = world.insert("nap", 5)
    world.start(config)
    until(lambda: world.outcomes() == {"completed": len(good), "discarded": 4}, "the strays are discarded")
    reasons = world.scalar(
        "select array_agg(errors -> 0 ->> 'error' order by id) from wqcore.history where outcome = 'discarded'"
    )
    assert reasons == [
        "the database knows no queue 'nowhere'", "the database knows no queue 'nowhere'", "queue 'default' has no slot 16",
        "the database knows no queue 'zz'';--'",
    ]  # fmt: skip
    assert world.scalar("select max(attempt) from wqcore.history where outcome = 'discarded'") == 0


async def test_strays_have_their_grace_and_good_jobs_of_every_queue_are_left(
    database: Fresh, aconn: AsyncConnection
) -> None:
    for queue, slot, age_s in (
        ("new", 0, 10), ("new", 1, 4000), ("default", 3, 9000), ("default", 4, 4000), ("mail", 1, 9000),
        ('o"dd; quéue', 0, 9000), ('o"dd; quéue', 1, 9000), ("zzz", 9, 4000),
    ):  # fmt: skip
        for run_at in (None, "2099-01-01"):
            database.sql(
                "insert into {s}.job (queue, slot, kind, args, run_at, created_at) "
                "values (%s, %s, 'k', '{{}}', %s, now() - %s * interval '1 second')",
                queue, slot, run_at, age_s,
            )  # fmt: skip
    assert await discard_strays(aconn, database.statements, grace_s=3600) == 8
    assert await discard_strays(aconn, database.statements, grace_s=3600) == 0
    assert set(database.sql("select queue, slot from {s}.job")) == {
        ("new", 0), ("default", 3), ("mail", 1), ('o"dd; quéue', 0)
    }  # fmt: skip


def test_looking_for_strays_reads_no_row_of_a_good_job(database: Fresh) -> None:
    """The cost is that of the queues, not of the backlog."""
    database.sql(
        "insert into {s}.job (queue, slot, kind, args, run_at) select 'default', n % 4, 'k', '{{}}', "
        "case when n % 2 = 0 then now() end from generate_series(1, 20000) n",
    )
    database.sql("insert into {s}.job (queue, slot, kind, args, created_at) values ('nope', 1, 'k', '{{}}', '2020-01-01')")
    database.sql("analyze {s}.job")
    text = database.statements["discard_strays"].decode().replace("%(grace_s)s", "3600").replace("%(n)s", "1000")
    [(plan,)] = database.conn.execute(f"explain (analyze, buffers, format json) {text}".encode()).fetchall()
    shown = json.dumps(plan)
    assert "Seq Scan on job" not in _nodes(plan[0]["Plan"]), shown
    blocks = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
    assert blocks < 200, shown


def _nodes(plan: dict[str, Any]) -> list[str]:
    here = f"{plan['Node Type']} on {plan.get('Relation Name')}"
    return [here, *(node for child in plan.get("Plans", []) for node in _nodes(child))]
