"""Names and labels. A name is a DNS label that leaves room for what Kubernetes appends to it, and no two groups share one."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from wqcore.k8s.plan import Plan

NAME_CHARS_MAX = 46
"""A pod of a Deployment has 17 more ("-" and 10 of the template's hash, "-" and 5); 63 is what a host name may have, and the
host name is what `wqcore status` shows."""

Object = dict[str, Any]

GROUP = "wqcore/group"
BEFORE = {"wqcore/phase": "migration"}
"""The label of what is applied before the rest: the migration and all that it needs."""
WORKER, PROGRAM, MIGRATION, CONFIG = "worker", "program", "migration", "config"


def part(plan: Plan, what: str) -> str:
    """`<name>-<what>` as a DNS label; with a hash in it where `what` had to be changed for that."""
    plain = re.sub(r"[^a-z0-9-]+", "-", what.lower()).strip("-")
    name = f"{plan.name}-{plain}" if plain else plan.name
    if plain == what and len(name) <= NAME_CHARS_MAX:
        return name
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARS_MAX - len(digest) - 1].rstrip('-')}-{digest}"


def file(plan: Plan, what: str) -> str:
    """What a file of this group or program is called."""
    return part(plan, what).removeprefix(f"{plan.name}-")


def secret(plan: Plan) -> str:
    """What masters and programs get in their environment."""
    return plan.name


def migration_secret(plan: Plan) -> str:
    """What the migration gets over that: the DSN of the schema's owner."""
    return f"{plan.name}-migrations"


def observer_secret(plan: Plan) -> str:
    """The DSN of the observer, under the key `dsn`."""
    return f"{plan.name}-observer"


def ca_secret(plan: Plan) -> str:
    """The authorities that vouch for the database server, under the key `ca.crt`."""
    return f"{plan.name}-database-ca"


def config_map(plan: Plan) -> str:
    """The configuration."""
    return f"{plan.name}-config"


def selector(plan: Plan, component: str, what: str | None = None) -> dict[str, str]:
    """The labels that never change, because a Deployment's selector cannot."""
    found = {"app.kubernetes.io/name": plan.name, "app.kubernetes.io/component": component}
    return found if what is None else found | {GROUP: file(plan, what)}


def object_(plan: Plan, api: str, kind: str, name: str, labels: dict[str, str], **fields: Any) -> Object:
    """An object of the plan's namespace; `annotations` go into its metadata."""
    annotations = fields.pop("annotations", None)
    metadata: Object = {"name": name, "namespace": plan.namespace, "labels": labels}
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}
