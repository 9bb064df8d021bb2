"""What comes before the masters: the configuration, the account, and the Job that migrates the database.

Order. Argo CD goes by waves: these objects first, then the Job, and the masters only when it has succeeded. Helm runs the Job
as a hook before it touches anything else, so in a chart its ConfigMap and ServiceAccount need the same hook and a lower weight.
kubectl applies everything at once: there it is done in steps (docs/howto/kubernetes.md). A master that comes too early refuses
to start, says that the schema is behind, and is started again.

The Job is deleted before it is made anew, because a Job cannot be changed. A migration that dies halfway leaves nothing of its
last step behind, and two at once wait for each other, so it is repeated without harm.
"""

from __future__ import annotations

from wqcore.k8s import names, pod
from wqcore.k8s.names import BEFORE, CONFIG, MIGRATION, Object
from wqcore.k8s.plan import Plan

BACKOFF_LIMIT = 4
DEADLINE_S = 1800
KEEP_S = 86_400
PREREQUISITES = {"argocd.argoproj.io/sync-wave": "-2"}
HOOKS = {
    "argocd.argoproj.io/hook": "Sync",
    "argocd.argoproj.io/sync-wave": "-1",
    "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
    "helm.sh/hook": "pre-install,pre-upgrade",
    "helm.sh/hook-weight": "0",
    "helm.sh/hook-delete-policy": "before-hook-creation",
}


def config_map(plan: Plan) -> Object:
    """The configuration file, byte for byte."""
    labels = names.selector(plan, CONFIG) | BEFORE
    return names.object_(
        plan, "v1", "ConfigMap", names.config_map(plan), labels,
        annotations=PREREQUISITES, data={pod.CONFIG_FILE: plan.config},
    )  # fmt: skip


def service_account(plan: Plan) -> Object:
    """An account without rights and without a token: nothing here talks to Kubernetes."""
    labels = names.selector(plan, CONFIG) | BEFORE
    return names.object_(
        plan, "v1", "ServiceAccount", plan.name, labels,
        annotations=PREREQUISITES, automountServiceAccountToken=False,
    )  # fmt: skip


def job(plan: Plan) -> Object:
    """`wqcore migrate`, as the owner of the schema where the Secret of that name says who that is."""
    labels = names.selector(plan, MIGRATION)
    one = pod.container(
        plan, "migrate", "wqcore", [*pod.arguments(), "migrate"],
        secrets=[
            {"secretRef": {"name": names.secret(plan)}},
            {"secretRef": {"name": names.migration_secret(plan), "optional": True}},
        ],
        resources=pod.resources(0.25, None, 256),
    )  # fmt: skip
    return names.object_(
        plan, "batch/v1", "Job", names.part(plan, "migrate"), labels | BEFORE, annotations=HOOKS,
        spec={
            "backoffLimit": BACKOFF_LIMIT,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEEP_S,
            "template": pod.template(plan, labels, one, restartPolicy="Never"),
        },
    )  # fmt: skip
