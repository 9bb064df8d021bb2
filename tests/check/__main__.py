"""`python -m tests.check FOLDER` judges a history that was kept; exit code 1 when something is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.check.history import read
from tests.check.verdict import findings, verdict


def main() -> int:
    history = read(Path(sys.argv[1]))
    found = findings(history)
    for finding in found:
        print(finding)
    print(verdict(history, found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
