"""Which kinds of jobs exist: kind → args type, queue, serial key, priority, attempts, time-out, handler.

A kind is declared where its args type is defined, and its handler where the work is written::

    @wqcore.kind("sendWelcome", queue="mail", max_attempts=5, timeout_s=30)
    class SendWelcome(msgspec.Struct):
        user_id: int

    @wqcore.handler
    async def send_welcome(args: SendWelcome, job: wqcore.Job) -> None: ...

A handler may also be a `def`, or take a batch of jobs (`signature.py`), and middleware may stand around it (`around.py`).
A process that only inserts needs to import the types, not the handlers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

import msgspec

from wqcore import around, described, signature
from wqcore import backoff as backoff_policies
from wqcore.errors import DeclarationError, InvalidArgs, PlannedKind, UnknownKind
from wqcore.job import ATTEMPTS_MAX, PRIORITY_MAX, PRIORITY_MIN, Unique, check_name
from wqcore.signature import BatchHandler, Handler

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 1
DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_WAIT_S = 0.05

ArgsType = TypeVar("ArgsType", bound=type[msgspec.Struct])
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Any])
WorkFunction = TypeVar("WorkFunction", bound=around.WorkMiddleware)
InsertFunction = TypeVar("InsertFunction", bound=Callable[..., Any])
SerialKey = Callable[[Any], str | None]


class Kind:
    """One kind of job. Read-only for users; made by `kind()` and completed by `handler()`."""

    def __init__(
        self,
        name: str,
        args_type: type[msgspec.Struct],
        *,
        queue: str,
        serial_key: str | SerialKey | None,
        priority: int,
        max_attempts: int,
        timeout_s: float,
        backoff: backoff_policies.Backoff,
        planned: bool,
        unique: Unique | None = None,
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.args_type = args_type
        self.queue = queue
        self.serial_key = _key_function(serial_key, args_type)
        self.serial_key_template = serial_key if isinstance(serial_key, str) else None
        self.priority = priority
        self.max_attempts = max_attempts
        self.timeout_s = timeout_s
        self.backoff = backoff
        self.planned = planned
        self.unique = unique
        self.handler: Handler | None = None
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(args_type).decode
        self.encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode

    def __repr__(self) -> str:
        return f"<Kind {self.name} → {self.queue}>"

    def described(self, *, args_bytes_max: int) -> list[dict[str, Any]]:
        """The parameters of `sync_kind.sql`: what a caller without this type must know to insert a job of it."""
        template = described.template_for_sql(self.serial_key_template, self.args_type)
        return [
            {
                "name": name,
                "stands_for": self.name,
                "queue": self.queue,
                "priority": self.priority,
                "max_attempts": self.max_attempts,
                "serial_key": template,
                "serial_key_is_code": self.serial_key is not None and template is None,
                "unique_by": self.unique.spec(self.args_type) if self.unique else None,
                "required": described.required(self.args_type),
                "defaults": described.defaults(self.args_type),
                "args_bytes_max": args_bytes_max,
                "planned": self.planned,
            }
            for name in (self.name, *self.aliases)
        ]


class Catalog:
    """The kinds of one program, by name and by args type, and the middleware around them."""

    def __init__(self) -> None:
        self.work_middleware: list[around.WorkMiddleware] = []
        self.insert_middleware: list[Callable[..., Any]] = []
        self._by_name: dict[str, Kind] = {}
        self._by_type: dict[type, Kind] = {}
        self._by_alias: dict[str, Kind] = {}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Kind | None:
        """The kind of that name or alias, or None."""
        return self._by_name.get(name) or self._by_alias.get(name)

    def declare(self, kind: Kind) -> None:
        """Adds a kind. Raises DeclarationError if its name or type is taken or a value is out of range."""
        names = (kind.name, *kind.aliases)
        for problem in (check_name("queue", kind.queue), *(check_name("kind", name) for name in names)):
            if problem:
                raise DeclarationError(problem)
        if not PRIORITY_MIN <= kind.priority <= PRIORITY_MAX:
            raise DeclarationError(
                f"kind {kind.name}: priority {kind.priority} is outside {PRIORITY_MIN} … {PRIORITY_MAX}"
            )
        if not 1 <= kind.max_attempts <= ATTEMPTS_MAX:
            raise DeclarationError(f"kind {kind.name}: max_attempts {kind.max_attempts} is outside 1 … {ATTEMPTS_MAX}")
        if not 0 < kind.timeout_s <= 7 * 24 * 3600:
            raise DeclarationError(f"kind {kind.name}: timeout_s {kind.timeout_s} is outside 0 … 604800")
        for name in names:
            other = self.get(name) or (kind if names.count(name) > 1 else None)
            if other is not None:
                raise DeclarationError(
                    f"kind {name!r} is declared twice, as a name or an alias: by {signature.where(other.args_type)} and "
                    f"by {signature.where(kind.args_type)}; rename one"
                )
        self._by_name[kind.name] = kind
        self._by_alias |= dict.fromkeys(kind.aliases, kind)
        self._by_type[kind.args_type] = kind

    def attach(
        self, function: Callable[..., Any], *, max_batch: int | None = None, max_wait_s: float = DEFAULT_MAX_WAIT_S
    ) -> None:
        """Makes `function` the handler of the kind whose args type annotates its first parameter."""
        handler, args_type = signature.read(function, max_batch, max_wait_s)
        kind = self._by_type.get(args_type)
        if kind is None:
            raise DeclarationError(
                f"handler {signature.where(function)} takes {args_type!r}, which is not declared as a kind; "
                "put @wqcore.kind(...) on that type"
            )
        if kind.planned:
            raise DeclarationError(f"kind {kind.name!r} has a handler now; remove planned=True from its declaration")
        if kind.handler is not None:
            raise DeclarationError(f"kind {kind.name!r} has two handlers; the second is {signature.where(function)}")
        if isinstance(handler, BatchHandler) and handler.max_wait_s >= kind.timeout_s:
            raise DeclarationError(
                f"kind {kind.name!r}: a batch may wait {handler.max_wait_s:g} s for its jobs, but the time-out of each is "
                f"{kind.timeout_s:g} s; lower max_wait_s or raise timeout_s"
            )
        kind.handler = handler

    def kind_of(self, args: msgspec.Struct) -> Kind:
        """The kind that `args` belongs to. Raises UnknownKind."""
        kind = self._by_type.get(type(args))
        if kind is None:
            raise UnknownKind(
                f"{type(args).__name__} is not declared as a kind; put @wqcore.kind(...) on the type, "
                "or import the module that does"
            )
        return _working(kind)

    def kind_named(self, name: str) -> Kind:
        """The kind called `name`, or that has it as an alias. Raises UnknownKind or PlannedKind."""
        kind = self.get(name)
        if kind is None:
            raise UnknownKind(
                f"unknown kind {name!r}; known are: {', '.join(sorted(self._by_name)) or 'none'}. "
                "Check the spelling, or name the module that declares it under `handlers` in the configuration"
            )
        return _working(kind)

    def parse(self, name: str, payload: object) -> tuple[Kind, msgspec.Struct]:
        """The kind called `name` and `payload` as its args type.

        `payload` is JSON text (bytes or str) or built-in objects (dict, list, str, int, float, bool, None).
        Raises UnknownKind, PlannedKind or InvalidArgs, which names the field.
        """
        kind = self.kind_named(name)
        try:
            if isinstance(payload, bytes | str):
                return kind, kind.decode(payload.encode() if isinstance(payload, str) else payload)
            return kind, msgspec.convert(payload, kind.args_type, strict=True)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise InvalidArgs(f"args of {name} do not fit {kind.args_type.__name__}: {error}") from None


catalog = Catalog()
"""The program's catalog: the decorators below add to it."""


def kind(
    name: str | None = None,
    *,
    queue: str = DEFAULT_QUEUE,
    serial_key: str | SerialKey | None = None,
    priority: int = DEFAULT_PRIORITY,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    backoff: backoff_policies.Backoff = backoff_policies.river,
    planned: bool = False,
    unique: Unique | None = None,
    aliases: tuple[str, ...] = (),
) -> Callable[[ArgsType], ArgsType]:
    """Declares a msgspec.Struct as the args type of a kind of job.

    Args:
        name: the kind's name in the database; the class name when omitted.
        queue: the queue that runs it (default `default`).
        serial_key: at most one job of a key runs at a time. A template over the fields (`"runs-{id}"`) or a function
            of the args; None for no key.
        priority: **a higher number runs first**; −1000 … 1000, default 1. (graphile-worker and River count down.)
        max_attempts: failed attempts after which the job is discarded; 1 … 1000, default 3.
        timeout_s: seconds that one attempt may take before it is cancelled; default 60.
        backoff: failed attempt number → seconds to wait; default `wqcore.backoff.river` (attempt⁴ s, ±10 %).
        planned: the type is fixed but the handler is not written yet; inserting is refused with `PlannedKind`.
        unique: insert nothing when such a job exists; a call may say other, and a job_key takes its place.
        aliases: former names. Jobs that are stored under one run as this kind, and an insert by one stores the new name.

    Raises:
        DeclarationError: the declaration cannot work (name taken, value out of range, unknown template field).
    """

    def declare(args_type: ArgsType) -> ArgsType:
        if not (isinstance(args_type, type) and issubclass(args_type, msgspec.Struct)):
            raise DeclarationError(f"@wqcore.kind belongs on a msgspec.Struct, not on {args_type!r}")
        catalog.declare(
            Kind(
                name or args_type.__name__,
                args_type,
                queue=queue,
                serial_key=serial_key,
                priority=priority,
                max_attempts=max_attempts,
                timeout_s=timeout_s,
                backoff=backoff,
                planned=planned,
                unique=unique,
                aliases=tuple(aliases),
            )
        )
        return args_type

    return declare


@overload
def handler(function: HandlerFunction, /) -> HandlerFunction: ...
@overload
def handler(
    *, max_batch: int | None = None, max_wait_s: float = DEFAULT_MAX_WAIT_S
) -> Callable[[HandlerFunction], HandlerFunction]: ...


def handler(
    function: Any = None, /, *, max_batch: int | None = None, max_wait_s: float = DEFAULT_MAX_WAIT_S
) -> Any:
    """Makes a function the handler of a kind: the annotation of its first parameter says which.

    The function takes `(args)` or `(args, job)`. Returning completes the job; raising fails the attempt; see
    `wqcore.outcome` for the rest. An `async def` runs on the event loop, a `def` in a thread.

    With `max_batch` it is an `async def (items: list[wqcore.BatchItem[YourArgs]])`. Returning None completes all; a list
    has None or an exception for each job; raising fails all.

    Args:
        max_batch: jobs of one batch at most, 1 … 10,000; also never more than the workers of the process, because each
            job of a batch takes one.
        max_wait_s: how long a batch waits for more jobs after its first, 0 … 60 s, default 0.05.

    Raises DeclarationError.
    """

    def attach(found: HandlerFunction) -> HandlerFunction:
        catalog.attach(found, max_batch=max_batch, max_wait_s=max_wait_s)
        return found

    return attach if function is None else attach(function)


def work_middleware(function: WorkFunction) -> WorkFunction:
    """Puts an `async def (job, call_next)` around every run of every kind; the first registered is the outermost.

    `await call_next()` runs the rest; what it raises is the outcome, and what the middleware raises instead counts. In
    front of a batch handler it runs for each job. Register before the workers start. Raises DeclarationError.
    """
    around.check_work(function)
    catalog.work_middleware.append(function)
    return function


def insert_middleware(function: InsertFunction) -> InsertFunction:
    """Has a plain function `(kind, args, options)` see every job that a client of this program inserts.

    It gets the wqcore.Kind, the args and the wqcore.InsertOptions, and returns options: the same, or others made by
    `msgspec.structs.replace`. Raising refuses the job (raise wqcore.InsertError). The first registered goes first. It may
    be called twice for one job, and is not called for inserts by SQL. Raises DeclarationError.
    """
    around.check_insert(function)
    catalog.insert_middleware.append(function)
    return function


def resolve_queue(kind_name: str, args: object) -> tuple[str, str | None]:
    """Where a job of this kind goes: (queue, serial key or None).

    `args` is the args struct, built-in objects or JSON text. A kind that is not in the catalog goes to the
    default queue without a key. Raises InvalidArgs.
    """
    known = catalog.get(kind_name)
    if known is None:
        return DEFAULT_QUEUE, None
    if not isinstance(args, known.args_type):
        try:
            args = (
                known.decode(args.encode() if isinstance(args, str) else args)
                if isinstance(args, bytes | str)
                else msgspec.convert(args, known.args_type)
            )
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise InvalidArgs(f"args of {kind_name} do not fit {known.args_type.__name__}: {error}") from None
    return known.queue, known.serial_key(args) if known.serial_key else None


def _working(kind: Kind) -> Kind:
    if kind.planned:
        raise PlannedKind(
            f"kind {kind.name!r} is declared, but its handler is not written yet, so inserting it is refused; "
            "write its handler and remove planned=True"
        )
    return kind


def _key_function(key: str | SerialKey | None, args_type: type[msgspec.Struct]) -> SerialKey | None:
    if not isinstance(key, str):
        return key
    template = key
    unknown = set(re.findall(r"{(\w+)}", template)) - set(args_type.__struct_fields__)
    if unknown:
        raise DeclarationError(
            f"serial_key {template!r} names {sorted(unknown)}, but {args_type.__name__} has the fields "
            f"{list(args_type.__struct_fields__)}"
        )
    return lambda args: template.format_map({name: getattr(args, name) for name in args.__struct_fields__})
