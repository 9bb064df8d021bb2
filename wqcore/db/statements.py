"""The SQL files of `db/sql/`, each one statement, with the schema's name put in as a quoted identifier.

The tokens `{schema}` and `{schema_literal}` are the only substitutions; values are psycopg parameters (`%(name)s`).
Comments are stripped on loading: psycopg remembers how to convert a statement only up to 4,096 characters.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from psycopg import sql

_FOLDER = resources.files("wqcore.db") / "sql"


class Statements:
    """The statements of one schema: `statements["turn"]` is `db/sql/turn.sql` as bytes, ready to execute."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._texts: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = compose(_read(name), self.schema)
        return text


def names() -> list[str]:
    """The names of all statements."""
    return sorted(entry.name[:-4] for entry in _FOLDER.iterdir() if entry.name.endswith(".sql"))


def compose(text: str, schema: str) -> bytes:
    """`text` with `{schema}` replaced by the quoted schema name, and `{schema_literal}` by the name as a literal."""
    text = text.replace("{schema_literal}", sql.Literal(schema).as_string(None))
    return text.replace("{schema}", sql.Identifier(schema).as_string(None)).encode()


def without_comments(text: str) -> str:
    """`text` without `--` comments, indents and blank lines. Our SQL has no `--` inside a literal; a test holds that."""
    lines = (line.split("--")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


@cache
def _read(name: str) -> str:
    return without_comments((_FOLDER / f"{name}.sql").read_text("utf-8"))
