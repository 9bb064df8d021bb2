"""Programs that answer HTTP beside the masters, from the same image: a Deployment, a Service, a disruption budget each.

They do have a preStop hook: the Service's endpoints are taken away while TERM is on its way, so for some seconds requests still
arrive at a pod that is to end. It waits for those, and then TERM lets what has begun be answered.
"""

from __future__ import annotations

import math

from wqcore.k8s import names, pod
from wqcore.k8s.names import PROGRAM, Object
from wqcore.k8s.plan import Plan
from wqcore.settings import KubernetesProgram

LEAVE_ENDPOINTS_S = 5
MARGIN_S = 5


def objects(plan: Plan, what: str, program: KubernetesProgram) -> list[Object]:
    """All that a program needs, but for its network policy."""
    labels = names.selector(plan, PROGRAM, what)
    return [deployment(plan, what, program), service(plan, what, program), pod.disruption_budget(plan, what, labels)]


def service(plan: Plan, what: str, program: KubernetesProgram) -> Object:
    """Where the program is reached within the cluster; an Ingress or Gateway of yours leads here and ends TLS."""
    labels = names.selector(plan, PROGRAM, what)
    return names.object_(
        plan, "v1", "Service", names.part(plan, what), labels,
        spec={
            "selector": labels,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}],
        },
    )  # fmt: skip


def deployment(plan: Plan, what: str, program: KubernetesProgram) -> Object:
    """The pods."""
    labels = names.selector(plan, PROGRAM, what)
    healthy = {"httpGet": {"path": program.health, "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}
    listens = {"tcpSocket": {"port": "http"}}
    one = pod.container(
        plan, "program", program.module, pod.arguments(),
        ports=[{"name": "http", "containerPort": program.port}],
        resources=pod.resources(program.cpu, None, program.memory_mb),
        startupProbe=listens | {"periodSeconds": 2, "failureThreshold": math.ceil(plan.boot_s / 2)},
        # its health depends on the database: an outage there takes the pod out of the Service, and does not restart it
        livenessProbe=listens | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        readinessProbe=healthy | {"failureThreshold": 2},
        lifecycle={"preStop": {"sleep": {"seconds": LEAVE_ENDPOINTS_S}}},
    )  # fmt: skip
    return names.object_(
        plan, "apps/v1", "Deployment", names.part(plan, what), labels,
        spec={
            "replicas": program.replicas,
            "revisionHistoryLimit": 5,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": pod.template(
                plan, labels, one,
                terminationGracePeriodSeconds=LEAVE_ENDPOINTS_S + math.ceil(program.drain_timeout_s) + MARGIN_S,
                topologySpreadConstraints=pod.spread(labels),
            ),
        },
    )  # fmt: skip
