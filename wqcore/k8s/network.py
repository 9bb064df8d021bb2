"""Who may talk to whom: nobody reaches a pod but on its own port, and a pod reaches DNS, PostgreSQL, and what its work calls.

Requests of the kubelet (the probes) come from the pod's own node, which no policy holds back. Ports that a group calls are open
to public addresses only: users choose many of the URLs that are called, and what is private (a cloud's metadata at
169.254.169.254, other services of the cluster) is not theirs. A mail server or proxy inside needs a policy of yours in an
overlay.
"""

from __future__ import annotations

from wqcore.k8s import names
from wqcore.k8s.migration import PREREQUISITES
from wqcore.k8s.names import BEFORE, MIGRATION, PROGRAM, WORKER, Object
from wqcore.k8s.plan import Plan
from wqcore.settings import PRIVATE_NETWORKS

NODE_LOCAL_DNS = "169.254.20.10/32"
NOT_PUBLIC = [*PRIVATE_NETWORKS, "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8", "fe80::/10", "::1/128"]


def of_group(plan: Plan, name: str) -> Object:
    """Masters: metrics for the monitoring; nothing else comes in."""
    group = next(group for group in plan.groups if group.name == name)
    scraped = {
        "from": [_namespace(plan.settings.kubernetes.monitoring_namespace)],
        "ports": [_tcp(plan.watch_port)],
    }
    labels = names.selector(plan, WORKER, name)
    return _policy(plan, name, labels, [scraped], group.options.egress_ports)


def of_program(plan: Plan, what: str) -> Object:
    """Programs: requests to their port."""
    program = plan.settings.kubernetes.programs[what]
    labels = names.selector(plan, PROGRAM, what)
    return _policy(plan, what, labels, [{"ports": [_tcp(program.port)]}], program.egress_ports)


def of_migration(plan: Plan) -> Object:
    """The migration: the database, and nothing comes in."""
    labels = names.selector(plan, MIGRATION)
    policy = _policy(plan, "migrate", labels, [], [], annotations=PREREQUISITES)
    policy["metadata"]["labels"] = labels | BEFORE
    return policy


def _policy(
    plan: Plan, what: str, labels: dict[str, str], ingress: list[Object], ports: list[int], **fields: Object
) -> Object:
    egress: list[Object] = [
        {
            "to": [_namespace("kube-system"), {"ipBlock": {"cidr": NODE_LOCAL_DNS}}],
            "ports": [{"port": 53, "protocol": "UDP"}, _tcp(53)],
        },
        {
            "to": [{"ipBlock": {"cidr": cidr}} for cidr in plan.settings.kubernetes.database_networks],
            "ports": [_tcp(plan.settings.kubernetes.database_port)],
        },
    ]
    if ports:
        egress.append({"to": [_public("0.0.0.0/0"), _public("::/0")], "ports": [_tcp(port) for port in ports]})
    return names.object_(
        plan, "networking.k8s.io/v1", "NetworkPolicy", names.part(plan, what), labels,
        spec={
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
        **fields,
    )  # fmt: skip


def _public(everything: str) -> Object:
    return {"ipBlock": {"cidr": everything, "except": [cidr for cidr in NOT_PUBLIC if (":" in cidr) == (":" in everything)]}}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int) -> Object:
    return {"port": port, "protocol": "TCP"}
