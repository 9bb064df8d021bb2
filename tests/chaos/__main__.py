"""Runs one campaign: prints its seed first and one verdict last, and exits with 1 when something is wrong."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from types import FrameType

import msgspec

from tests.chaos.campaign import plan, run
from tests.chaos.faults import FAULTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults are injected")
    parser.add_argument("--faults", help=f"instead of the seed's, separated by commas: {', '.join(FAULTS)}")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = plan(given.seed)
    if given.faults:
        chosen = msgspec.structs.replace(chosen, faults=given.faults.split(","))
    print(f"faults: {', '.join(chosen.faults)}; {chosen.per_second:g} operations a second; {chosen.mix}", flush=True)
    result = run(chosen, given.seconds, say=lambda text: print(text, flush=True))
    for finding in result.findings:
        print(finding)
    if result.findings:
        print(f"the history is kept: python -m tests.check {result.folder}")
    print(result.verdict, flush=True)
    return 1 if result.findings else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; every process has been ended")
