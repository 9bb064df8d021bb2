"""Gives `begin`, which sets logging up for a test and gives the stream that is written to; all is put back."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from wqcore.settings import Logging
from wqcore.watch import log

Begin = Callable[[Logging], io.TextIOWrapper]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """`begin(settings)` sets the log up and gives its stream, which takes nothing but UTF-8; all is put back."""
    root, hooks = logging.getLogger(), (threading.excepthook, sys.unraisablehook)
    handlers, level = root.handlers[:], root.level

    def set_up(settings: Logging) -> io.TextIOWrapper:
        log.set_up_logging(settings)
        stream = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
        return stream

    yield set_up
    root.handlers[:] = handlers
    root.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks


def said(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]
