"""Clients that insert, replace, cancel and reschedule while everything fails, and write down what they were told."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg

import wqcore
from tests.chaos import kinds
from tests.check.history import CLIENTS, Said
from tests.check.record import Journal
from wqcore.settings import Settings

LOST = "it may have happened or not"
"""What the client says when it cannot know; any other error means that nothing was written."""
ONCE_TRIES = 50
RECENT = 200

_ops = itertools.count(1)
_tokens = itertools.count(1)


class Rollback(Exception):  # noqa: N818 - a decision, not an error
    """The caller's transaction is given up."""


class OutOfRange(Exception):  # noqa: N818 - what was meant to happen
    """An insert was refused that must be."""


class Mix(msgspec.Struct, frozen=True):
    """Weights of what clients do."""

    plain: float = 6
    keyed: float = 6
    hopeless: float = 1
    dozing: float = 2
    scheduled: float = 3
    named: float = 4
    once: float = 3
    effect: float = 2
    threaded: float = 2
    batched: float = 4
    many: float = 1
    rolled_back: float = 1
    refused: float = 1
    cancel: float = 2
    reschedule: float = 1
    reprioritise: float = 1


def chosen_mix(choose: random.Random) -> Mix:
    """A mix in which each part may be absent, usual or dominant."""
    return Mix(
        **{name: round(getattr(Mix(), name) * choose.choice((0, 0.5, 1, 1, 1, 3)), 1) for name in Mix.__struct_fields__}
    )


class Client(threading.Thread):
    """One client: a thread with a SyncClient of its own."""

    def __init__(self, settings: Settings, journal: Journal, *, seed: str, mix: Mix, per_second: float) -> None:
        super().__init__(name="client", daemon=True)
        self.done = 0
        self.error: BaseException | None = None
        self._settings = settings
        self._journal = journal
        self._choose = random.Random(seed)
        self._mix = mix
        self._per_second = per_second
        self._over = threading.Event()
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._client: wqcore.SyncClient = None  # type: ignore[assignment]

    def finish(self) -> None:
        """Lets the operation in progress end, and then the thread."""
        self._over.set()

    def run(self) -> None:
        names, weights = zip(*msgspec.structs.asdict(self._mix).items(), strict=True)
        try:
            with wqcore.SyncClient(self._settings) as self._client:
                began = time.monotonic()
                while not self._over.wait(max(0.0, began + self.done / self._per_second - time.monotonic())):
                    if began + self.done / self._per_second < time.monotonic() - 1.0:
                        began = time.monotonic() - self.done / self._per_second  # an outage is not caught up with
                    self.done += 1
                    getattr(self, f"_{self._choose.choices(names, weights)[0]}")()
        except BaseException as error:  # shown by whoever waits for the thread; it must not end in silence
            self.error = error

    # --- what it does -----------------------------------------------------------------------------------------------

    def _ms(self) -> float:
        return self._choose.choice((0.0, 2.0, 10.0, 50.0, self._choose.uniform(0, 600)))

    def _short_ms(self) -> float:
        """For jobs that wait for each other: a key must not come to more work than one run at a time can do."""
        return self._choose.choice((0.0, 2.0, 10.0, self._choose.uniform(0, 80)))

    def _plain(self) -> None:
        fails = self._choose.choice((0, 0, 0, 1, 2))
        self._insert(kinds.Plain(next(_tokens), self._ms(), fails=fails))

    def _keyed(self) -> None:
        fails = self._choose.choice((0, 0, 0, 1))
        self._insert(kinds.Keyed(next(_tokens), self._choose.randrange(20), self._short_ms(), fails=fails))

    def _hopeless(self) -> None:
        self._insert(kinds.Hopeless(next(_tokens)))

    def _dozing(self) -> None:
        self._insert(kinds.Dozing(next(_tokens), self._ms()))

    def _scheduled(self) -> None:
        self._insert(kinds.Plain(next(_tokens), self._ms()), run_at=_in(self._choose.uniform(0.0, 4.0)))

    def _named(self) -> None:
        name = self._entity()
        self._insert(
            kinds.Named(next(_tokens), name, self._short_ms()),
            job_key=f"name-{name}",
            job_key_mode=self._choose.choice(("replace", "replace", "preserve_run_at", "unsafe_dedupe")),
            run_at=self._choose.choice((None, _in(self._choose.uniform(0.0, 1.0)))),
        )

    def _entity(self) -> int:
        return self._choose.randrange(10)

    def _once(self) -> None:
        """Repeats the insert until it is known to have happened, and once more for good measure."""
        args = kinds.Once(next(_tokens), self._ms())
        for _ in range(ONCE_TRIES):
            if self._insert(args, once=True) or self._over.wait(0.1):
                break
        self._insert(args, once=True)

    def _effect(self) -> None:
        self._insert(kinds.Effect(next(_tokens), self._ms()))

    def _threaded(self) -> None:
        self._insert(kinds.Threaded(next(_tokens), self._ms()))

    def _batched(self) -> None:
        self._insert(kinds.Batched(next(_tokens), self._choose.randrange(8), self._short_ms()))

    def _many(self) -> None:
        tokens = [next(_tokens) for _ in range(self._choose.randrange(1, 60))]
        items = [kinds.Plain(token, self._ms()) for token in tokens]
        self._asked(tokens, lambda: self._client.insert_many(items))

    def _rolled_back(self) -> None:
        """An insert in a transaction of the caller, who may change his mind."""
        token, keeps = next(_tokens), self._choose.random() < 0.4

        def insert() -> Any:
            with psycopg.connect(self._client.dsn, connect_timeout=2, options="-c statement_timeout=3000") as conn:
                job = self._client.insert_tx(conn, kinds.Plain(token, self._ms()))
                if not keeps:
                    raise Rollback
                return job

        self._asked([token], insert)

    def _refused(self) -> None:
        token, priority = next(_tokens), self._choose.choice((5000, -5000))

        def insert() -> Any:
            try:
                return self._client.insert(kinds.Plain(token), priority=priority)
            except wqcore.InsertError as error:
                raise OutOfRange from error

        self._asked([token], insert)

    def _cancel(self) -> None:
        self._control("cancel", lambda job: self._client.cancel(job))

    def _reschedule(self) -> None:
        delay = dt.timedelta(seconds=self._choose.uniform(0.0, 1.0))
        self._control("reschedule", lambda job: self._client.reschedule(job, delay))

    def _reprioritise(self) -> None:
        self._control("reprioritise", lambda job: self._client.reprioritise(job, self._choose.choice((-1, 1, 2))))

    # --- how it is written down ---------------------------------------------------------------------------------------

    def _insert(self, args: Any, *, once: bool = False, **options: Any) -> bool:
        return self._asked([args.token], lambda: self._client.insert(args, **options), once=once)

    def _asked(self, tokens: list[int], insert: Callable[[], Any], *, once: bool = False) -> bool:
        """Inserts, and writes down what came of it; whether it was acknowledged."""
        ops = [(next(_ops), token) for token in tokens]
        for op, token in ops:
            self._say(op=op, phase="invoke", token=token, once=once)
        job, did = None, None
        try:
            found = insert()
            if isinstance(found, wqcore.Inserted):
                did = "replaced" if found.replaced else "skipped" if found.skipped else "inserted"
                job = int(found)
                self._recent.append(job)
            phase = "ok"
        except (OutOfRange, Rollback):
            phase = "fail"
        # only what an outage can raise: any other error is one of ours or of the client, and ends the campaign
        except psycopg.OperationalError:
            phase = "info"
        except wqcore.DatabaseUnavailable as error:
            phase = "info" if LOST in str(error) else "fail"
        for op, token in ops:
            self._say(op=op, phase=phase, token=token, job=job, did=did, once=once)
        return phase == "ok"

    def _control(self, do: str, ask: Callable[[int], Any]) -> None:
        if not self._recent:
            return
        job, op = self._choose.choice(self._recent), next(_ops)
        self._say(op=op, phase="invoke", do=do, job=job)
        try:
            ask(job)
            phase = "ok"
        except wqcore.DatabaseUnavailable:
            phase = "info"
        self._say(op=op, phase=phase, do=do, job=job)

    def _say(self, **fields: Any) -> None:
        self._journal.write(Said(at=time.monotonic_ns(), **fields))


def _in(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


def journal(folder: Any) -> Journal:
    """The clients' journal."""
    return Journal(folder / CLIENTS)
