"""Masters by waiting work: a KEDA ScaledObject for each group, or a HorizontalPodAutoscaler that reads a metric. Never both.

Both ask for as many masters as the unfinished work of a group's busiest queue fills, at `jobs_per_worker` jobs a worker. Jobs
that run count too, so no master is taken away whose running jobs the others would have no seats for, and never the last ones: a
queue group without a master fires no schedules and keeps no history. Scaling down waits five minutes, then takes one master a
minute; each drains as in a deploy. When the database cannot be asked, the number of masters stays or rises to `replicas`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from psycopg import sql

from wqcore.db.statements import Statements
from wqcore.k8s import names
from wqcore.k8s.names import WORKER, Object
from wqcore.k8s.plan import Group, Plan

POLL_S = 15
SCALE_DOWN_AFTER_S = 300
UNFINISHED = "wqcore_unfinished"
"""What `adapter_rules` calls the metric that the HorizontalPodAutoscaler reads."""
BEHAVIOR = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}, {"type": "Pods", "value": 2, "periodSeconds": 30}],
        "selectPolicy": "Max",
    },
    "scaleDown": {
        "stabilizationWindowSeconds": SCALE_DOWN_AFTER_S,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    },
}


def trigger_authentication(plan: Plan) -> Object:
    """How KEDA gets the observer's DSN: by name, from a Secret of its own."""
    labels = names.selector(plan, WORKER)
    return names.object_(
        plan, "keda.sh/v1alpha1", "TriggerAuthentication", names.observer_secret(plan), labels,
        spec={"secretTargetRef": [{"parameter": "connection", "name": names.observer_secret(plan), "key": "dsn"}]},
    )  # fmt: skip


def scaled_object(plan: Plan, group: Group) -> Object:
    """KEDA asks the database itself. The query counts masters, so its target is one a master."""
    labels = names.selector(plan, WORKER, group.name)
    return names.object_(
        plan, "keda.sh/v1alpha1", "ScaledObject", names.part(plan, group.name), labels,
        spec={
            "scaleTargetRef": {"name": names.part(plan, group.name)},
            "pollingInterval": POLL_S,
            "minReplicaCount": group.options.replicas,
            "maxReplicaCount": group.options.replicas_max,
            "fallback": {
                "failureThreshold": 3,
                "replicas": group.options.replicas,
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": BEHAVIOR}},
            "triggers": [
                {
                    "type": "postgresql",
                    "metricType": "AverageValue",
                    "metadata": {"query": query(plan, group), "targetQueryValue": "1"},
                    "authenticationRef": {"name": names.observer_secret(plan)},
                }
            ],
        },
    )  # fmt: skip


def query(plan: Plan, group: Group) -> str:
    """`masters_wanted.sql` for a group, with its values written into it: a trigger has no parameters."""
    values = {
        "queues": _array(seats.queue for seats in group.seats),
        "jobs_per_master": _array(seats.jobs_per_master for seats in group.seats),
        "jobs_max": _array(seats.jobs_max for seats in group.seats),
    }
    text = Statements(plan.settings.database.schema)["masters_wanted"].decode()
    return re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], text)


def _array(values: Iterable[str | float]) -> str:
    return f"array[{', '.join(sql.Literal(value).as_string(None).strip() for value in values)}]"


def horizontal_autoscaler(plan: Plan, group: Group) -> Object:
    """One metric a queue; Kubernetes takes the one that asks for most."""
    labels = names.selector(plan, WORKER, group.name)
    return names.object_(
        plan, "autoscaling/v2", "HorizontalPodAutoscaler", names.part(plan, group.name), labels,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.part(plan, group.name)},
            "minReplicas": group.options.replicas,
            "maxReplicas": group.options.replicas_max,
            "behavior": BEHAVIOR,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": UNFINISHED, "selector": {"matchLabels": {"queue": seats.queue}}},
                        "target": {"type": "AverageValue", "averageValue": str(math.ceil(seats.jobs_per_master))},
                    },
                }
                for seats in group.seats
            ],
        },
    )  # fmt: skip


def adapter_rules() -> Object:
    """What prometheus-adapter needs to serve that metric, as values of its Helm chart. What waits, and whether the queue is
    paused, every master knows of the whole queue, so the greatest is taken; what it holds is its own, so that is added up."""
    queue = "{<<.LabelMatchers>>}"
    waits = f"max(wqcore_waiting{queue}) * (1 - max(wqcore_queue_paused{queue}))"
    held = f"sum(wqcore_running{queue}) + sum(wqcore_prefetched{queue})"
    return {
        "rules": {
            "external": [
                {
                    "seriesQuery": '{__name__="wqcore_waiting"}',
                    # the HPA's own namespace: staging and production have queues of the same names
                    "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
                    "name": {"as": UNFINISHED},
                    "metricsQuery": f"{waits} + {held}",
                }
            ]
        }
    }


def without_replicas(plan: Plan, group: Group) -> Object:
    """A patch: the number of pods is the scaler's. Left in the Deployment, it would be set back at every apply."""
    return {
        "target": {"group": "apps", "version": "v1", "kind": "Deployment", "name": names.part(plan, group.name)},
        "patch": "- op: remove\n  path: /spec/replicas\n",
    }
