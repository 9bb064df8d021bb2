"""Each refusal names the field and the fix; and what a declaration or a busy key may be."""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from wqcore.catalog import Catalog, Kind, resolve_queue
from wqcore.errors import (
    ArgsTooLarge,
    DeclarationError,
    InsertError,
    InvalidArgs,
    PlannedKind,
    UnknownKind,
    UnknownQueue,
)  # fmt: skip
from wqcore.job import Job, Row
from wqcore.line import keys
from wqcore.line.insert import Inserter, InsertOptions, slot_of
from wqcore.line.keys import Keys

catalogs = importlib.import_module("wqcore.catalog")  # the package has an object of that name


class Mail(msgspec.Struct):
    to: str
    parts: list[Any] = []
    size: int = 0


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    fresh = Catalog()
    monkeypatch.setattr(catalogs, "catalog", fresh)
    return fresh


@pytest.fixture
def mail(catalog: Catalog) -> Kind:
    catalogs.kind("mail", serial_key="to-{to}")(Mail)
    return catalog.kind_named("mail")


INSERTER = Inserter({"default": 16}, 1000)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (Mail("a\x00b"), InvalidArgs, r"\$\.to.*NUL.*remove"),
        (Mail("a", ["x", {"k": "\x00"}]), InvalidArgs, r"\$\.parts\[1\]\.k.*NUL"),
        (Mail("a", [{"\x00": 1}]), InvalidArgs, r"key of \$\.parts\[0\].*NUL"),
        (Mail("a\ud800"), InvalidArgs, "Mail.*surrogate"),
        (Mail("a", deep(200_000)), InvalidArgs, "Mail.*recursion"),
        (Mail("x" * 2000), ArgsTooLarge, r"2\d\d\d bytes.*args_bytes_max is 1000.*reference"),
        (Mail("a", size="big"), InvalidArgs, r"\$\.size"),  # type: ignore[arg-type]
        (Mail("a", parts=[object()]), InvalidArgs, "object"),
        (Mail("x" * 130), InsertError, "serial key.*at most 128"),
    ],
)
def test_args_that_cannot_be_run_are_refused(mail: Kind, args: Mail, error: type[InsertError], words: str) -> None:
    with pytest.raises(error, match=f"(?is){words}"):
        INSERTER.row(mail, args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "nope"}, r"unknown queue 'nope'.*default.*\[queues.nope\]"),
        ({"priority": 1001}, "priority 1001.*-?1000"),
        ({"max_attempts": 0}, "max_attempts 0"),
        ({"run_at": dt.datetime(2030, 1, 1)}, "run_at.*time zone"),
        ({"serial_key": "k" * 129}, "serial key.*129 bytes"),
        ({"serial_key": ""}, "serial key is empty"),
        ({"serial_key": "a\x00"}, "serial key.*NUL"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
    ],
)
def test_options_out_of_range_are_refused(mail: Kind, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InsertError, match=f"(?s){words}"):
        INSERTER.row(mail, Mail("a"), InsertOptions(**options))


def test_a_key_always_has_the_same_slot_and_jobs_without_one_take_turns(mail: Kind, catalog: Catalog) -> None:
    assert {INSERTER.row(mail, Mail("a")).slot for _ in range(5)} == {slot_of("to-a", 16)}
    plain = Kind(
        "plain", Mail, queue="default", serial_key=None, priority=1, max_attempts=1, timeout_s=1,
        backoff=lambda attempt: 0.0, planned=False,
    )  # fmt: skip
    assert {INSERTER.row(plain, Mail("a")).slot for _ in range(16)} == set(range(16))


def test_a_payload_is_parsed_by_name_or_refused(mail: Kind, catalog: Catalog) -> None:
    for payload in ({"to": "x"}, '{"to": "x"}', b'{"to": "x"}'):
        assert catalog.parse("mail", payload) == (mail, Mail("x"))
    with pytest.raises(InvalidArgs, match=r"\$\.to"):
        catalog.parse("mail", {"to": 5})
    with pytest.raises(UnknownKind, match="'male'.*mail"):
        catalog.parse("male", {})
    assert resolve_queue("mail", {"to": "x"}) == ("default", "to-x")
    assert resolve_queue("unknown", {}) == ("default", None)


async def _one(args: Mail) -> None: ...
async def _two(args: Mail, job: Job) -> None: ...
async def _three(args: Mail, job: Job, more: int) -> None: ...
async def _bare(args) -> None: ...  # type: ignore[no-untyped-def]
async def _stranger(args: msgspec.Raw) -> None: ...
def _plain(args: Mail) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [(_plain, "async def"), (_three, "3 parameters"), (_bare, "annotate"), (_stranger, "not declared as a kind")],
)
def test_a_handler_that_cannot_work_is_refused(mail: Kind, function: Callable[..., Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        catalogs.handler(function)


def test_a_kind_has_one_handler(mail: Kind) -> None:
    catalogs.handler(_one)
    with pytest.raises(DeclarationError, match="two handlers"):
        catalogs.handler(_two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": ""}, "queue is empty"), ({"priority": 1001}, "priority"), ({"max_attempts": 0}, "max_attempts"),
        ({"timeout_s": 0}, "timeout_s"), ({"name": "x" * 129}, "kind"), ({"serial_key": "a-{nope}"}, "nope"),
    ],
)  # fmt: skip
def test_a_declaration_out_of_range_is_refused(catalog: Catalog, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        catalogs.kind(**options)(Mail)
    assert len(catalog) == 0


def test_a_name_is_declared_once_and_only_on_a_struct(mail: Kind) -> None:
    class Other(msgspec.Struct):
        pass

    with pytest.raises(DeclarationError, match="declared twice"):
        catalogs.kind("mail")(Other)
    with pytest.raises(DeclarationError, match=r"msgspec\.Struct"):
        catalogs.kind("dict")(dict)  # type: ignore[type-var]


def test_a_planned_kind_is_refused_until_it_has_a_handler(catalog: Catalog) -> None:
    catalogs.kind("later", planned=True)(Mail)
    with pytest.raises(PlannedKind, match="handler"):
        catalog.kind_of(Mail("a"))
    with pytest.raises(DeclarationError, match="planned"):
        catalogs.handler(_one)
    assert issubclass(PlannedKind, InsertError)
    assert issubclass(UnknownQueue, InsertError)


# --- keys


def keyed(id_: int, key: str, slot: int = 0) -> tuple[Any, ...]:
    columns: list[Any] = [None] * 13
    columns[Row.ID], columns[Row.SERIAL_KEY], columns[Row.SLOT] = id_, key, slot
    return tuple(columns)


def test_a_key_is_held_by_one_job_and_the_others_follow_in_order() -> None:
    held = Keys()
    rows = [keyed(n, "a") for n in range(3)]
    assert [held.take(each) for each in [*rows, keyed(9, "b")]] == [True, False, False, True]
    assert list(held.parked_rows()) == rows[1:]
    assert [held.end("a") for _ in range(3)] == [rows[1], rows[2], None]
    assert (held.take(keyed(10, "a")), held.take(keyed(11, "b")), held.parked) == (True, False, 1)


def test_when_there_is_no_room_to_park_busy_keys_are_left_out_and_read_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keys, "PARKED_MAX", 2)
    held = Keys()
    for n in range(2):
        held.take(keyed(n, "a", slot=3))
    positions = iter([({(1, 3): 7}, {}), ({(1, 3): 9}, {})])
    assert held.to_leave_out(lambda slot: next(positions)) == []
    held.take(keyed(2, "a", slot=3))
    assert held.to_leave_out(lambda slot: next(positions)) == ["a"]
    assert held.to_leave_out(lambda slot: next(positions)) == ["a"]
    assert held.to_read_again() == []
    held.end("a")
    held.end("a")
    assert held.to_read_again() == [(3, ({(1, 3): 7}, {}))]
    assert held.to_read_again() == []


def test_parked_jobs_of_a_lost_slot_are_dropped() -> None:
    held = Keys()
    for n, (key, slot) in enumerate([("a", 0), ("a", 0), ("b", 1), ("b", 1)]):
        held.take(keyed(n, key, slot))
    assert [each[Row.ID] for each in held.drop_parked({0})] == [1]
    assert [each[Row.ID] for each in held.drop_parked()] == [3]
    assert held.parked == 0
