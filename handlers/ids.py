"""Ids of rows: unique without asking the database, and in the order in which they were made, to the millisecond.

`ids.new("run")` → `run_0mk3w8x1q…`: a prefix that says what it is, 48 bits of Unix time in milliseconds and 80 bits of
chance, in Crockford's base 32 (the layout of a ULID, https://github.com/ulid/spec), so new rows go to the end of an index.
"""

from __future__ import annotations

import secrets
import time

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def new(prefix: str) -> str:
    """A new id: the prefix, `_`, and 26 characters."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join([_DIGITS[number >> shift & 31] for shift in range(125, -1, -5)])
