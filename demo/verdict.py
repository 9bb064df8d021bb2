"""What the mail server must hold after the demo, compared with what it holds. Pure: no clock, no process, no database.

The file says which mails there are; the server's journal says which it accepted, and how often; the database says how
each job ended and which jobs were running when the worker was killed (`deaths` > 0: the master saw them on its board).
Then there must be: every mail that is not refused for ever, at least once; no other mail; a mail twice only if its job
was running at the kill, and then once around the kill and once after it; every job ended, completed exactly if its mail
is in the journal. A job that is done, but not yet written down as done, is still running.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from demo.smtp_server import GREYLISTED, REFUSED, Accepted

NAMED_MAX = 5
"""How many examples a difference names."""
RUN_MAX_S = 5.0
"""A mail takes 0.1 s to send; one that was accepted so long before the kill was not running then."""


class Ended(msgspec.Struct, frozen=True):
    """A job as the history has it.

    Attributes:
        to (str): the bare address of its mail.
        outcome (str): completed, discarded or cancelled.
        attempt (int): the number of its last attempt.
        deaths (int): how many workers died while they ran it.
        errors (tuple of str): of its failed attempts, oldest first.
        wait_s (float): from its insert to its end.
        run_s (float): from the start of its last attempt to its end.
        ended_at (float): Unix time.
    """

    job_id: int
    to: str
    outcome: str
    attempt: int = 1
    deaths: int = 0
    errors: tuple[str, ...] = ()
    wait_s: float = 0.0
    run_s: float = 0.0
    ended_at: float = 0.0


def differences(
    addresses: Sequence[str], accepted: Sequence[Accepted], ended: Sequence[Ended], unfinished: int, killed_at: float
) -> list[str]:
    """What is not as it must be, one sentence each; an empty list is the proof.

    Args:
        addresses: the bare address of every mail in the file.
        accepted: the journal.
        ended: the history.
        unfinished: how many jobs have not ended.
        killed_at: Unix time of the kill.
    """
    good = {address for address in addresses if not address.endswith(REFUSED)}
    refused = set(addresses) - good
    times = Counter(line.to for line in accepted)
    by_address: dict[str, list[Ended]] = defaultdict(list)
    for job in ended:
        by_address[job.to].append(job)
    hit = {job.to for job in ended if job.deaths}
    completed = {job.to for job in ended if job.outcome == "completed"}
    job_of = {job.job_id: job.to for job in ended}
    found = [
        (good - times.keys(), "lost: never accepted by the server"),
        (times.keys() & refused, "accepted, though the server refuses it for ever"),
        (times.keys() - good - refused, "accepted, but not a mail of the file"),
        (_sent_again(accepted) - hit, "sent twice, though not running at the kill"),
        (_sent_again_otherwise(accepted, killed_at), "sent again, but not just once around the kill and once after it"),
        ({line.to for line in accepted if job_of.get(line.job_id) != line.to}, "accepted under the id of another job"),
        (_with_several_ids(accepted), "sent again under another Message-ID"),
        (set(addresses) - by_address.keys(), "without a job that ended"),
        (by_address.keys() - set(addresses), "of a job that is not in the file"),
        ({to for to, jobs in by_address.items() if len(jobs) > 1}, "with more than one job, or a job that ended twice"),
        (good - completed, "not refused for ever, but its job did not complete"),
        (completed & refused, "refused for ever, but its job completed"),
        (_discarded_without_550(ended), "discarded for another reason than the server's 550"),
        (_not_retried(ended), "refused once, but without a second attempt"),
    ]
    problems = [_sentence(addresses_found, what) for addresses_found, what in found if addresses_found]
    if unfinished:
        problems.append(f"{unfinished} jobs have not ended")
    return problems


def _sent_again(accepted: Iterable[Accepted]) -> set[str]:
    return {to for to, count in Counter(line.to for line in accepted).items() if count > 1}


def _sent_again_otherwise(accepted: Iterable[Accepted], killed_at: float) -> set[str]:
    """The server's own evidence, whatever the database says of deaths."""
    times: dict[str, list[float]] = defaultdict(list)
    for line in accepted:
        times[line.to].append(line.at)
    return {
        to
        for to, found in times.items()
        if len(found) > 1
        and not (len(found) == 2 and abs(min(found) - killed_at) < RUN_MAX_S and max(found) > killed_at)
    }


def _with_several_ids(accepted: Iterable[Accepted]) -> set[str]:
    ids: dict[str, set[str]] = defaultdict(set)
    for line in accepted:
        ids[line.to].add(line.message_id)
    return {to for to, found in ids.items() if len(found) > 1}


def _discarded_without_550(ended: Iterable[Ended]) -> set[str]:
    return {
        job.to
        for job in ended
        if job.outcome == "discarded" and job.to.endswith(REFUSED) and not (job.errors and "550" in job.errors[-1])
    }


def _not_retried(ended: Iterable[Ended]) -> set[str]:
    return {job.to for job in ended if job.to.endswith(GREYLISTED) and job.attempt < 2}


def _sentence(addresses: set[str], what: str) -> str:
    named = sorted(addresses)
    more = f" and {len(named) - NAMED_MAX} more" if len(named) > NAMED_MAX else ""
    return f"{len(named)} {'mail' if len(named) == 1 else 'mails'} {what}: {', '.join(named[:NAMED_MAX])}{more}"


class KillCost(msgspec.Struct, frozen=True):
    """What the kill cost.

    Attributes:
        running (int): jobs that were running in the worker, each charged with an attempt.
        sent_twice (int): those of them that the server had accepted already.
        again_after_s (float | None): from the kill until the server had accepted the last of them (again).
    """

    running: int
    sent_twice: int
    again_after_s: float | None


def kill_cost(accepted: Sequence[Accepted], ended: Sequence[Ended], killed_at: float) -> KillCost:
    """Counts what the kill at Unix time `killed_at` cost."""
    hit = {job.job_id for job in ended if job.deaths}
    times = Counter(line.job_id for line in accepted if line.job_id in hit)
    last = max((line.at for line in accepted if line.job_id in hit), default=None)
    return KillCost(
        running=len(hit),
        sent_twice=sum(count > 1 for count in times.values()),
        again_after_s=max(0.0, last - killed_at) if last is not None else None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
