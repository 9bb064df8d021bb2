"""What a person sees of the demo: progress bars on a terminal, plain lines elsewhere, and the summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.smtp_server import Accepted
from demo.verdict import Ended, KillCost, quantile

LINE_EVERY_S = 1.0


class Board:
    """Shows how far the mails are."""

    def __init__(self, console: Console, mails: int, to_deliver: int, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress
        self._mails, self._to_deliver = mails, to_deliver
        self._said_at = 0.0
        if progress is not None:
            self._delivered = progress.add_task("accepted by the server", total=to_deliver, note="")
            self._ended = progress.add_task("jobs ended", total=mails, note="")

    def show(self, delivered: int, ended: int, waiting_for_retry: int, workers: int) -> None:
        """The present state; outside a terminal at most one line a second."""
        state = f"{workers} worker processes, {waiting_for_retry} jobs wait for a retry"
        if self._progress is not None:
            self._progress.update(self._delivered, completed=delivered, note=state)
            self._progress.update(self._ended, completed=ended)
        elif time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(f"  accepted {delivered}/{self._to_deliver}, ended {ended}/{self._mails}, {state}")

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text)


@contextmanager
def board(console: Console, mails: int, to_deliver: int) -> Iterator[Board]:
    """A live board on a terminal, else one that prints lines."""
    if not console.is_terminal:
        yield Board(console, mails, to_deliver, None)
        return
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        yield Board(console, mails, to_deliver, progress)


def summary(
    console: Console,
    *,
    mails: int,
    accepted: Sequence[Accepted],
    ended: Sequence[Ended],
    busy_s: float,
    cost: KillCost,
    replaced_after_s: float | None,
) -> None:
    """Prints what happened.

    Args:
        mails: jobs inserted.
        accepted: the server's journal.
        ended: the history.
        busy_s: from the first insert to the end of the last job.
        cost: what the kill cost.
        replaced_after_s: from the kill until a new worker process worked; None when the demo did not see one.
    """
    completed = [job for job in ended if job.outcome == "completed"]
    failures = Counter(_reason(error) for job in ended for error in job.errors if job.outcome == "completed")
    discards = Counter(_reason(job.errors[-1]) for job in ended if job.outcome == "discarded" and job.errors)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("inserted", f"{mails}")
    table.add_row("delivered", f"{len({line.to for line in accepted})} mails, in {len(accepted)} deliveries")
    table.add_row("retried", _counted(sum(job.attempt > 1 for job in completed), failures))
    table.add_row("discarded", _counted(sum(job.outcome == "discarded" for job in ended), discards))
    table.add_row("speed", f"{len(ended) / busy_s:.0f} jobs/s over {busy_s:.1f} s" if busy_s > 0 else "-")
    table.add_row("latency", f"{_quantiles([job.wait_s for job in completed])} from insert to completion")
    table.add_row("", f"{_quantiles([job.run_s for job in completed])} from start to completion")
    table.add_row("the kill cost", _cost(cost, replaced_after_s))
    console.print(table)


def _cost(cost: KillCost, replaced_after_s: float | None) -> str:
    text = f"{cost.running} jobs that were running ran again, {cost.sent_twice} of their mails arrived twice"
    if cost.again_after_s is not None:
        text += f"; the last of them was there {cost.again_after_s:.2f} s after the kill"
    if replaced_after_s is not None:
        text += f"; a new worker process after {replaced_after_s * 1000:.0f} ms"
    return text


def _counted(count: int, reasons: Counter[str]) -> str:
    return "; ".join([f"{count}", *(f"{times} x {reason}" for reason, times in reasons.most_common(4))])


def _quantiles(seconds: Sequence[float]) -> str:
    return f"p50 {_time(quantile(seconds, 0.5))}, p99 {_time(quantile(seconds, 0.99))}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _reason(error: str) -> str:
    """An error without what differs from mail to mail."""
    return " ".join(error.split())[:80]
