"""What a caller without the Python types must know of an args type, so that SQL and Python make the same keys of it.

Where the two could differ, SQL is given nothing to compute with: it then refuses, and asks the caller for the key.
"""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT

PLAIN_TYPES = (str, int, bool, type(None))
"""Their text in a key is the same for `str.format` and for SQL; a float is 1e+16 to one and 1e16 to the other."""
EMPTY = (list, dict, set, frozenset, tuple)


def required(args_type: type[msgspec.Struct]) -> list[str]:
    """The fields that args must have, by their names in JSON."""
    return [field.encode_name for field in msgspec.structs.fields(args_type) if field.required]


def defaults(args_type: type[msgspec.Struct]) -> str:
    """What Python writes for fields that are left out, as a JSON object; without those that a function makes anew."""
    config = args_type.__struct_config__
    found: dict[str, Any] = {}
    if isinstance(config.tag_field, str):
        found[config.tag_field] = config.tag
    if config.omit_defaults:
        return msgspec.json.encode(found).decode()
    for field in msgspec.structs.fields(args_type):
        if field.default is not NODEFAULT:
            found[field.encode_name] = field.default
        elif field.default_factory in EMPTY:
            found[field.encode_name] = field.default_factory()
    return msgspec.json.encode(found).decode()


def template_for_sql(template: str | None, args_type: type[msgspec.Struct]) -> str | None:
    """The template of a serial key over the names in JSON; None where SQL could not fill it in as Python does."""
    if template is None or not re.fullmatch(r"([^{}]|{\w+})*", template):
        return None
    fields = {field.name: field for field in msgspec.structs.fields(args_type)}
    left_out = args_type.__struct_config__.omit_defaults
    for name in re.findall(r"{(\w+)}", template):
        field = fields[name]
        if not _is_plain(field.type) or (left_out and not field.required) or field.default_factory is not NODEFAULT:
            return None
        if re.search("[{}]", field.encode_name):
            return None
    return re.sub(r"{(\w+)}", lambda found: f"{{{fields[found[1]].encode_name}}}", template)


def _is_plain(annotation: Any) -> bool:
    """Whether every value of the type is a text, a whole number, a boolean or None."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return all(_is_plain(member) for member in get_args(annotation))
    if origin is Literal:
        return all(type(value) in PLAIN_TYPES for value in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return _is_plain(annotation.__origin__)
    return annotation in PLAIN_TYPES or annotation is None
