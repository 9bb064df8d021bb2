"""A group's masters: one Deployment, whose pods are one master each, and its disruption budget.

The order of a rolling change: a new pod starts, takes its share of the slots, is ready; an old one gets TERM and drains. No
preStop hook: no Service sends requests to a master, so nothing must be waited for before TERM, and a hook would only eat
the time in which running jobs may end.
"""

from __future__ import annotations

import math

from wqcore.k8s import names, pod
from wqcore.k8s.names import WORKER, Object
from wqcore.k8s.plan import Group, Plan

READY_PERIOD_S, LIVE_PERIOD_S, START_PERIOD_S = 5, 10, 2
LIVE_FAILURES = 3
NOT_LIVE_GRACE_S = 15
"""A tree that does not tick does not drain either: it is not given the time of a drain before it is killed."""


def objects(plan: Plan, group: Group) -> list[Object]:
    """The Deployment and its disruption budget."""
    labels = names.selector(plan, WORKER, group.name)
    return [deployment(plan, group), pod.disruption_budget(plan, group.name, labels)]


def deployment(plan: Plan, group: Group) -> Object:
    """Masters of one group."""
    labels = names.selector(plan, WORKER, group.name)
    return names.object_(
        plan, "apps/v1", "Deployment", names.part(plan, group.name), labels,
        spec={
            "replicas": group.options.replicas,
            "revisionHistoryLimit": 5,
            "minReadySeconds": 5,
            # new before old: the queue is never left with fewer seats
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": pod.template(
                plan, labels, master(plan, group),
                terminationGracePeriodSeconds=plan.drain_s,
                topologySpreadConstraints=pod.spread(labels),
            ),
        },
    )  # fmt: skip


def master(plan: Plan, group: Group) -> Object:
    """The container: its process 1 is the master."""
    told = {"WQCORE_PROCESS__MEMORY_SOFT_MB": str(group.memory_soft_mb), **plan.watch_told}
    return pod.container(
        plan, "master", "wqcore", [*pod.arguments(), "--group", group.name],
        env=[{"name": name, "value": value} for name, value in told.items()],
        ports=[{"name": "watch", "containerPort": plan.watch_port}],
        resources=pod.resources(group.options.cpu, group.cpu_limit, group.memory_mb),
        startupProbe=_probe("/livez", START_PERIOD_S, math.ceil(plan.boot_s / START_PERIOD_S)),
        livenessProbe=_probe("/livez", LIVE_PERIOD_S, LIVE_FAILURES) | {"terminationGracePeriodSeconds": NOT_LIVE_GRACE_S},
        readinessProbe=_probe("/readyz", READY_PERIOD_S, 2),
    )  # fmt: skip


def _probe(path: str, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "watch"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5 if period_s >= 5 else period_s,
        "failureThreshold": failures,
    }
