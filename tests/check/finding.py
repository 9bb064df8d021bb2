"""What a rule says: something that may not happen, and did."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that may not happen, and did."""

    rule: str
    job: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: " + (f"job {self.job}: " if self.job is not None else "") + self.text
