"""What all containers share: no rights, a root that cannot be written, secrets by reference, and a change of the configuration
changes the pod.

`enableServiceLinks` is off because Kubernetes otherwise puts variables like WQCORE_API_SERVICE_HOST into every pod beside a
Service of that name, and wqcore refuses variables that begin with WQCORE_ and name no option.
"""

from __future__ import annotations

import hashlib
from typing import Any

from wqcore.k8s import names
from wqcore.k8s.names import Object
from wqcore.k8s.plan import Plan

USER = 10001
CONFIG_FOLDER, CONFIG_FILE = "/etc/wqcore", "wqcore.toml"
CA_FOLDER = "/etc/wqcore-database"
READ_ONLY = 0o444
"""Root's, and nobody else may write it: else the configuration is refused, because the modules that it names are run."""


def arguments() -> list[str]:
    """The options that every command gets."""
    return ["--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"]


def resources(cpu: float, cpu_limit: float | None, memory_mb: int) -> Object:
    """Memory asked for is memory limited: nothing here can give memory back when the node runs short."""
    limits = {"memory": f"{memory_mb}Mi"}
    return {
        "requests": {"cpu": _cpu(cpu), **limits},
        "limits": limits if cpu_limit is None else {"cpu": _cpu(cpu_limit), **limits},
    }


def container(plan: Plan, name: str, module: str, args: list[str], **fields: Any) -> Object:
    """A container without rights; `secrets` (default: the program's own) fill its environment, later ones win."""
    secrets = fields.pop("secrets", [{"secretRef": {"name": names.secret(plan)}}])
    return {
        "name": name,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", module],
        "args": args,
        "envFrom": secrets,
        **fields,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # a start that fails says why on standard error; this shows its end in `kubectl describe`
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "database-ca", "mountPath": CA_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (the volume that is this container's only writable folder)
        ],
    }


def template(plan: Plan, labels: dict[str, str], one: Object, **fields: Any) -> Object:
    """The pod around a container."""
    return {
        "metadata": {"labels": labels, "annotations": {"wqcore/config-sha256": config_hash(plan)}},
        "spec": {
            "serviceAccountName": plan.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **fields,
            "containers": [one],
            "volumes": [
                {"name": "config", "configMap": {"name": names.config_map(plan), "defaultMode": READ_ONLY}},
                {
                    "name": "database-ca",
                    "secret": {"secretName": names.ca_secret(plan), "optional": True, "defaultMode": READ_ONLY},
                },
                {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            ],
        },
    }


def spread(labels: dict[str, str]) -> list[Object]:
    """Over zones and hosts, where there are several; a pod that finds no other place than beside its sister still runs."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
            "matchLabelKeys": ["pod-template-hash"],  # else pods of the old release count, and the new ones end up lopsided
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def disruption_budget(plan: Plan, what: str, labels: dict[str, str]) -> Object:
    """One pod at a time may be evicted. Not `minAvailable`: with one replica that would hold up a node's drain for ever."""
    return names.object_(
        plan, "policy/v1", "PodDisruptionBudget", names.part(plan, what), labels,
        spec={
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels},
        },
    )  # fmt: skip


def config_hash(plan: Plan) -> str:
    """Changes with the configuration, so that a change of it alone rolls the pods."""
    return hashlib.sha256(plan.config.encode()).hexdigest()[:32]


def _cpu(cores: float) -> str:
    return f"{cores:g}" if cores == int(cores) else f"{round(cores * 1000)}m"
