"""Imports go down only, and the master's side of the house never meets a database or an event loop."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import wqcore

ROOT = Path(wqcore.__file__).parent
FLOORS = {
    "job": 0, "outcome": 0, "errors": 0, "backoff": 0, "clock": 0, "version": 0, "ticks": 0,
    "trust": 0, "cpus": 0,
    "settings": 1, "described": 1, "catalog": 1, "resource": 1, "signature": 1, "around": 1, "hooks": 1, "recurring": 1,
    "db": 2,
    "line": 3, "upkeep": 3, "control": 3,
    "client": 4, "shard": 4, "keeper": 4,
    "proc": 5, "launch": 5, "attach": 5, "k8s": 5,
    "cli": 6, "": 6, "__main__": 6, "testing": 6,
}  # fmt: skip
SIDE_STAIR = "watch"
CLOSED = ("psycopg", "psycopg_pool", "asyncio", "uvloop", "handlers")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


def imports(path: Path) -> set[str]:
    """What a module imports when it is loaded, as dotted names; not what stands under TYPE_CHECKING or in functions."""
    found: set[str] = set()

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    walk(node.body)
                walk(node.orelse)
            elif isinstance(node, ast.Try):
                walk(node.body + node.orelse + node.finalbody + [line for h in node.handlers for line in h.body])
            elif isinstance(node, ast.ClassDef | ast.With):
                walk(node.body)

    walk(ast.parse(path.read_text("utf-8")).body)
    return found


def own(name: str) -> str | None:
    """The module of ours that an imported name leads to; None for others'."""
    if name != "wqcore" and not name.startswith("wqcore."):
        return None
    inner = name.removeprefix("wqcore").removeprefix(".")
    known = modules()
    while inner and inner not in known:
        inner = inner.rpartition(".")[0]
    return inner


def floor(module: str) -> int | None:
    room = module.split(".")[0]
    return None if room == SIDE_STAIR else FLOORS[room]


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module: str) -> None:
    here = floor(module)
    for name in imports(modules()[module]):
        target = own(name)
        if target is None or here is None:
            continue
        there = floor(target)
        same_room = target.split(".")[0] == module.split(".")[0]
        assert there is None or there < here or (there == here and (same_room or here in (0, 1, 5, 6))), (
            f"{module or '__init__'} (floor {here}) imports {target or '__init__'} (floor {there})"
        )


def test_line_and_upkeep_do_not_know_each_other() -> None:
    for room, other in (("line", "upkeep"), ("upkeep", "line")):
        for module, path in modules().items():
            if module.split(".")[0] == room:
                assert not [name for name in imports(path) if name.startswith(f"wqcore.{other}")], module


def test_nothing_below_the_master_climbs_the_side_stair_into_the_line() -> None:
    for module, path in modules().items():
        if module.split(".")[0] in ("line", "db", "job", "settings", "catalog", "client"):
            assert not [name for name in imports(path) if name.startswith("wqcore.watch")], module


@pytest.mark.parametrize("start", ["proc.master", "proc.children", "proc.board", "proc.signals", "proc.recycling"])
def test_the_master_meets_no_database_no_event_loop_and_no_handler(start: str) -> None:
    seen: dict[str, str] = {}
    todo = [(start, start)]
    while todo:
        module, way = todo.pop()
        if module in seen:
            continue
        seen[module] = way
        for name in imports(modules()[module]):
            assert name.split(".")[0] not in CLOSED, f"{way} imports {name}"
            target = own(name)
            if target is not None and target != "":
                # "import wqcore.proc.x" also loads the package wqcore.proc
                todo += [(part, f"{way} → {part}") for part in _with_packages(target)]


def _with_packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def test_handlers_use_the_public_names_only() -> None:
    for path in sorted((ROOT.parent / "handlers").rglob("*.py")):
        for name in imports(path):
            if name.split(".")[0] == "wqcore":
                assert name == "wqcore" or name.removeprefix("wqcore.") in wqcore.__all__, f"{path.name}: {name}"
