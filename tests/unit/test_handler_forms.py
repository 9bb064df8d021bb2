"""What may be declared as a handler, a kind with aliases, a middleware or a hook, and what is refused with a reason."""

from __future__ import annotations

import datetime as dt
import functools
import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import wqcore
from tests.fix_room import Args, Room, row
from wqcore import hooks
from wqcore.catalog import Catalog, Kind
from wqcore.errors import ConfigError, DeclarationError, HookFailed, UnknownKind
from wqcore.job import Job, table_us
from wqcore.outcome import Retry, Snooze
from wqcore.resource import _declared, app_problems, use_app_settings
from wqcore.signature import BatchHandler, BatchItem, ThreadHandler

catalogs = importlib.import_module("wqcore.catalog")  # the package has an object of that name


class Mail(msgspec.Struct):
    to: str = ""


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """An empty catalog in the place of the program's."""
    found = Catalog()
    monkeypatch.setattr(catalogs, "catalog", found)
    catalogs.kind("mail", aliases=("post", "letter"), timeout_s=30)(Mail)
    return found


def mail_of(catalog: Catalog) -> Kind:
    return catalog.kind_named("mail")


# --- forms ---------------------------------------------------------------------------------------------------------


async def _many(items: list[BatchItem[Mail]]) -> None: ...
async def _many_with_job(items: list[BatchItem[Mail]], job: Job) -> None: ...
async def _list(items: list[Mail]) -> None: ...
def _many_blocking(items: list[BatchItem[Mail]]) -> None: ...
def _blocking(args: Mail, job: Job) -> None: ...
async def _stream(args: Mail) -> Any:
    yield args


def _bare_decorator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


@_bare_decorator
async def _decorated(args: Mail) -> None: ...


def test_the_form_follows_from_the_function(catalog: Catalog) -> None:
    catalogs.handler(max_batch=10, max_wait_s=0.2)(_many)
    handler = mail_of(catalog).handler
    assert isinstance(handler, BatchHandler)
    assert (handler.max_batch, handler.max_wait_s) == (10, 0.2)
    mail_of(catalog).handler = None
    assert catalogs.handler(_blocking) is _blocking
    assert isinstance(mail_of(catalog).handler, ThreadHandler)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (_many, {}, "max_batch"),
        (_list, {"max_batch": 5}, "BatchItem"),
        (_many_with_job, {"max_batch": 5}, "one parameter"),
        (_many_blocking, {"max_batch": 5}, "async def"),
        (_many, {"max_batch": 0}, "outside 1"),
        (_many, {"max_batch": 5, "max_wait_s": 61}, "outside 0"),
        (_many, {"max_batch": 5, "max_wait_s": 30}, "time-out"),
        (_stream, {}, "generator"),
        (_decorated, {}, "decorator"),
    ],
)
def test_a_form_that_cannot_work_is_refused(
    catalog: Catalog, function: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DeclarationError, match=words):
        catalogs.handler(**options)(function) if options else catalogs.handler(function)


async def test_every_form_can_be_awaited_outside_of_a_worker(catalog: Catalog) -> None:
    seen: list[Any] = []
    job: Any = None
    await ThreadHandler(lambda args: seen.append(args), False)(1, job)

    async def many(items: Any) -> Any:
        seen.append([item.args for item in items])
        return [ValueError("no")]

    with pytest.raises(ValueError, match="no"):
        await BatchHandler(many, 5, 0.0)(2, job)
    assert seen == [1, [2]]


# --- aliases -------------------------------------------------------------------------------------------------------


def test_a_kind_answers_to_its_former_names(catalog: Catalog) -> None:
    kind = mail_of(catalog)
    assert catalog.kind_named("post") is kind
    assert catalog.parse("letter", {"to": "x"}) == (kind, Mail("x"))
    assert list(catalog) == [kind]
    assert len(catalog) == 1
    with pytest.raises(UnknownKind):
        catalog.kind_named("parcel")


def test_the_database_is_told_each_name(catalog: Catalog) -> None:
    rows = mail_of(catalog).described(args_bytes_max=1000)
    assert [(each["name"], each["stands_for"]) for each in rows] == [
        ("mail", "mail"), ("post", "mail"), ("letter", "mail"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "aliases", "words"),
    [
        ("post", (), "'post' is declared twice"),
        ("x", ("mail",), "'mail' is declared twice"),
        ("x", ("letter",), "'letter' is declared twice"),
        ("x", ("x",), "'x' is declared twice"),
        ("x", ("",), "empty"),
    ],
)
def test_a_name_belongs_to_one_kind(catalog: Catalog, name: str, aliases: tuple[str, ...], words: str) -> None:
    other = msgspec.defstruct("Other", [])
    with pytest.raises(DeclarationError, match=words):
        catalogs.kind(name, aliases=aliases)(other)
    assert len(catalog) == 1


async def test_a_job_that_is_stored_under_a_former_name_runs(room: Room) -> None:
    seen = []

    async def handler(args: Args, job: Job) -> None:
        seen.append(job.kind)

    room.kind("new", handler, aliases=("old", "older"))
    room.start().add([row(1, "old"), row(2, "new"), row(3, "older")])
    assert sorted((await room.outcomes(3)).done_ids) == [1, 2, 3]
    assert sorted(seen) == ["new", "old", "older"]
    assert room.executor.stats["new"].runs == 3


# --- middleware ----------------------------------------------------------------------------------------------------


async def test_the_middleware_that_was_registered_first_is_the_outermost(room: Room) -> None:
    said: list[str] = []

    def layer(name: str) -> Callable[..., Any]:
        async def middleware(job: Job, call_next: Callable[[], Any]) -> None:
            said.append(f"{name} {job.id}")
            await call_next()
            said.append(f"{name} ends")

        return middleware

    async def handler(args: Args, job: Job) -> None:
        said.append("handler")

    room.catalog.work_middleware += [layer("outer"), layer("inner")]
    room.kind("k", handler)
    room.start().add([row(1)])
    await room.outcomes(1)
    assert said == ["outer 1", "inner 1", "handler", "inner ends", "outer ends"]


async def test_middleware_stands_around_threads_and_each_job_of_a_batch(room: Room) -> None:
    around: list[int] = []

    async def middleware(job: Job, call_next: Callable[[], Any]) -> None:
        await call_next()
        around.append(job.id)

    async def many(items: list[BatchItem[Any]]) -> list[Any]:
        return [None if item.job.id == 2 else ValueError("no") for item in items]

    room.catalog.work_middleware.append(middleware)
    room.kind("thread", ThreadHandler(lambda args, job: None, True))
    room.kind("batch", BatchHandler(many, 2, 30.0))
    room.start(3).add([row(1, "thread"), row(2, "batch"), row(3, "batch")])
    outcomes = await room.outcomes(3)
    assert sorted(outcomes.done_ids) == [1, 2]
    assert [item.id for item in outcomes.again] == [3]
    assert sorted(around) == [1, 2]  # of job 3 the middleware saw the error, and let it pass


async def test_what_a_middleware_raises_is_the_outcome(room: Room) -> None:
    async def middleware(job: Job, call_next: Callable[[], Any]) -> None:
        try:
            await call_next()
        except ValueError as error:
            raise wqcore.Discard("never again") from error

    async def handler(args: Args, job: Job) -> None:
        raise ValueError

    room.catalog.work_middleware.append(middleware)
    room.kind("k", handler)
    room.start().add([row(1)])
    assert [item.outcome for item in (await room.outcomes(1)).ended] == ["discarded"]


async def test_a_plain_handler_is_called_without_a_wrapper(room: Room) -> None:
    async def handler(args: Args, job: Job) -> None: ...

    room.kind("k", handler)
    executor = room.start()
    assert executor._kinds["k"].call is handler


def test_a_middleware_or_hook_that_cannot_work_is_refused(catalog: Catalog) -> None:
    async def waits(kind: Any, args: Any, options: Any) -> None: ...
    def blocks(job: Any, call_next: Any) -> None: ...
    async def takes(worker: Any) -> None: ...

    for register, function in (
        (catalogs.insert_middleware, waits), (catalogs.insert_middleware, blocks), (catalogs.work_middleware, blocks),
        (catalogs.work_middleware, takes), (wqcore.on_start, takes), (wqcore.on_stop, blocks),
    ):  # fmt: skip
        with pytest.raises(DeclarationError, match="must be"):
            register(function)
    assert catalog.work_middleware == catalog.insert_middleware == []


# --- hooks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_start", [])
    monkeypatch.setattr(hooks, "_stop", [])


async def test_start_hooks_run_in_order_and_stop_hooks_in_reverse(
    no_hooks: None, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    def hook(name: str, error: Exception | None = None) -> Callable[[], Any]:
        async def run() -> None:
            said.append(name)
            if error is not None:
                raise error

        return run

    wqcore.on_start(hook("a"))
    wqcore.on_start(hook("b"))
    wqcore.on_stop(hook("y"))
    wqcore.on_stop(hook("z", ValueError("ignored")))
    await hooks.run_start_hooks(20)
    await hooks.run_stop_hooks()
    assert said == ["a", "b", "z", "y"]
    assert "stop hook" in caplog.text


async def test_a_start_hook_that_fails_or_hangs_is_named(no_hooks: None) -> None:
    import asyncio

    async def hangs() -> None:
        await asyncio.sleep(3600)

    wqcore.on_start(hangs)
    with pytest.raises(HookFailed, match=r"hangs was still running after 0\.01 s"):
        await hooks.run_start_hooks(0.01)
    await hooks.run_stop_hooks(0.01)

    async def fails() -> None:
        raise ValueError("no cache")

    hooks._start[:] = [fails]
    with pytest.raises(HookFailed, match="fails failed: ValueError: no cache"):
        await hooks.run_start_hooks(20)


# --- settings ------------------------------------------------------------------------------------------------------


class Shop(msgspec.Struct, forbid_unknown_fields=True):
    dsn: str
    limits: dict[str, int] = {}


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = list(_declared)
    _declared.clear()
    yield
    _declared[:] = before
    use_app_settings({})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"dsn": 3}, "app.shop.dsn: Expected `str`, got `int`"),
        ({"dsn": "x", "limits": {"a": "b"}}, "app.shop.limits.<name>: Expected `int`, got `str`"),
        ({}, "[app.shop]: Object missing required field `dsn`"),
        ({"dsn": "x", "dns": "y"}, "[app.shop]: Object contains unknown field `dns`"),
    ],
)
def test_declared_settings_that_do_not_fit_are_named_by_their_key(
    only_ours: None, table: dict[str, Any], problem: str
) -> None:
    shop = wqcore.settings_for("shop", Shop)
    wqcore.settings_for("other", dict[str, int])
    use_app_settings({"shop": table})
    assert app_problems() == [problem]
    with pytest.raises(ConfigError):
        shop()
    use_app_settings({"shop": {"dsn": "right"}})
    assert app_problems() == []
    assert shop().dsn == "right"
    assert shop() is shop()


def test_a_table_that_is_missing_is_said_to_be(only_ours: None) -> None:
    wqcore.settings_for("shop", Shop)
    use_app_settings({})
    assert app_problems() == ["[app.shop]: Object missing required field `dsn`; there is no [app.shop]"]


# --- absolute times ------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 10, 22, 16, tzinfo=dt.UTC)


async def test_a_handler_may_choose_the_time_of_its_next_run_by_the_databases_clock(room: Room) -> None:
    errors = [
        Retry("later", at=NOW + dt.timedelta(seconds=90)), Retry(at=NOW - dt.timedelta(days=1)),
        Snooze(until=NOW + dt.timedelta(hours=1)), Snooze(until=NOW),
    ]  # fmt: skip

    async def handler(args: Args, job: Job) -> None:
        raise errors[job.id]

    room.kind("k", handler)
    executor = room.start(1)
    executor.seconds_since = lambda us: (table_us(NOW) - us) / 1e6
    executor.add([row(n) for n in range(4)])
    again = (await room.outcomes(4)).again
    assert [(item.delay_s, item.attempt) for item in again] == [(90, 1), (0, 1), (3600, 0), (0, 0)]
    assert json.loads(again[0].error)["error"] == "later"


def test_a_time_without_a_zone_or_beside_a_delay_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Retry(at=dt.datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="not both"):
        Retry(after=1, at=NOW)
    with pytest.raises(ValueError, match="either"):
        Snooze()
    with pytest.raises(ValueError, match="either"):
        Snooze(1, until=NOW)
