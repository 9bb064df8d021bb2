"""Puts what was measured into a page, between two comments that say what belongs there, so that no number is typed."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil


def put_between(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`. Raises ValueError when the page has no such place."""
    before, opening, rest = page.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{page} has no place for {name}: <!-- {name} --> and <!-- /{name} -->")
    page.write_text(f"{before}{opening}\n{text}\n\n{closing}{after}", "utf-8")


def machine() -> str:
    """Where something was measured."""
    memory_gb = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} CPUs, {memory_gb:.0f} GB, Linux {platform.release().partition('-')[0]}"
