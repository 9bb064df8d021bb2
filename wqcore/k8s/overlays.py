"""Overlays: one folder a place, written once and then yours. They say what differs there: namespace, image, size, components."""

from __future__ import annotations

from wqcore.k8s import names
from wqcore.k8s.names import WORKER, Object
from wqcore.k8s.plan import Plan

STAGING = """\
- op: replace
  path: /spec/replicas
  value: 1
"""


def namespace(plan: Plan, place: str) -> Object:
    """The namespace, in which only pods without rights are let in."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": in_(plan, place), "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }


def in_(plan: Plan, place: str) -> str:
    """The name of the namespace of a place."""
    return plan.namespace if place == "production" else f"{plan.namespace}-{place}"


def kustomization(plan: Plan, place: str) -> Object:
    """What the place changes."""
    found: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": in_(plan, place),
        "resources": ["namespace.yaml", "../../base"],
    }
    image, _, tag = plan.image.rpartition(":")
    changed = {"name": image or plan.image, "newName": f"registry.example.com/{names.secret(plan)}"}
    found["images"] = [changed | ({"newTag": tag} if image else {})]
    if place == "production":
        return found | {"components": ["../../components/keda", "../../components/monitoring"]}
    selector = ",".join(f"{key}={value}" for key, value in names.selector(plan, WORKER).items())
    return found | {"patches": [{"target": {"kind": "Deployment", "labelSelector": selector}, "patch": STAGING}]}
