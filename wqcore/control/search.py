"""A search text becomes a JobFilter, or an InvalidSearch that names what is wrong and lists what is known; nothing else.

A text is a row of ids and qualifiers; all of them must hold::

    17 18                              these jobs
    kind:sendMail,sendSms queue:mail   one of these names
    state:discarded                    one of the states of a job
    key:customer-7                     the serial key or the job key
    args.user.id=7                     a value in the args: the number 7 or the text "7"; args.user.id="7" only the text
    tag:urgent                         an entry of `tags` in the metadata; several tags: all of them
    error:"timed out"                  a part of the last error's text
    older:1h newer:2d                  created longer ago than, or within; or before and since a time: older:2026-11-24T06:00Z

In one text ids come first. A value with blanks needs no quotes, since it ends where the next qualifier begins; double
quotes protect commas, and what looks like a qualifier (`\\"` and `\\\\` inside them). A time without a zone is UTC.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from wqcore.control.filters import AsText, JobFilter
from wqcore.errors import InvalidSearch
from wqcore.job import JobState

QUALIFIERS = {
    "kind": "a kind, or several with commas",
    "queue": "a queue, or several with commas",
    "state": "a state, or several with commas",
    "key": "the serial key or the job key",
    "tag": "an entry of `tags` in the metadata",
    "error": "a part of the last error's text",
    "older": "created longer ago than 90s, 5m, 1h, 2d, 1w, or before a time",
    "newer": "created within 90s, 5m, 1h, 2d, 1w, or since a time",
}
ARGS = "args.PATH="
KNOWN = ", ".join([*(f"{name}:" for name in QUALIFIERS), ARGS])

_LISTS = {"kind": "kinds", "queue": "queues", "state": "states", "tag": "tags"}
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SPAN_MAX_S = 36_500 * 86_400.0
_ID = re.compile(r"(\d+)(?=\s|$)")
_QUALIFIER = re.compile(r"([A-Za-z_]+):|(args\.[^\s=]+)=")
_NEXT_KNOWN = re.compile(rf"\s+(?=(?:{'|'.join(QUALIFIERS)}):|args\.[^\s=]+=)")
_NEXT_OTHER = re.compile(r"\s+([A-Za-z_]+):\S")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)', re.DOTALL)
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_ID_MAX = (1 << 63) - 1


class Search(msgspec.Struct, frozen=True):
    """What a text means.

    Attributes:
        ids (list of int): the jobs that it names.
        filter (JobFilter): all that it says, the ids too.
    """

    ids: list[int]
    filter: JobFilter

    @property
    def names_only(self) -> bool:
        """True when it names jobs and says nothing else of them."""
        return bool(self.ids) and self.filter == JobFilter(ids=self.ids)


def parse(words: Iterable[str]) -> Search:
    """What the words mean: each is a text of its own, e.g. an argument of a command. Raises InvalidSearch."""
    ids: list[int] = []
    found: dict[str, Any] = {}
    for word in words:
        _readable(word)
        at = len(word) - len(word.lstrip())
        while at < len(word):
            number = _ID.match(word, at)
            if number:
                ids.append(_id(number[1]))
                end = number.end()
            else:
                name, value, quoted, end = _term(word, at)
                _add(found, name, value, quoted=quoted)
            at = end + len(word[end:]) - len(word[end:].lstrip())
    ids = list(dict.fromkeys(ids))
    return Search(ids, JobFilter(ids=ids or None, **found))


def span(text: str) -> dt.timedelta:
    """A duration such as 90s, 1h30m, 2d. Raises InvalidSearch."""
    if not _SPAN.fullmatch(text):
        raise InvalidSearch(f"{text!r} is no duration: write a number and s, m, h, d or w, e.g. 90s, 1h30m, 2d")
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _SPAN_PART.findall(text))
    if seconds > _SPAN_MAX_S:
        raise InvalidSearch(f"{text!r} is more than a hundred years")
    return dt.timedelta(seconds=seconds)


def moment(text: str) -> dt.datetime:
    """A time as ISO 8601 has it; UTC when it says no zone. Raises InvalidSearch."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidSearch(f"{text!r} is no time: write e.g. 2026-11-24T06:00Z, or 2026-11-24") from None
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def complete(incomplete: str, kinds: Sequence[str], queues: Sequence[str]) -> list[str]:
    """What the begun word may become: qualifiers, and the values of those that have a known set of them."""
    name, colon, begun = incomplete.partition(":")
    if not colon:
        names = [f"{known}:" for known in QUALIFIERS if known.startswith(name)]
        if len(names) != 1:
            return [*names, *(["args."] if "args.".startswith(name) else [])]
        name, begun = names[0][:-1], ""  # its values at once: a shell puts a blank after the only word that fits
    ages = ["1h", "1d"] if not begun else []
    known = {"kind": kinds, "queue": queues, "state": list(JobState), "older": ages, "newer": ages}
    before, comma, last = begun.rpartition(",")
    found = [f"{name}:{before}{comma}{value}" for value in known.get(name, []) if value.startswith(last)]
    return found if found or colon else [f"{name}:", f"{name}:…"]


def _term(word: str, at: int) -> tuple[str, str, bool, int]:
    """(qualifier or args path, value, whether it was quoted, where it ends) of the term that begins at `at`."""
    begin = _QUALIFIER.match(word, at)
    if begin is None or (begin[1] and begin[1].lower() not in QUALIFIERS):
        raise InvalidSearch(f"{word[at:].split()[0]!r} is neither an id nor a qualifier; known are {KNOWN}")
    name = begin[2] or begin[1].lower()
    start = begin.end()
    if word.startswith('"', start):
        quoted = _QUOTED.match(word, start)
        if quoted is None:
            raise InvalidSearch(f"the quotes of {word[at:]!r} do not end, or something follows them without a blank")
        return name, re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), True, quoted.end()
    known = _NEXT_KNOWN.search(word, start)
    end = known.start() if known else len(word)
    other = _NEXT_OTHER.search(word, start, end)
    if other and name != "error":
        raise InvalidSearch(
            f"{other[1] + ':'!r} is no qualifier; known are {KNOWN}; a value that has it needs double quotes around it"
        )
    return name, word[start:end].strip(), False, end


def _add(found: dict[str, Any], name: str, value: str, *, quoted: bool) -> None:
    if name.startswith("args."):
        args = found.setdefault("args", {})
        path = name.removeprefix("args.")
        if path in args:
            raise InvalidSearch(f"{name}= is there twice, and a value cannot be both")
        args[path] = _value(name, value, quoted=quoted)
        return
    if not value:
        raise InvalidSearch(f"{name}: has no value; it takes {QUALIFIERS[name]}")
    if name in _LISTS:
        values = [value] if quoted else [part.strip() for part in value.split(",") if part.strip()]
        if name == "state":
            _known_states(values)
        found[_LISTS[name]] = [*found.get(_LISTS[name], []), *values]
        return
    field = {"older": "older_than", "newer": "newer_than"}.get(name, name)
    if field in found:
        raise InvalidSearch(f"{name}: is there twice, and both cannot hold")
    found[field] = value if field == name else _age(name, value)


def _known_states(values: list[str]) -> None:
    for value in values:
        if value not in list(JobState):
            raise InvalidSearch(f"there is no state {value!r}; the states are {', '.join(JobState)}")


def _age(name: str, value: str) -> dt.datetime | dt.timedelta:
    try:
        return span(value) if _SPAN.fullmatch(value) else moment(value)
    except InvalidSearch as error:
        if _SPAN.fullmatch(value):
            raise
        raise InvalidSearch(f"{name}:{value}: write a duration (90s, 5m, 1h, 2d, 1w) or a time ({error})") from None


def _value(name: str, text: str, *, quoted: bool) -> Any:
    """A text in quotes is that text; null, lists and objects are JSON; all else matches what is written like it."""
    if quoted:
        return text
    if not text:
        raise InvalidSearch(f'{name}= has no value; write {name}="" for the empty text')
    if text == "null":
        return None
    if text[0] in "[{":
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidSearch(f"{name}={text}: {error}; put double quotes around it when it is a text") from None
    return AsText(text)


def _id(text: str) -> int:
    if len(text) > 19 or not 1 <= int(text) <= _ID_MAX:
        raise InvalidSearch(f"{text[:40]} is no id of a job: those are 1 … {_ID_MAX}")
    return int(text)


def _readable(word: str) -> None:
    if "\x00" in word:
        raise InvalidSearch("the text contains a NUL character, which no job can have")
    try:
        word.encode()
    except UnicodeEncodeError:
        raise InvalidSearch(f"{word!r} is not valid UTF-8") from None
