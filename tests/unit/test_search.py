"""A search text means what it says, or is refused by a sentence that names what is wrong; nothing else comes out of it."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wqcore.control import search
from wqcore.control.filters import AsText, JobFilter, parameters
from wqcore.errors import InvalidSearch

HOUR = dt.timedelta(hours=1)
MEANINGS = [
    (["17", "18"], JobFilter(ids=[17, 18])),
    (["17 18", "17"], JobFilter(ids=[17, 18])),
    (["kind:mail"], JobFilter(kinds=["mail"])),
    (["KIND:mail"], JobFilter(kinds=["mail"])),
    (["kind:a,b", "kind:c"], JobFilter(kinds=["a", "b", "c"])),
    (["5 kind:mail state:discarded,cancelled"], JobFilter(ids=[5], kinds=["mail"], states=["discarded", "cancelled"])),
    (['queue:"a,b"'], JobFilter(queues=["a,b"])),
    (["queue:my queue"], JobFilter(queues=["my queue"])),
    (['queue:o"dd; quéue'], JobFilter(queues=['o"dd; quéue'])),
    (["key:customer-7"], JobFilter(key="customer-7")),
    (["tag:vip", "tag:late,eu"], JobFilter(tags=["vip", "late", "eu"])),
    (["error:timed out"], JobFilter(error="timed out")),
    (["error:timed out kind:a"], JobFilter(error="timed out", kinds=["a"])),
    (["error:refused: no such host"], JobFilter(error="refused: no such host")),
    (['error:"say \\"kind:\\" \\\\ twice"'], JobFilter(error='say "kind:" \\ twice')),
    (["older:1h30m", "newer:2d"], JobFilter(older_than=HOUR * 1.5, newer_than=HOUR * 48)),
    (["older:90s"], JobFilter(older_than=dt.timedelta(seconds=90))),
    (["older:2026-11-24"], JobFilter(older_than=dt.datetime(2026, 11, 24, tzinfo=dt.UTC))),
    (["newer:2026-11-24T06:00Z"], JobFilter(newer_than=dt.datetime(2026, 11, 24, 6, tzinfo=dt.UTC))),
    (["args.user.id=7"], JobFilter(args={"user.id": AsText("7")})),
    (['args.user.id="7"', "args.a=null"], JobFilter(args={"user.id": "7", "a": None})),
    (['args.list=[1,"x"]', "args.url=http://a/?b=c"], JobFilter(args={"list": [1, "x"], "url": AsText("http://a/?b=c")})),
    (['args.empty=""'], JobFilter(args={"empty": ""})),
    ([], JobFilter()),
    (["  "], JobFilter()),
]  # fmt: skip


@pytest.mark.parametrize(("words", "meant"), MEANINGS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_text_means(words: list[str], meant: JobFilter) -> None:
    found = search.parse(words)
    assert found.filter == meant
    assert found.ids == list(meant.ids or [])
    assert parameters(found.filter)
    # equal strings of two types would pass: one compares as text, the other as JSON
    assert [type(value) for value in (found.filter.args or {}).values()] == [type(v) for v in (meant.args or {}).values()]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["foo:bar"], "'foo:bar'"),
        (["discarded"], "'discarded'"),
        (["state:dead"], "'dead'"),
        (["kind:a stat:b"], "'stat:'"),
        (["kind:"], "kind: has no value"),
        (["error:"], "error: has no value"),
        (["error:a", "error:b"], "error: is there twice"),
        (["args.a=1", "args.a=2"], "args.a= is there twice"),
        (["args.a="], 'args.a=""'),
        (["args.a=[1"], "args.a=[1"),
        (['kind:"a'], "do not end"),
        (['kind:"a"b'], "do not end"),
        (["older:soon"], "older:soon"),
        (["older:99999999d"], "hundred years"),
        (["newer:2026-13-01"], "2026-13-01"),
        (["0"], "0 is no id"),
        (["9223372036854775808"], "9223372036854775808 is no id"),
        (["kind:a\x00b"], "NUL"),
        (["kind:\udcff"], "UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(InvalidSearch) as refused:
        search.parse(words)
    assert named in str(refused.value)


@pytest.mark.parametrize("words", [["foo:bar"], ["kind:a stat:b"], ["x"]])
def test_a_refusal_lists_what_is_known(words: list[str]) -> None:
    with pytest.raises(InvalidSearch, match=r"kind:, queue:, state:, key:, tag:, error:, older:, newer:, args\.PATH="):
        search.parse(words)


def test_a_refused_state_lists_the_states() -> None:
    with pytest.raises(InvalidSearch, match="available, scheduled, retryable, running, completed, cancelled, discarded"):
        search.parse(["state:dead"])


PIECES = st.sampled_from(
    ["kind:", "queue:", "state:", "key:", "tag:", "error:", "older:", "newer:", "args.", "args.a=", "=", "a",
     "discarded", ",", " ", '"',
     "\\", "1h", "2026-01-01", "17", "999999999999999999999", "null", "[", "{", "é", "\x00", "\udc80", "x:y", "\n", "3.5d"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30), max_size=4))
def test_whatever_is_written_is_a_filter_that_the_database_takes_or_is_refused(words: list[str]) -> None:
    try:
        found = search.parse(words)
    except InvalidSearch:
        return
    wanted = parameters(found.filter)
    texts = [text for value in wanted.values() if isinstance(value, list) for text in value if isinstance(text, str)]
    texts += [value for value in wanted.values() if isinstance(value, str)]
    assert not any("\x00" in text for text in texts)
    for text in texts:
        text.encode()
    if any(word.strip() for word in words):
        assert not found.filter.is_everything(), "something was written, and would mean every job"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40))
def test_whatever_stands_in_quotes_is_the_value(value: str) -> None:
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert search.parse([f"error:{quoted} kind:{quoted}"]).filter == JobFilter(error=value, kinds=[value])


@settings(deadline=None)
@given(st.text(max_size=20))
def test_whatever_is_begun_is_completed_without_an_error(begun: str) -> None:
    for found in search.complete(begun, ["sendMail"], ["mail"]):
        assert ":" in found or found == "args."


def test_a_word_is_completed_to_qualifiers_and_to_known_values() -> None:
    kinds, queues = ["sendMail", "sendSms"], ["mail"]
    assert search.complete("", kinds, queues) == [f"{name}:" for name in search.QUALIFIERS] + ["args."]
    assert search.complete("st", kinds, queues)[0] == "state:available"
    assert search.complete("state:dis", kinds, queues) == ["state:discarded"]
    assert search.complete("kind:sendMail,sendS", kinds, queues) == ["kind:sendMail,sendSms"]
    assert search.complete("queue:", kinds, queues) == ["queue:mail"]
    assert search.complete("nonsense:", kinds, queues) == []
