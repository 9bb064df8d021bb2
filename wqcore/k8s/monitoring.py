"""What Prometheus needs to find the masters: a Service without an address over all of them, and a ServiceMonitor for that.

Pods count before they are ready and while they drain: those are the minutes that one wants to see.
"""

from __future__ import annotations

from wqcore.k8s import names
from wqcore.k8s.names import GROUP, WORKER, Object
from wqcore.k8s.plan import Plan

SCRAPE_S = 15


def service(plan: Plan) -> Object:
    """All masters of all groups, by their addresses."""
    return names.object_(
        plan, "v1", "Service", names.part(plan, "watch"), _labels(plan),
        spec={
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(plan, WORKER),
            "ports": [{"name": "watch", "port": plan.watch_port, "targetPort": "watch"}],
        },
    )  # fmt: skip


def service_monitor(plan: Plan) -> Object:
    """`/metrics` of each of them, with the label of its group."""
    return names.object_(
        plan, "monitoring.coreos.com/v1", "ServiceMonitor", names.part(plan, "watch"), _labels(plan),
        spec={
            "selector": {"matchLabels": _labels(plan)},
            "podTargetLabels": [GROUP],
            "endpoints": [{"port": "watch", "path": "/metrics", "interval": f"{SCRAPE_S}s", "scrapeTimeout": "10s"}],
        },
    )  # fmt: skip


def _labels(plan: Plan) -> dict[str, str]:
    return names.selector(plan, "watch")
