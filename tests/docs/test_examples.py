"""Every example of the documentation that says it is a program runs, by itself, on an empty database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLE = re.compile(r"^```python\n(# example: (?P<name>[^\n]+)\n.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE_LIMIT_S = 30.0
START_S = 30.0
"""What a slow machine may need to start Python on top of the limit that an example has to keep."""


class Example(NamedTuple):
    """A fenced block whose first line is `# example: <name>`."""

    page: str
    name: str
    line: int
    program: str


def examples(page: Path) -> list[Example]:
    text = page.read_text("utf-8")
    return [
        Example(str(page.relative_to(ROOT)), found["name"], text.count("\n", 0, found.start()) + 1, found[1])
        for found in EXAMPLE.finditer(text)
    ]


EXAMPLES = [example for page in PAGES for example in examples(page)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{Path(example.page).stem}:{example.name}")
def test_the_example_runs_as_a_program_of_its_own(example: Example, empty_dsn: str, tmp_path: Path) -> None:
    file = tmp_path / (re.sub(r"\W+", "_", example.name) + ".py")
    # the lines of the page, so that a traceback points into it
    file.write_text("\n" * example.line + example.program, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WQCORE_")}
    environment |= {
        "WQCORE_DATABASE__DSN": empty_dsn,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
    }
    try:
        run = subprocess.run(
            [sys.executable, file.name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=EXAMPLE_LIMIT_S + START_S,
        )
    except subprocess.TimeoutExpired as error:
        output = error.output.decode() if isinstance(error.output, bytes) else error.output or ""
        pytest.fail(f"{example.page}:{example.line}: {example.name} did not end in time\n{output}", pytrace=False)
    if run.returncode:
        pytest.fail(
            f"{example.page}:{example.line}: {example.name} exited with {run.returncode}\n{run.stdout}", pytrace=False
        )


def test_no_two_examples_of_a_page_have_one_name() -> None:
    names = [(example.page, example.name) for example in EXAMPLES]
    assert len(names) == len(set(names))


OF_COMMANDS = {"command-line", "doctor", "metrics-and-health"}
"""Pages about commands, files and ports, which have tests of their own: there is no program to write."""


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "howto").glob("*.md")), ids=lambda page: page.stem)
def test_every_how_to_has_an_example_that_runs(page: Path) -> None:
    if page.stem in OF_COMMANDS:
        assert not examples(page), f"{page.stem} has an example: take it off the list"
        return
    assert examples(page), f"{page.relative_to(ROOT)}: write a ```python block that begins with `# example: <name>`"
