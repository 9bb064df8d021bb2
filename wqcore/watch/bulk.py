"""Inserting a file of JSON lines: one bad line is reported with its number and stops nothing, unless strict.

A line is `{"kind": …, "args": {…}}` and may also have queue, priority, max_attempts, run_at (RFC 3339), serial_key,
metadata, job_key, job_key_mode and unique. The good lines go in in one transaction: all of them, or none. A job that
exists already is counted, not an error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from wqcore.catalog import Catalog
from wqcore.client import SyncClient
from wqcore.errors import InsertError
from wqcore.job import Unique
from wqcore.line.insert import InsertOptions, JobKeyMode

REFUSALS_SHOWN_MAX = 50


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the file."""

    kind: str
    args: msgspec.Raw
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    run_at: dt.datetime | None = None
    serial_key: str | None = None
    metadata: dict[str, Any] | None = None
    job_key: str | None = None
    job_key_mode: JobKeyMode = "replace"
    unique: Unique | None = None


class Report(msgspec.Struct):
    """What became of a file."""

    inserted: int = 0
    replaced: int = 0
    skipped: int = 0
    refused: int = 0


def insert_lines(
    client: SyncClient,
    catalog: Catalog,
    lines: Iterable[bytes],
    *,
    strict: bool,
    refused: Callable[[str], None],
    read: Callable[[int, int], None],
) -> Report:
    """Inserts `lines`.

    Args:
        strict: raise InsertError at the first bad line, so that nothing is inserted.
        refused: told of each bad line, the first 50 of them.
        read: told the (bytes, lines) read so far, every thousand lines.
    """
    report = Report()
    decoder = msgspec.json.Decoder(Line)

    def items() -> Iterator[tuple[msgspec.Struct, InsertOptions]]:
        size = 0
        for number, text in enumerate(lines, 1):
            size += len(text)
            if number % 1000 == 0:
                read(size, number)
            if not text.strip():
                continue
            try:
                yield client.checked(*_item(catalog, decoder, text))
            except (InsertError, msgspec.DecodeError, RecursionError) as error:
                report.refused += 1
                if strict:
                    raise InsertError(f"line {number}: {error}; nothing was inserted") from None
                if report.refused <= REFUSALS_SHOWN_MAX:
                    refused(f"line {number}: {error}")

    added = client.insert_many(items())
    report.inserted, report.replaced, report.skipped = int(added), added.replaced, added.skipped
    if report.refused > REFUSALS_SHOWN_MAX:
        refused(f"… and {report.refused - REFUSALS_SHOWN_MAX} more lines")
    return report


def _item(catalog: Catalog, decoder: msgspec.json.Decoder[Line], text: bytes) -> tuple[msgspec.Struct, InsertOptions]:
    line = decoder.decode(text)
    _, args = catalog.parse(line.kind, bytes(line.args))
    return args, InsertOptions(**{name: getattr(line, name) for name in InsertOptions.__struct_fields__})
