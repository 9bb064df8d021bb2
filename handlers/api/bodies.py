"""Bodies that come in are bounded while they are read and fit their type; what does not is refused with the field's path.

PostgreSQL cannot hold the character NUL, neither in text nor in jsonb, so it is found here, where its field is known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from handlers.api import settings

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode
_MISSING: Final = re.compile(r"missing required field `([^`]+)`")


class Refused(Exception):  # noqa: N818 (it is an answer, not a fault)
    """An answer other than 200.

    Args:
        status (int): of HTTP.
        error (str): what the caller should do, in one sentence.
        field (str | None): the path of what is wrong in the body, e.g. `event.name`.
        headers (mapping): of the answer.
    """

    def __init__(
        self, status: int, error: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.field = field
        self.headers = dict(headers or {})


def not_found(what: str) -> Refused:
    """404, whether there is no such thing or it is another environment's: a caller cannot tell."""
    return Refused(404, f"there is no such {what} in the environment of this key")


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(_encode(value), status, headers=dict(headers or {}), media_type="application/json")


async def read_bytes(request: Request) -> bytes:
    """The body. Raises Refused as soon as it is longer than `app.api.body_bytes_max`, whatever its length says."""
    bytes_max, data = settings().body_bytes_max, bytearray()
    # the rest of a body that is too long stays unread, so the connection is of no more use
    too_long = Refused(413, f"the body is longer than {bytes_max} bytes", headers={"connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise too_long
    async for chunk in request.stream():
        data += chunk
        if len(data) > bytes_max:
            raise too_long
    return bytes(data)


async def read(request: Request, as_type: type[T]) -> T:
    """The body as JSON of the type. Raises Refused."""
    return parse(await read_bytes(request), as_type)


def parse(data: bytes | str, as_type: type[T], at: str = "") -> T:
    """`data` as JSON of the type; `at` is the field in which it was found. Raises Refused (422)."""
    hashable: Any = as_type
    decoder: msgspec.json.Decoder[T] = _decoder(hashable)
    try:
        value = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise does_not_fit(error, at) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refused(422, f"this is not JSON that can be read: {error}", field=at or None) from error
    if (b"\\u0000" in data) if isinstance(data, bytes) else ("\\u0000" in data):
        path = _path_of_nul(msgspec.json.decode(data), at)
        if path is not None:
            raise Refused(422, "it contains the character NUL, which cannot be stored: remove it", field=path or None)
    return value


def does_not_fit(error: msgspec.ValidationError, at: str = "") -> Refused:
    """422 with the sentence and the path of msgspec's error; a missing field is part of its path."""
    text, _, path = str(error).partition(" - at `$")
    names = [at, path.rstrip("`").strip("."), *_MISSING.findall(text)]
    return Refused(422, text, field=".".join(name for name in names if name) or None)


@contextmanager
def valid() -> Iterator[None]:
    """Turns what a handler finds wrong with a body (msgspec.ValidationError) into a refusal."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise does_not_fit(error) from error


@functools.cache
def _decoder(as_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(as_type)


def _path_of_nul(value: Any, path: str) -> str | None:
    """Where the first string with a NUL is; None when there is none (an escaped `\\\\u0000` is harmless text)."""
    if isinstance(value, str):
        return path if "\0" in value else None
    if isinstance(value, dict):
        inner = [(f"{path}.{name}" if path else name, name, item) for name, item in value.items()]
    elif isinstance(value, list):
        inner = [(f"{path}[{number}]", "", item) for number, item in enumerate(value)]
    else:
        return None
    for place, name, item in inner:
        found = path if "\0" in name else _path_of_nul(item, place)
        if found is not None:
            return found
    return None
