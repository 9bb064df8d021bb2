"""deploy/ is what the command makes of conf/prod.toml; the command touches only its own files; overlays fit the base."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from tests.fix_k8s import PROD, ROOT, documents, plan_of
from wqcore.cli import front
from wqcore.k8s import pod, tree

DEPLOY = ROOT / "deploy"


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: list[str]
    err: str


@pytest.fixture
def k8s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`wqcore k8s` in a folder that has conf/prod.toml, and with an environment that must not matter."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prod.toml").write_text(PROD, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WQCORE_DATABASE__DSN", "postgresql://elsewhere")

    def run(*words: str) -> Done:
        done = CliRunner().invoke(front.app, ["k8s", "--config", "conf/prod.toml", *words], catch_exceptions=False)
        return Done(done.exit_code, done.stdout.split(), done.stderr)

    return run


def test_deploy_is_what_the_command_makes_and_the_check_names_what_is_not(
    tmp_path: Path, k8s: Callable[..., Done]
) -> None:
    for folder in ("base", "components", "overlays"):
        shutil.copytree(DEPLOY / folder, tmp_path / "deploy" / folder)
    done = k8s("--check")
    assert (done.code, done.out) == (0, []), done

    (tmp_path / "deploy/base/group-runs.yaml").write_text("# mine\n")
    (tmp_path / "deploy/base/config.yaml").unlink()
    (tmp_path / "deploy/base/group-old.yaml").write_text(f"{tree.GENERATED} from another: …\n")
    wrong = k8s("--check")
    names = ["deploy/base/config.yaml", "deploy/base/group-old.yaml", "deploy/base/group-runs.yaml"]
    assert (wrong.code, wrong.out) == (1, names)
    assert "run `python -m wqcore k8s --config conf/prod.toml`" in wrong.err

    assert (k8s().code, k8s("--check")) == (0, done)


def test_what_is_in_the_repository_is_all_that_the_command_makes_in_an_empty_folder(tmp_path: Path) -> None:
    made = tree.write(tree.files(plan_of(tmp_path)), tmp_path / "deploy")
    for path in made:
        assert (DEPLOY / path).read_text("utf-8") == (tmp_path / "deploy" / path).read_text("utf-8"), path
    kept = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert {path for path in kept if path.split("/")[0] in ("base", "components", "overlays")} == set(made)


def test_the_command_writes_only_what_changed_and_leaves_files_of_others_alone(tmp_path: Path) -> None:
    wanted, out = tree.files(plan_of(tmp_path)), tmp_path / "out"
    assert tree.write(wanted, out) == sorted(wanted)
    mine = [out / "base" / "ingress.yaml", out / "grafana" / "board.yaml", out / "overlays" / "production" / "mine.yaml"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("kind: Mine\n")
    (out / "overlays" / "production" / "kustomization.yaml").write_text("# changed by hand\n")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.yaml")}
    assert tree.write(wanted, out) == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.yaml")} == before

    renamed = plan_of(tmp_path, PROD.replace('"internal"', '"inside"').replace("groups.internal", "groups.inside"))
    changed = tree.write(tree.files(renamed), out)
    assert {"base/group-internal.yaml", "base/group-inside.yaml"} <= set(changed)
    assert not (out / "base" / "group-internal.yaml").exists()
    assert all(path.read_text() == "kind: Mine\n" for path in mine)
    assert (out / "overlays" / "production" / "kustomization.yaml").read_text() == "# changed by hand\n"


def test_image_and_namespace_of_the_command_line_win(tmp_path: Path, k8s: Callable[..., Done]) -> None:
    assert k8s("--image", "shop:7", "--namespace", "shop", "--out", "out").code == 0
    (job, _) = documents((tmp_path / "out/base/migration.yaml").read_text())
    assert job["metadata"]["namespace"] == "shop"
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "shop:7"


def test_a_configuration_that_cannot_be_rendered_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wqcore", "--config", "conf/none.toml", "k8s"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "deploy").exists()


def test_every_patch_and_every_resource_of_an_overlay_exists(tmp_path: Path) -> None:
    """As far as it shows without Kustomize: the next test has it done."""
    tree.write(tree.files(plan_of(tmp_path)), tmp_path)
    base = [one for path in (tmp_path / "base").glob("*.yaml") for one in documents(path.read_text())]
    kustomizations = list(tmp_path.rglob("kustomization.yaml"))
    assert len(kustomizations) == 6
    for path in kustomizations:
        (found,) = documents(path.read_text())
        for name in [*found["resources"], *found.get("components", [])] if "resources" in found else []:
            assert (path.parent / name).exists(), (path, name)
        for patch in found.get("patches", []):
            target = patch["target"]
            labels = dict(pair.split("=") for pair in target.get("labelSelector", "").split(",") if pair)
            hit = [
                one for one in base
                if one["kind"] == target["kind"] and target.get("name") in (None, one["metadata"]["name"])
                and one["metadata"]["labels"].items() >= labels.items()
            ]  # fmt: skip
            assert len(hit) == (4 if labels else 1), patch
            assert all("replicas" in one["spec"] for one in hit)


@pytest.mark.parametrize("place", ["base", "overlays/staging", "overlays/production"])
def test_kustomize_builds(place: str) -> None:
    build = _kustomize()
    done = subprocess.run([*build, str(DEPLOY / place)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = documents(done.stdout)
    namespace = {"overlays/staging": "wqcore-staging"}.get(place, "wqcore")
    assert {one["metadata"]["namespace"] for one in found if one["kind"] != "Namespace"} == {namespace}
    replicas = {
        one["metadata"]["name"]: one["spec"].get("replicas") for one in found if one["kind"] == "Deployment"
    }  # fmt: skip
    masters = {"base": 2, "overlays/staging": 1, "overlays/production": None}[place]  # None: the scaler's
    assert replicas == {"wqcore-api": 2} | {f"wqcore-{name}": masters for name in ("default", "events", "internal", "runs")}
    assert sum(one["kind"] == "ScaledObject" for one in found) == (4 if place == "overlays/production" else 0)


def test_the_hpa_component_takes_the_place_of_keda(tmp_path: Path) -> None:
    build = _kustomize()
    tree.write(tree.files(plan_of(tmp_path)), tmp_path)
    path = tmp_path / "overlays/production/kustomization.yaml"
    path.write_text(path.read_text().replace("components/keda", "components/hpa"))
    done = subprocess.run([*build, str(path.parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kinds = [one["kind"] for one in documents(done.stdout)]
    assert (kinds.count("HorizontalPodAutoscaler"), kinds.count("ScaledObject")) == (4, 0)


def _kustomize() -> list[str]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "--help"], capture_output=True, timeout=60).returncode:
            return command
    pytest.skip("NOT TESTED: neither kustomize nor kubectl is here; only that each patch has its target is")


def test_the_image_runs_the_master_as_process_1_without_rights() -> None:
    """What the Dockerfile says, and that what it copies is let through to it."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    steps = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    final = steps[max(number for number, line in enumerate(steps) if line.startswith("FROM")) :]
    said = {line.split()[0]: line.partition(" ")[2] for line in final}
    assert json.loads(said["ENTRYPOINT"]) == ["python", "-m", "wqcore"]  # the exec form, or a shell would be process 1
    assert json.loads(said["CMD"]) == ["--config", f"{pod.CONFIG_FOLDER}/{pod.CONFIG_FILE}"]
    assert said["USER"] == f"{pod.USER}:{pod.USER}"
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert not [line for line in final if "install" in line.replace("uninstall", "")]
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    copied = {word for line in steps if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)
