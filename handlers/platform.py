"""The settings of the platform, and the declaration of its tables: importing this makes masters migrate its schema."""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Final

import msgspec
from msgspec import Meta

import wqcore

SQL: Final = resources.files("handlers") / "sql"


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.platform]`.

    Attributes:
        schema (str): where the platform's tables are; default `platform`.
        connections_max (int): connections of one worker process to these tables, opened when needed; default 8.
        public_url (str): where the platform's HTTP side is reached from outside, without a slash at the end; it goes into
            the URLs that services deliver to. Default `http://127.0.0.1:3030`.
    """

    schema: Annotated[str, Meta(min_length=1, max_length=63)] = "platform"
    connections_max: Annotated[int, Meta(ge=1, le=100)] = 8
    public_url: Annotated[str, Meta(pattern="^https?://[^/]+(/.*[^/])?$")] = "http://127.0.0.1:3030"


settings = wqcore.settings_for("platform", Platform)


def _schema() -> str:
    return settings().schema


wqcore.migrations(SQL / "migrations", _schema)
