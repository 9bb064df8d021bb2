"""The demo's verdict names each way in which the mail server can hold something else than it must."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.make_mails import GREYLISTED, MAILS, PATH, REFUSED
from demo.smtp_server import Accepted
from demo.verdict import Ended, KillCost, differences, kill_cost, quantile
from handlers.smtp import bare_address

ADA, BOB, CAT = "ada@example.com", "bob@example.com", "cat@example.com"
GREY, BAD = "grey@greylisted.example", "bad@refused.example"
ADDRESSES = [ADA, BOB, CAT, GREY, BAD]
KILLED_AT = 1.5
IDS = {address: number for number, address in enumerate(ADDRESSES, 1)}


def accepted(to: str, at: float = 1.0, **more: object) -> Accepted:
    return msgspec.structs.replace(Accepted(at, to, IDS.get(to, 99), f"<{to}>"), **more)


def ended(to: str, **more: object) -> Ended:
    usual = Ended(IDS.get(to, 99), to, "completed")
    if to == BAD:
        usual = Ended(IDS[to], to, "discarded", errors=("SMTP 550 5.1.1 no such mailbox here",))
    if to == GREY:
        usual = Ended(IDS[to], to, "completed", attempt=2, errors=("SMTP 450 greylisted",))
    return msgspec.structs.replace(usual, **more)


JOURNAL = [accepted(ADA), accepted(BOB), accepted(CAT), accepted(GREY)]
HISTORY = [ended(to) for to in ADDRESSES]


def judged(journal: list[Accepted] | None = None, history: list[Ended] | None = None, unfinished: int = 0) -> list[str]:
    return differences(
        ADDRESSES,
        JOURNAL if journal is None else journal,
        HISTORY if history is None else history,
        unfinished,
        KILLED_AT,
    )


def with_job(job: Ended) -> list[Ended]:
    return [job if job.to == other.to else other for other in HISTORY]


def test_a_server_that_holds_what_it_must_is_proved() -> None:
    assert judged() == []


def test_a_mail_that_was_running_at_the_kill_may_arrive_twice() -> None:
    assert judged([*JOURNAL, accepted(BOB, 2.0)], with_job(ended(BOB, deaths=1, attempt=2))) == []


@pytest.mark.parametrize("times", [(-9.0, 2.0), (1.0, 1.2), (1.0, 2.0, 3.0), (8.0, 9.0)])
def test_a_mail_that_arrived_again_for_another_reason_than_the_kill_is_named(times: tuple[float, ...]) -> None:
    journal = [line for line in JOURNAL if line.to != BOB] + [accepted(BOB, at) for at in times]
    assert judged(journal, with_job(ended(BOB, deaths=1))) == [
        f"1 mail sent again, but not just once around the kill and once after it: {BOB}"
    ]


def test_a_mail_that_never_arrived_is_lost() -> None:
    assert judged(JOURNAL[1:]) == [f"1 mail lost: never accepted by the server: {ADA}"]


def test_a_greylisted_mail_that_never_arrived_is_lost() -> None:
    assert judged(JOURNAL[:3]) == [f"1 mail lost: never accepted by the server: {GREY}"]


def test_a_mail_that_arrived_twice_without_the_kill_is_named() -> None:
    journal = [*JOURNAL, accepted(BOB, 2.0)]
    assert judged(journal) == [f"1 mail sent twice, though not running at the kill: {BOB}"]
    assert judged(journal, with_job(ended(ADA, deaths=1))) == judged(journal)


def test_a_refused_mail_that_arrived_is_named() -> None:
    assert judged([*JOURNAL, accepted(BAD)]) == [f"1 mail accepted, though the server refuses it for ever: {BAD}"]


def test_a_mail_that_nobody_wrote_is_named() -> None:
    problems = judged([*JOURNAL, accepted("eve@example.com")])
    assert problems[0] == "1 mail accepted, but not a mail of the file: eve@example.com"


def test_a_mail_under_the_id_of_another_job_is_named() -> None:
    problems = judged([accepted(ADA, job_id=IDS[BOB]), *JOURNAL[1:]])
    assert problems == [f"1 mail accepted under the id of another job: {ADA}"]


def test_a_mail_sent_again_under_another_message_id_is_named() -> None:
    journal = [*JOURNAL, accepted(BOB, 2.0, message_id="<other>")]
    assert judged(journal, with_job(ended(BOB, deaths=1))) == [f"1 mail sent again under another Message-ID: {BOB}"]


def test_a_job_that_did_not_end_is_counted_and_named() -> None:
    assert judged(history=HISTORY[1:], unfinished=1) == [
        f"1 mail accepted under the id of another job: {ADA}",
        f"1 mail without a job that ended: {ADA}",
        f"1 mail not refused for ever, but its job did not complete: {ADA}",
        "1 jobs have not ended",
    ]


def test_a_job_that_ended_twice_is_named() -> None:
    assert judged(history=[*HISTORY, ended(CAT)]) == [
        f"1 mail with more than one job, or a job that ended twice: {CAT}"
    ]


def test_a_job_of_no_mail_is_named() -> None:
    assert judged(history=[*HISTORY, ended("eve@example.com")]) == [
        "1 mail of a job that is not in the file: eve@example.com"
    ]


def test_a_good_mail_whose_job_was_discarded_is_named_even_if_it_arrived() -> None:
    assert judged(history=with_job(ended(ADA, outcome="discarded", errors=("SMTP 550 full",)))) == [
        f"1 mail not refused for ever, but its job did not complete: {ADA}"
    ]


def test_a_refused_mail_whose_job_completed_is_named() -> None:
    assert judged(history=with_job(ended(BAD, outcome="completed"))) == [
        f"1 mail refused for ever, but its job completed: {BAD}"
    ]


@pytest.mark.parametrize("errors", [(), ("worker died (signal 9)",), ("SMTP 550 no", "timed out after 30 s")])
def test_a_discard_for_another_reason_is_named(errors: tuple[str, ...]) -> None:
    assert judged(history=with_job(ended(BAD, errors=errors))) == [
        f"1 mail discarded for another reason than the server's 550: {BAD}"
    ]


def test_a_greylisted_mail_at_the_first_attempt_is_named() -> None:
    assert judged(history=with_job(ended(GREY, attempt=1))) == [
        f"1 mail refused once, but without a second attempt: {GREY}"
    ]


def test_many_examples_are_cut_short() -> None:
    addresses = [f"user.{number}@example.com" for number in range(8)]
    problem = differences(addresses, [], [], 0, KILLED_AT)[0]
    assert problem.startswith("8 mails lost")
    assert problem.endswith("user.4@example.com and 3 more")


def test_the_cost_of_the_kill_counts_what_was_running_and_what_arrived_twice() -> None:
    history = [ended(ADA), ended(BOB, deaths=1), ended(CAT, deaths=1), ended(GREY), ended(BAD, deaths=1)]
    journal = [accepted(ADA, 1.0), accepted(BOB, 1.9), accepted(BOB, 2.4), accepted(CAT, 2.5), accepted(GREY, 9.0)]
    assert kill_cost(journal, history, 2.0) == KillCost(running=3, sent_twice=1, again_after_s=0.5)


def test_a_kill_that_hit_nothing_cost_nothing() -> None:
    assert kill_cost(JOURNAL, HISTORY, 2.0) == KillCost(running=0, sent_twice=0, again_after_s=None)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) < share * len(values) * (1 + 1e-9)


def test_the_committed_mails_are_those_that_the_docstring_promises() -> None:
    lines = [msgspec.json.decode(line) for line in PATH.read_bytes().splitlines()]
    addresses = [bare_address(line["args"]["to"]) for line in lines]
    domains = [address.rpartition("@")[2] for address in addresses]
    assert len(set(addresses)) == len(lines) == MAILS
    assert (domains.count("refused.example"), domains.count("greylisted.example")) == (REFUSED, GREYLISTED)
    example = ("example.com", "example.net", "example.org")
    assert all(domain in example or domain.endswith(".example") for domain in domains)
