"""Which database a request goes to: that of the queue. With one database it is that one, and nothing is looked up.

The configuration says which database has a queue (`queues.<name>.database`), so that inserts move at once when a queue moves; a
queue that it does not name is looked for among those that each database knows. Ids of jobs are unique within a database
only. So where there are several, an id goes to the database of the insert that returned it, and a plain number is refused:
it could be that of another job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import msgspec

from wqcore.control import given
from wqcore.control.changes import Chosen
from wqcore.control.filters import JobFilter
from wqcore.db.connect import describe
from wqcore.db.statements import Statements
from wqcore.errors import InvalidRequest, UnknownQueue
from wqcore.settings import Database


class Target:
    """One database of a client."""

    def __init__(self, name: str, dsn: str, database: Database) -> None:
        self.name = name
        self.dsn = dsn
        self.database = database
        self.statements = Statements(database.schema)
        self.queues: set[str] = set()
        """Those that it was seen to know."""
        self.waiters: Any = None
        """Who waits for jobs of it (`results.Waiters`)."""

    def __str__(self) -> str:
        return f"{self.name} ({describe(self.dsn)}, schema {self.database.schema!r})"


class JobId(int):
    """The id of a job, which also says of which database."""

    database: str

    def __new__(cls, job_id: int, database: str) -> Self:
        self = super().__new__(cls, job_id)
        self.database = database
        return self

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]  # int's own has the number alone
        return int(self), self.database


T = TypeVar("T", bound=Target)
S = TypeVar("S", bound=msgspec.Struct)


class Routes(Generic[T]):
    """The databases of a client, the first of which is that of `[database]`.

    Args:
        configured: queue → name of its database.
        bound: whether these are some of several, so that ids are to be those of them.
    """

    def __init__(self, targets: Sequence[T], configured: Mapping[str, str], *, bound: bool = False) -> None:
        self.targets = list(targets)
        self.home = self.targets[0]
        self.several = len(self.targets) > 1
        self.checks = self.several or bound
        self._configured = configured

    def named(self, database: str) -> T:
        """The database of that name. Raises InvalidRequest."""
        for target in self.targets:
            if target.name == database:
                return target
        raise InvalidRequest(f"no database {database!r}: there are {self._names()}")

    def of_queue(self, queue: str) -> T:
        """The database of a queue; the first one for a queue that nobody knows. Raises UnknownQueue."""
        if not self.several:
            return self.home
        name = self._configured.get(queue)
        if name is not None:
            return self.named(name)
        found = [target for target in self.targets if queue in target.queues]
        if len(found) > 1:
            raise UnknownQueue(
                f"queue {queue!r} is in the databases {', '.join(target.name for target in found)}: say by "
                f"queues.{queue}.database which of them counts"
            )
        return found[0] if found else self.home

    def of_queues(self, queues: Sequence[str] | None) -> list[T]:
        """Those of some queues; None: all."""
        if queues is None or not self.several:
            return self.targets
        wanted = [self.of_queue(queue) for queue in queues]
        return [target for target in self.targets if target in wanted]

    def only(self, queues: Sequence[str] | None, what: str) -> T:
        """The database of all of some queues. Raises InvalidRequest when there are several of them."""
        found = self.of_queues(queues)
        if len(found) == 1:
            return found[0]
        raise InvalidRequest(
            f"{what} is of one database, and this would be of {', '.join(target.name for target in found)}: name queues of "
            "one, or use client.at(<database>)"
        )

    def of_job(self, job_id: int) -> T:
        """The database of a job. Raises InvalidRequest for what is no id, and for a number that does not say."""
        given.job_id(job_id)
        if not self.checks:
            return self.home
        name = getattr(job_id, "database", None)
        if name is not None:
            return self.named(name)
        if not self.several:
            return self.home
        raise InvalidRequest(
            f"job {job_id} can be one of each database ({self._names()}), since ids are unique within one: use "
            f"client.at(<database>), or what `insert` returned, whose `database` says it"
        )

    def of_chosen(self, chosen: Chosen) -> Iterator[tuple[T, Chosen]]:
        """What was chosen, by database. Raises InvalidRequest for what is no choice."""
        if not isinstance(chosen, JobFilter):
            ids = given.job_ids([chosen] if isinstance(chosen, int) else chosen)
            if not self.checks:
                yield self.home, ids
                return
            found: dict[str, list[int]] = {}
            for job_id in ids:
                found.setdefault(self.of_job(job_id).name, []).append(job_id)
            for name, some in found.items():
                yield self.named(name), some
        elif self.checks and chosen.ids is not None:
            yield self.of_filter(chosen)[0], chosen
        else:
            for target in self.of_queues(chosen.queues):
                yield target, chosen

    def of_filter(self, chosen: JobFilter) -> list[T]:
        """Where jobs that match can be. Raises InvalidRequest for what is no filter, and for ids of several databases."""
        if not isinstance(chosen, JobFilter):
            raise InvalidRequest(f"{chosen!r} is no filter: pass a JobFilter, as JobFilter(kinds=['mail'])")
        if chosen.ids is None or not self.checks:
            return self.of_queues(chosen.queues)
        found = {self.of_job(job_id).name for job_id in chosen.ids}
        if len(found) > 1:
            raise InvalidRequest(
                f"the filter has ids of the databases {', '.join(sorted(found))}: ask for each by itself"
            )
        return [self.named(name) for name in found] or [self.home]

    def bound_to(self, database: str) -> Routes[T]:
        """Only one of them."""
        return Routes([self.named(database)], {}, bound=True)

    def marked(self, at: T, found: S) -> S:
        """Jobs or events, whose ids say of which database they are, where there are several."""
        return (
            msgspec.structs.replace(found, id=JobId(found.id, at.name))
            if self.checks and hasattr(found, "id")
            else found
        )

    def _names(self) -> str:
        return ", ".join(target.name for target in self.targets)
