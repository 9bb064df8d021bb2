"""Kubernetes objects for a configuration, without a cluster: `plan_of(folder, text)` and `objects(plan)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from wqcore.k8s import plan as planning
from wqcore.k8s import tree

ROOT = Path(__file__).parents[1]
PROD = (ROOT / "conf" / "prod.toml").read_text("utf-8")
NOT_OF_KUBERNETES = {"Kustomization", "Component"}

Object = dict[str, Any]


def plan_of(folder: Path, text: str = PROD, **options: Any) -> planning.Plan:
    """The plan of a configuration; a copy, because a checkout may belong to another user than the one who tests."""
    path = folder / "prod.toml"
    path.write_text(text, "utf-8")
    return planning.read(path, "conf/prod.toml", **options)


def documents(text: str) -> list[Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where the wheel has it
    return [document for document in yaml.load_all(text, Loader=loader) if document]


def objects(plan: planning.Plan, below: str = "") -> list[Object]:
    """All objects of the files whose path begins with `below`."""
    found = _parsed.setdefault((plan.config, plan.image, plan.namespace), {})
    if not found:
        found |= {path: documents(file.text) for path, file in tree.files(plan).items()}
    own = [one for path, documents in found.items() if path.startswith(below) for one in documents]
    return [one for one in own if one.get("kind", "Kustomization") not in NOT_OF_KUBERNETES]


_parsed: dict[tuple[str, str, str], dict[str, list[Object]]] = {}


def of_kind(found: list[Object], kind: str) -> list[Object]:
    return [one for one in found if one["kind"] == kind]


def pod_templates(found: list[Object]) -> list[Object]:
    return [one["spec"]["template"] for one in found if one["kind"] in ("Deployment", "Job")]
