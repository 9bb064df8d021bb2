"""A record is one line of JSON or of text, whatever is in it, and hides the texts of errors of the program's code."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import subprocess
import sys
import threading

import pytest

from tests.fix_log import Begin, said
from wqcore.settings import Logging


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_lone_surrogate_is_written_as_an_escape(begin: Begin, log_format: str) -> None:
    stream = begin(Logging(format=log_format))  # type: ignore[arg-type]
    logging.getLogger("mine").warning("a%sb", "\ud800")
    [line] = said(stream).splitlines()
    assert r"a\ud800b" in line
    if log_format == "json":
        assert json.loads(line)["message"] == "a\ud800b"


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("errors", ["class", "text"])
async def test_errors_of_tasks_and_threads_are_shown_with_their_texts_only_when_asked(
    begin: Begin, log_format: str, errors: str
) -> None:
    stream = begin(Logging(format=log_format, errors=errors))  # type: ignore[arg-type]

    def fail() -> None:
        raise ValueError("s3cret")

    async def fail_later() -> None:
        fail()

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    task = asyncio.get_running_loop().create_task(fail_later())
    await asyncio.wait([task])
    del task
    until = asyncio.get_running_loop().time() + 5
    while "never retrieved" not in said(stream) and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)
    text = said(stream)
    assert "never retrieved" in text
    assert "failed" in text
    assert text.count("ValueError") >= 2
    assert text.count("test_log_lines.py") >= 2
    assert ("s3cret" in text) == (errors == "text")
    if log_format == "json":
        assert [json.loads(line)["logger"] for line in text.splitlines()] == ["wqcore.thread", "asyncio"]


def test_what_the_program_logs_by_itself_is_shown_whole(begin: Begin) -> None:
    stream = begin(Logging(format="json"))
    try:
        raise ValueError("mine to show")
    except ValueError:
        logging.getLogger("shop").exception("it failed")
    assert "mine to show" in json.loads(said(stream))["exception"]


PROGRAM = """
import logging, wqcore
wqcore.set_up_logging(wqcore.Settings().logging)
logging.getLogger("shop").error("\\x1b[2Jwipe\\nand more", extra={"queue": "a\\x07"})
"""


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, None, True), (True, "", True), (True, "1", False), (False, None, False)]
)
def test_colours_are_for_terminals_and_a_text_cannot_steer_them(
    terminal: bool, no_color: str | None, coloured: bool
) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {} if no_color is None else {"NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment, check=True)
    os.write(theirs, b"end")  # a pseudo-terminal that is closed forgets what was written
    text = ""
    while not text.endswith("end"):
        text += os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert ("\x1b[31m" in text) == coloured
    assert text.startswith("{") == (not terminal)
    for character in ("\x1b[2J", "\x07"):
        assert character not in text
    if terminal:
        assert "\\x1b[2Jwipe" in text
        assert "queue=a\\x07" in text
