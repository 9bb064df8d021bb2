"""Which kinds of jobs exist: kind → args type, queue, serial key, priority, attempts, time-out, handler.

A kind is declared where its args type is defined, and its handler where the work is written::

    @wqcore.kind("sendWelcome", queue="mail", max_attempts=5, timeout_s=30)
    class SendWelcome(msgspec.Struct):
        user_id: int

    @wqcore.handler
    async def send_welcome(args: SendWelcome, job: wqcore.Job) -> None: ...

A process that only inserts needs to import the types, not the handlers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, get_type_hints

import msgspec

from wqcore import backoff as backoff_policies
from wqcore import described
from wqcore.errors import DeclarationError, InvalidArgs, PlannedKind, UnknownKind
from wqcore.job import ATTEMPTS_MAX, PRIORITY_MAX, PRIORITY_MIN, Job, Unique, check_name

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 1
DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_TIMEOUT_S = 60.0

ArgsType = TypeVar("ArgsType", bound=type[msgspec.Struct])
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Awaitable[None]])
SerialKey = Callable[[Any], str | None]
Handler = Callable[[Any, Job], Awaitable[None]]


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
    ) -> None:
        self.name = name
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
                "name": self.name,
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
        ]


class Catalog:
    """The kinds of one program, by name and by args type."""

    def __init__(self) -> None:
        self._by_name: dict[str, Kind] = {}
        self._by_type: dict[type, Kind] = {}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Kind | None:
        """The kind of that name, or None."""
        return self._by_name.get(name)

    def declare(self, kind: Kind) -> None:
        """Adds a kind. Raises DeclarationError if its name or type is taken or a value is out of range."""
        problem = check_name("kind", kind.name) or check_name("queue", kind.queue)
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
        other = self._by_name.get(kind.name)
        if other is not None:
            raise DeclarationError(
                f"kind {kind.name!r} is declared twice: by {_where(other.args_type)} and by {_where(kind.args_type)}; "
                "rename one"
            )
        self._by_name[kind.name] = kind
        self._by_type[kind.args_type] = kind

    def attach(self, function: Callable[..., Awaitable[None]]) -> None:
        """Makes `function` the handler of the kind whose args type annotates its first parameter."""
        handler, args_type = _as_handler(function)
        kind = self._by_type.get(args_type)
        if kind is None:
            raise DeclarationError(
                f"handler {_where(function)} takes {args_type!r}, which is not declared as a kind; "
                "put @wqcore.kind(...) on that type"
            )
        if kind.planned:
            raise DeclarationError(f"kind {kind.name!r} has a handler now; remove planned=True from its declaration")
        if kind.handler is not None:
            raise DeclarationError(f"kind {kind.name!r} has two handlers; the second is {_where(function)}")
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
        """The kind called `name`. Raises UnknownKind or PlannedKind."""
        kind = self._by_name.get(name)
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
            )
        )
        return args_type

    return declare


def handler(function: HandlerFunction) -> HandlerFunction:
    """Makes an `async def` the handler of a kind: the annotation of its first parameter says which.

    The function takes `(args)` or `(args, job)`. Returning completes the job; raising fails the attempt; see
    `wqcore.outcome` for the rest. Raises DeclarationError.
    """
    catalog.attach(function)
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


def _as_handler(function: Callable[..., Awaitable[None]]) -> tuple[Handler, type]:
    where = _where(function)
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(f"handler {where} must be an `async def`")
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) not in (1, 2):
        raise DeclarationError(f"handler {where} must take (args) or (args, job), not {len(parameters)} parameters")
    args_type = get_type_hints(function).get(parameters[0].name)
    if args_type is None:
        raise DeclarationError(f"handler {where}: annotate its first parameter with the args type")
    if len(parameters) == 2:
        return function, args_type
    return _WithoutJob(function), args_type


class _WithoutJob:
    """Calls a one-parameter handler; a class so that it costs one call and no extra coroutine."""

    def __init__(self, function: Callable[[Any], Awaitable[None]]) -> None:
        self._function = function

    def __call__(self, args: Any, job: Job) -> Awaitable[None]:
        return self._function(args)


def _where(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', thing)}"
