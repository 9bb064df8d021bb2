"""What `wqcore k8s` makes of conf/prod.toml fits Kubernetes' schemas, its own parts, and the configuration."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest

from tests.fix_k8s import PROD, Object, objects, of_kind, plan_of, pod_templates
from wqcore.errors import ConfigError
from wqcore.k8s import plan as planning
from wqcore.k8s import pod, scaling
from wqcore.settings import load

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
DSN = {"WQCORE_DATABASE__DSN": "postgresql://x"}
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
"""The first one whose pods can sleep before they end without a program for it being in the image, and the last one known."""

CUSTOM = {
    "ScaledObject": {
        "": {"scaleTargetRef", "pollingInterval", "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers"},
        "fallback": {"failureThreshold", "replicas", "behavior"},
        "triggers": {"type", "metricType", "metadata", "authenticationRef"},
    },
    "TriggerAuthentication": {"": {"secretTargetRef"}, "secretTargetRef": {"parameter", "name", "key"}},
    "ServiceMonitor": {"": {"selector", "podTargetLabels", "endpoints"}},
}
"""Fields that the schemas of KEDA 2.17 and of the Prometheus operator have; the package that validates has none of others'."""


@pytest.fixture
def plan(tmp_path: Path) -> planning.Plan:
    return plan_of(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_in_the_strict_schema_of_its_version(plan: planning.Plan, version: str) -> None:
    kinds = set()
    for one in objects(plan):
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, version, strict=True)
            kinds.add(one["kind"])
    assert kinds == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Job", "Namespace", "NetworkPolicy", "PodDisruptionBudget",
        "Service", "ServiceAccount",
    }  # fmt: skip


def test_objects_of_extensions_use_only_fields_that_their_schemas_have(plan: planning.Plan) -> None:
    seen = set()
    for one in objects(plan):
        for path, known in CUSTOM.get(one["kind"], {}).items():
            seen.add(one["kind"])
            found = one["spec"][path] if path else one["spec"]
            for table in found if isinstance(found, list) else [found]:
                assert set(table) <= known, (one["kind"], path)
    assert seen == set(CUSTOM)


def test_each_queue_of_the_configuration_is_run_by_exactly_one_deployment(plan: planning.Plan, tmp_path: Path) -> None:
    run: list[str] = []
    for one in of_kind(objects(plan, "base"), "Deployment"):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        if "--group" in container["args"]:
            group = container["args"][container["args"].index("--group") + 1]
            settings = load(tmp_path / "prod.toml", environ=DSN, overrides={"process.group": group})
            run += settings.queues_here()
    assert sorted(run) == sorted(tomllib.loads(PROD)["queues"])


def test_a_pod_is_killed_only_after_all_that_a_drain_may_take(tmp_path: Path) -> None:
    text = PROD.replace("[process]\n", "[process]\ndrain_timeout_s = 500.5\ncancel_grace_s = 12\n")
    for one in of_kind(objects(plan_of(tmp_path, text), "base"), "Deployment"):
        spec = one["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        if container["name"] == "master":
            assert spec["terminationGracePeriodSeconds"] == 513 + planning.DRAIN_MARGIN_S
            assert spec["terminationGracePeriodSeconds"] > 500.5 + 12 + 15  # as reference.toml asks for
            assert "lifecycle" not in container
        else:
            before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert spec["terminationGracePeriodSeconds"] >= before + 30 + 5


def test_the_start_may_take_as_long_as_the_configuration_allows_and_a_tree_that_hangs_is_not_drained(tmp_path: Path) -> None:
    text = PROD.replace("[process]\n", "[process]\nboot_timeout_s = 100\n")
    for container in _masters(objects(plan_of(tmp_path, text), "base")):
        start, live = container["startupProbe"], container["livenessProbe"]
        assert start["failureThreshold"] * start["periodSeconds"] >= 100 * 3  # one module, the start hooks, and some more
        assert live["terminationGracePeriodSeconds"] < 30
        assert (start["httpGet"]["path"], live["httpGet"]["path"]) == ("/livez", "/livez")
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_names_are_dns_labels_that_leave_room_for_a_pods_suffix(tmp_path: Path) -> None:
    odd = ["UPPER", "upper", "a b", "a_b", "x" * 100, "x" * 101, "Grüße; rm -rf", "-", "watch-", "ünï"]
    text = PROD + "".join(f'\n[queues."q{number}"]\ngroup = "{group}"\n' for number, group in enumerate(odd))
    found = objects(plan_of(tmp_path, text))
    for one in found:
        name = one["metadata"]["name"]
        assert DNS_LABEL.fullmatch(name), name
        assert len(name) <= (46 if one["kind"] == "Deployment" else 63)
        for value in one["metadata"].get("labels", {}).values():
            assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value), value
    keys = [(one["kind"], one["metadata"]["name"]) for one in found if one["kind"] != "Namespace"]
    assert len(keys) == len(set(keys))
    assert len(of_kind(found, "Deployment")) == 5 + len(odd)


def test_two_things_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    text = PROD.replace('group = "internal"', 'group = "api"').replace("groups.internal", "groups.api")
    with pytest.raises(ConfigError, match=r"'api'.*group.*program"):
        plan_of(tmp_path, text)
    with pytest.raises(ConfigError, match="migrate"):
        plan_of(tmp_path, PROD.replace('"internal"', '"migrate"').replace("groups.internal", "groups.migrate"))


def test_every_selector_finds_the_pods_it_is_for_and_no_others(plan: planning.Plan) -> None:
    found = objects(plan)
    pods = {id(one): one["metadata"]["labels"] for one in pod_templates(found)}
    for one in found:
        spec = one.get("spec", {})
        if one["kind"] == "Deployment":
            wanted = spec["selector"]["matchLabels"]
            assert _selected(wanted, pods) == {id(spec["template"])}
            for constraint in spec["template"]["spec"]["topologySpreadConstraints"]:
                assert constraint["labelSelector"]["matchLabels"] == wanted
        elif one["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            chosen = spec["selector" if one["kind"] == "PodDisruptionBudget" else "podSelector"]["matchLabels"]
            assert len(_selected(chosen, pods)) == 1
    assert {len(_selected(one["spec"]["selector"], pods)) for one in of_kind(found, "Service")} == {1, 4}
    policies = of_kind(found, "NetworkPolicy")
    assert set().union(*(_selected(one["spec"]["podSelector"]["matchLabels"], pods) for one in policies)) == set(pods)
    (monitor,) = of_kind(found, "ServiceMonitor")
    monitored = [
        one for one in of_kind(found, "Service")
        if one["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    ]  # fmt: skip
    assert [one["metadata"]["name"] for one in monitored] == ["wqcore-watch"]
    assert monitored[0]["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]


def test_what_is_applied_before_the_rest_is_all_that_the_migration_needs(plan: planning.Plan) -> None:
    before = [one for one in objects(plan) if one["metadata"].get("labels", {}).get("wqcore/phase") == "migration"]
    assert sorted(one["kind"] for one in before) == ["ConfigMap", "Job", "NetworkPolicy", "ServiceAccount"]
    (job,), waves = of_kind(before, "Job"), {}
    for one in before:
        waves[one["kind"]] = int(one["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
    assert waves.pop("Job") == -1
    assert set(waves.values()) == {-2}
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == of_kind(before, "ServiceAccount")[0]["metadata"]["name"]
    assert spec["volumes"][0]["configMap"]["name"] == of_kind(before, "ConfigMap")[0]["metadata"]["name"]
    assert spec["containers"][0]["args"][-1] == "migrate"
    secrets = [one["secretRef"]["name"] for one in spec["containers"][0]["envFrom"]]
    assert secrets == ["wqcore", "wqcore-migrations"]  # in this order: the owner's DSN is put over the masters'


def test_scalers_scale_a_deployment_that_exists_and_never_to_none(plan: planning.Plan) -> None:
    deployments = {one["metadata"]["name"]: one for one in of_kind(objects(plan, "base"), "Deployment")}
    scalers = of_kind(objects(plan), "ScaledObject") + of_kind(objects(plan), "HorizontalPodAutoscaler")
    assert len(scalers) == 8
    for one in scalers:
        spec = one["spec"]
        target = deployments[spec["scaleTargetRef"]["name"]]
        least = spec.get("minReplicaCount", spec.get("minReplicas"))
        assert 1 <= least == target["spec"]["replicas"]


def test_the_metric_that_the_autoscaler_reads_is_made_of_metrics_that_masters_have() -> None:
    exposition = pytest.importorskip("wqcore.watch.exposition", reason="NOT TESTED: masters have no metrics")
    (rule,) = scaling.adapter_rules()["rules"]["external"]
    asked = set(re.findall(r"wqcore_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert asked <= {metric.name for metric in exposition.METRICS if "queue" in metric.labels}


def test_no_pod_has_any_right(plan: planning.Plan) -> None:
    """As the Pod Security Standard `restricted` asks, and beyond it."""
    templates = pod_templates(objects(plan))
    assert len(templates) == 6
    for template in templates:
        spec = template["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"},
        }  # fmt: skip
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume} == {"tmp"}
    (account,) = of_kind(objects(plan), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_variables_that_kubernetes_makes_of_services_do_not_stop_a_master(plan: planning.Plan, tmp_path: Path) -> None:
    """Beside a Service `wqcore-api` every pod gets WQCORE_API_SERVICE_HOST, unless it asks for none."""
    with pytest.raises(ConfigError, match="WQCORE_API_SERVICE_HOST"):
        load(tmp_path / "prod.toml", environ=DSN | {"WQCORE_API_SERVICE_HOST": "10.0.0.1"})
    assert [template["spec"]["enableServiceLinks"] for template in pod_templates(objects(plan))] == [False] * 6


def test_workers_are_replaced_before_the_kernel_kills_the_container(plan: planning.Plan, tmp_path: Path) -> None:
    for container in _masters(objects(plan, "base")):
        group = container["args"][-1]
        processes = next(one.processes for one in plan.groups if one.name == group)
        (soft,) = [int(one["value"]) for one in container["env"] if one["name"] == "WQCORE_PROCESS__MEMORY_SOFT_MB"]
        limit = container["resources"]["limits"]["memory"]
        assert int(limit.removesuffix("Mi")) > 160 + (processes + 1) * soft
        assert container["resources"]["requests"]["memory"] == limit
        environ = DSN | {one["name"]: one["value"] for one in container["env"]}
        assert load(tmp_path / "prod.toml", environ=environ).process.memory_soft_mb == soft


def test_only_queues_with_a_process_for_each_core_have_a_cpu_limit_and_it_is_what_they_count(plan: planning.Plan) -> None:
    limits = {one["args"][-1]: one["resources"]["limits"].get("cpu") for one in _masters(objects(plan, "base"))}
    assert limits == {"default": "2", "events": None, "internal": None, "runs": None}
    assert next(group.processes for group in plan.groups if group.name == "default") == 2


def test_a_changed_configuration_changes_the_pods_and_reaches_them_byte_for_byte(tmp_path: Path) -> None:
    one, other = plan_of(tmp_path), plan_of(tmp_path, PROD + "\n# Grüße\n")
    (config,) = of_kind(objects(other), "ConfigMap")
    assert config["data"][pod.CONFIG_FILE] == PROD + "\n# Grüße\n"
    before, after = (
        {template["metadata"]["annotations"]["wqcore/config-sha256"] for template in pod_templates(objects(plan))}
        for plan in (one, other)
    )
    assert (len(before), len(after), before & after) == (1, 1, set())


def test_requests_go_out_only_where_the_group_makes_them_and_only_to_public_addresses(plan: planning.Plan) -> None:
    called = {}
    for one in of_kind(objects(plan), "NetworkPolicy"):
        rules = one["spec"]["egress"]
        assert [port["port"] for port in rules[0]["ports"]] == [53, 53]
        assert [port["port"] for port in rules[1]["ports"]] == [5432]
        called[one["metadata"]["name"]] = [port["port"] for rule in rules[2:] for port in rule["ports"]]
        for rule in rules[2:]:
            assert all("except" in to["ipBlock"] for to in rule["to"])
            assert "169.254.0.0/16" in rule["to"][0]["ipBlock"]["except"]
        ports = [port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]]
        assert ports == {"wqcore-api": [3030], "wqcore-migrate": []}.get(one["metadata"]["name"], [plan.watch_port])
    assert called == {
        "wqcore-api": [443], "wqcore-default": [443], "wqcore-events": [], "wqcore-internal": [443, 587],
        "wqcore-migrate": [], "wqcore-runs": [443],
    }  # fmt: skip


SECRET = "hunter2-canary"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (f'[database]\ndsn = "postgresql://u:{SECRET}@h/d"\n', "WQCORE_DATABASE__DSN"),
        (f'[app.smtp]\npassword = "{SECRET}"\n', "WQCORE_APP__SMTP__PASSWORD"),
        (f'[app.shop.payments]\napi_key = "{SECRET}"\n', "WQCORE_APP__SHOP__PAYMENTS__API_KEY"),
        (f'[app.secrets]\nkeys = "{SECRET}"\n', "WQCORE_APP__SECRETS__KEYS"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_shown(tmp_path: Path, lines: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        plan_of(tmp_path, f"{PROD}\n{lines}")
    assert SECRET not in str(refused.value)


def test_no_object_holds_what_the_environment_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WQCORE_DATABASE__DSN", f"postgresql://u:{SECRET}@h/d")
    monkeypatch.setenv("WQCORE_APP__SMTP__PASSWORD", SECRET)
    found = objects(plan_of(tmp_path))
    assert SECRET not in str(found)
    assert not of_kind(found, "Secret")
    for template in pod_templates(found):
        names = [one["secretRef"]["name"] for one in template["spec"]["containers"][0]["envFrom"]]
        assert names[0] == "wqcore"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("replicas_max = 16", "replicas_max = 17", "at most 16"),
        ("cpu = 2 ", "cpu = 3 ", r"3 processes each.*at most 5"),
        ("[kubernetes.groups.events]", "[kubernetes.groups.evnets]", "no such group; the groups are default, events"),
        ("replicas_max = 16", "replicas_max = 1", "more than its replicas_max"),
        ("[process]", '[process]\ngroup = "runs"', "--group"),
        ("[process]", '[database]\nmigrate = "auto"\n[process]', "the Job does it once"),
        ("[process]", "[database]\nembedded = true\n[process]", "no database of their own"),
    ],
)
def test_what_cannot_work_in_a_cluster_is_refused_with_the_fix(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in PROD
    with pytest.raises(ConfigError, match=says):
        plan_of(tmp_path, PROD.replace(old, new))


def _masters(found: list[Object]) -> list[Object]:
    masters = [one for template in pod_templates(found) for one in template["spec"]["containers"] if one["name"] == "master"]
    assert len(masters) == 4
    return masters


def _selected(labels: dict[str, str], pods: dict[int, dict[str, str]]) -> set[int]:
    return {number for number, own in pods.items() if own.items() >= labels.items()}
