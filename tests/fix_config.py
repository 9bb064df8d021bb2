"""Gives a configuration file for the programs of the platform, on a test's database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handlers import secrets
from tests.fix_platform import QUEUES, Platform, app_tables


def write_config(platform: Platform, folder: Path, **app: dict[str, Any]) -> Path:
    """Writes it, with the key of the test's process, and `[app.<name>]` for each of `app`."""
    tables: dict[str, dict[str, Any]] = {"database": {"dsn": platform.dsn, "migrate": "auto"}}
    tables |= {f"queues.{name}": {"workers": workers, "slots": 4} for name, workers in QUEUES.items()}
    own = app_tables(secrets={"keys": secrets.settings().keys}, **app)
    tables |= {f"app.{name}": table for name, table in own.items()}
    path = folder / "platform.toml"
    # a JSON string, number or boolean is also TOML
    path.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in tables.items()
        ),
        "utf-8",
    )
    return path
