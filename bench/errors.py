"""What a benchmark cannot go on with."""

from __future__ import annotations


class BenchError(Exception):
    """A program did not do what it must, or there is none; the text says which, and what it wrote."""
