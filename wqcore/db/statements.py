"""SQL files of a folder, each one statement, with the schema's name put in as a quoted identifier.

The tokens `{schema}` and `{schema_literal}`, and those that a program names itself, are the only substitutions; values
are psycopg parameters (`%(name)s`). Comments are stripped on loading: psycopg remembers how to convert a statement only
up to 4,096 characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType

from psycopg import sql

_FOLDER = resources.files("wqcore.db") / "sql"


NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Statements:
    """The statements of one folder for one schema: `statements["turn"]` is `turn.sql` as bytes, ready to execute.

    Args:
        schema (str): what `{schema}` stands for; quoted where it is put in.
        folder (Traversable | None): where the files are, e.g. `importlib.resources.files("shop") / "sql"`; None: wqcore's.
        names (mapping of str to str): further tokens and the identifiers that they stand for, e.g. `{"wqcore": "wqcore"}`
            for a statement that calls `{wqcore}.enqueue(…)`.
    """

    def __init__(
        self, schema: str, folder: Traversable | None = None, *, names: Mapping[str, str] = NO_NAMES
    ) -> None:
        self.schema = schema
        self._folder = _FOLDER if folder is None else folder
        self._names = names
        self._texts: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        """The statement of `<name>.sql`. Raises FileNotFoundError."""
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = compose(_read(self._folder, name), self.schema, self._names)
        return text


def names() -> list[str]:
    """The names of all statements."""
    return sorted(entry.name[:-4] for entry in _FOLDER.iterdir() if entry.name.endswith(".sql"))


def compose(text: str, schema: str, names: Mapping[str, str] = NO_NAMES) -> bytes:
    """`text` with `{schema}` replaced by the quoted schema name, `{schema_literal}` by the name as a literal, and each
    name of `names` by its quoted identifier."""
    for token, name in names.items():
        text = text.replace(f"{{{token}}}", sql.Identifier(name).as_string(None))
    text = text.replace("{schema_literal}", sql.Literal(schema).as_string(None))
    return text.replace("{schema}", sql.Identifier(schema).as_string(None)).encode()


def without_comments(text: str) -> str:
    """`text` without `--` comments, indents and blank lines. Our SQL has no `--` inside a literal; a test holds that."""
    lines = (line.split("--")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _read(folder: Traversable, name: str) -> str:
    return without_comments((folder / f"{name}.sql").read_text("utf-8"))
