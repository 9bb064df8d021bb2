"""The operation `fetch`: one request as the SDK's io.backgroundFetch describes it, and whether and when to try again.

`perform` sends it and says `Done`, `Failed` or `Later`; it writes nothing. A retry policy names statuses ("429", "500-599",
"5xx", "401,403", "all") and for each a strategy: a backoff, or the headers of a rate limit. As in the SDK the first pattern
counts that fits the status and whose bodyFilter passes.

A crash during the request leaves a service that may have acted on it: it is sent again.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

import wqcore
from handlers import outgoing
from handlers.matcher import matches

ATTEMPTS_MAX: Final = 100
"""Whatever a policy says; a rate limit's headers alone would have no end."""
WAIT_MAX: Final = dt.timedelta(days=1)
"""For a reset that a service puts into a far future by mistake (milliseconds read as seconds)."""
RESET_JITTER_S: Final = 1.0
DURATION = re.compile(r"^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?$")
Number = Annotated[float, Meta(ge=0, le=1e9)]


class Redacted(msgspec.Struct, frozen=True):
    """A string that is kept in parts, so that logs can leave out what was put in."""

    strings: list[str]
    interpolations: list[str] = []

    def __str__(self) -> str:
        parts = [text for pair in zip(self.strings, [*self.interpolations, ""], strict=False) for text in pair]
        return "".join(parts)


class Backoff(msgspec.Struct, frozen=True, rename="camel", tag_field="strategy", tag="backoff"):
    """The SDK's RetryOptions, with its defaults."""

    limit: Number = 5
    factor: Number = 1.8
    min_timeout_in_ms: Number = 1000
    max_timeout_in_ms: Number = 60_000
    randomize: bool = True
    body_filter: dict[str, Any] | None = None


class RateLimit(msgspec.Struct, frozen=True, rename="camel", tag_field="strategy", tag="headers"):
    """Tries again when a rate limit is reset, if nothing remains of it."""

    limit_header: str
    remaining_header: str
    reset_header: str
    reset_format: Literal["unix_timestamp", "unix_timestamp_in_ms", "iso_8601", "iso_8601_duration_openai_variant"] = (
        "unix_timestamp"
    )
    body_filter: dict[str, Any] | None = None


class TimeoutRetry(Backoff, frozen=True, rename="camel", tag=False):
    """What `timeout.retry` has: a backoff without a name."""


class Timeout(msgspec.Struct, frozen=True, rename="camel"):
    duration_in_ms: Annotated[float, Meta(gt=0, le=1e9)]
    retry: TimeoutRetry | None = None


class RequestInit(msgspec.Struct, frozen=True, rename="camel"):
    method: str = "GET"
    headers: dict[str, str | Redacted] = {}
    body: str | None = None


class Fetch(msgspec.Struct, frozen=True, rename="camel"):
    """The params of a task with this operation."""

    url: str
    request_init: RequestInit = RequestInit()
    retry: dict[str, Backoff | RateLimit] = {}
    timeout: Timeout | None = None


class Done(msgspec.Struct, frozen=True):
    """The task is completed with this output."""

    output: Any


class Failed(msgspec.Struct, frozen=True):
    """The task failed; the run's code gets `output` as its error."""

    output: Any
    error: str


class Later(msgspec.Struct, frozen=True):
    """This attempt failed; the next is at `at`."""

    at: dt.datetime
    error: str


async def perform(params: Any, attempts: int, *, whole_response: bool) -> Done | Failed | Later:
    """Sends the request of `params`; this is attempt number `attempts`.

    `whole_response`: the output is status, headers and data (io.backgroundFetchResponse), else the body alone.
    Raises wqcore.Retry when there was no answer.
    """
    try:
        fetch = msgspec.convert(params, Fetch)
    except msgspec.ValidationError as error:
        return _failed(f"the request cannot be made: {error}")
    init = fetch.request_init
    try:
        async with asyncio.timeout(fetch.timeout.duration_in_ms / 1000 if fetch.timeout else None):
            answer = await outgoing.request(
                init.method.upper(), fetch.url, what="fetch", follow_redirects=True,
                headers={name: str(value) for name, value in init.headers.items()},
                body=init.body.encode() if init.body is not None else None,
            )  # fmt: skip
    except TimeoutError:
        return _timed_out(fetch.timeout, attempts)
    except wqcore.Discard as refusal:
        return _failed(str(refusal))
    body = _json(answer.body)
    if answer.ok:
        return Done({"status": answer.status, "headers": _headers(answer), "data": body} if whole_response else body)
    reason = f"Fetch failed with status {answer.status}"
    at = _retry_at(fetch.retry, answer, body, attempts)
    if at is not None and attempts < ATTEMPTS_MAX:
        return Later(at, reason)
    return Failed(body if body else {"message": reason}, reason)


def fits(pattern: str, status: int) -> bool:
    """Whether a status is one of the `pattern` of a retry policy."""
    for part in (part.strip() for part in pattern.split(",")):
        low, dash, high = part.partition("-")
        if part == "all":
            return True
        if dash and low.isdecimal() and high.isdecimal() and int(low) <= status <= int(high):
            return True
        if re.fullmatch(r"[0-9]{1,3}[xX]{0,2}", part) and re.fullmatch(part.lower().replace("x", "[0-9]"), str(status)):
            return True
    return False


def backoff_at(strategy: Backoff, attempts: int, now: dt.datetime) -> dt.datetime | None:
    """When to try again after attempt number `attempts`, by the formula of the SDK's calculateRetryAt; None: not again."""
    if attempts >= strategy.limit:
        return None
    chance = 1 + random.random() if strategy.randomize else 1.0  # noqa: S311 - it spreads retries, and guards nothing
    exponent = min(max(attempts - 2, 0), 64)
    wait_ms = chance * max(strategy.min_timeout_in_ms, 1) * min(strategy.factor, 1e4) ** exponent
    return now + min(dt.timedelta(milliseconds=min(wait_ms, strategy.max_timeout_in_ms)), WAIT_MAX)


def reset_at(value: str, form: str, now: dt.datetime) -> dt.datetime | None:
    """When a rate limit is reset, from its header; None when that cannot be read."""
    try:
        match form:
            case "unix_timestamp":
                return dt.datetime.fromtimestamp(int(value), dt.UTC)
            case "unix_timestamp_in_ms":
                return dt.datetime.fromtimestamp(int(value) / 1000, dt.UTC)
            case "iso_8601":
                at = dt.datetime.fromisoformat(value)
                return at if at.tzinfo else at.replace(tzinfo=dt.UTC)
            case _:
                days, hours, minutes, seconds, ms = DURATION.match(value).groups("0")  # type: ignore[union-attr]
                return now + dt.timedelta(
                    days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds), milliseconds=int(ms)
                )
    except (ValueError, OverflowError, OSError, AttributeError):  # AttributeError: no match
        return None


def _retry_at(
    policy: Mapping[str, Backoff | RateLimit], answer: outgoing.Answer, body: Any, attempts: int
) -> dt.datetime | None:
    now = dt.datetime.now(dt.UTC)
    for pattern, strategy in policy.items():
        if not fits(pattern, answer.status):
            continue
        if strategy.body_filter is not None and not matches(body, strategy.body_filter):
            continue
        if isinstance(strategy, Backoff):
            return backoff_at(strategy, attempts, now)
        if answer.headers.get(strategy.remaining_header, "").strip() != "0":
            return None
        at = reset_at(answer.headers.get(strategy.reset_header, "").strip(), strategy.reset_format, now)
        if at is None:
            return None
        jitter = dt.timedelta(seconds=random.random() * RESET_JITTER_S)  # noqa: S311 - it spreads retries
        return min(max(at, now), now + WAIT_MAX) + jitter
    return None


def _timed_out(timeout: Timeout | None, attempts: int) -> Failed | Later:
    error = f"Fetch timed out after {timeout.duration_in_ms:g} ms" if timeout else "Fetch timed out"
    at = backoff_at(timeout.retry, attempts, dt.datetime.now(dt.UTC)) if timeout and timeout.retry else None
    return Later(at, error) if at is not None and attempts < ATTEMPTS_MAX else _failed(error)


def _failed(error: str) -> Failed:
    return Failed({"message": error}, error)


def _json(body: bytes) -> Any:
    """The parsed body; None when it is no JSON, as the SDK's users expect of a page of text."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _headers(answer: outgoing.Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}
