"""The chart on a real control plane: each set of values is taken twice, installed, and upgraded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_chart_sets import CRDS
from tests.e2e.documented import ON_CLUSTER, commands, runs
from tests.support.chart import CHART, HELM, ROOT, named
from tests.support.chart_sets import SETS, objects_of
from tests.support.go import needs_go
from tests.support.kubernetes import VERSION, KubernetesApi, Object, built
from tests.support.upgrade.chart import previous_chart

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_800), needs_go]

OF_THE_SERVER = "spec.SessionAffinity is ignored for headless services"
"""The server says so of each headless service, whose affinity it defaults itself."""
LEAST, SCALED_BY_OTHERS = 3, 5
WAIT = ("--wait", "--wait-for-jobs", "--timeout", "4m")
PAGES = ("operations.md", "training.md", "runbooks.md")
UPGRADED = ((), ("production",), ("production", "strimzi"))
LAST = ("helm uninstall", "kubectl delete pvc")
FILES = (
    "kafka-password",
    "kafka-ca.crt",
    "redis-password",
    "redis-ca.crt",
    "signing",
    "engine-key",
)
AT = f"--kube-version {VERSION}"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def api(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    """A server that carries nothing out: what is applied stays as it is."""
    with KubernetesApi(tmp_path_factory.mktemp("api"), binary) as server:
        server.add_kinds(CRDS.values())
        yield server


@pytest.fixture(scope="module")
def cluster(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    """One whose controllers and scheduler make pods, which a played kubelet makes ready."""
    with KubernetesApi(tmp_path_factory.mktemp("cluster"), binary) as server:
        server.add_kinds(CRDS.values())
        with server.with_controllers():
            yield server


def made(kubernetes: KubernetesApi, namespace: str) -> str:
    """A new namespace that admits only pods of the restricted standard, and warns of others."""
    levels = {f"pod-security.kubernetes.io/{how}": "restricted" for how in ("enforce", "warn")}
    metadata = {"name": namespace, "labels": levels}
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, "")
    return namespace


def unexpected(said: list[str]) -> list[str]:
    return [line for line in said if OF_THE_SERVER not in line]


def test_every_set_is_taken_without_a_warning_and_a_second_time_changes_nothing(
    api: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    warned: list[str] = []
    for name in SETS:
        namespace = made(api, f"{unique}-{name}")
        objects = [
            {**item, "metadata": {**item["metadata"], "namespace": namespace}}
            for item in objects_of(name, tmp_path)
        ]
        taken = [api.apply(item, namespace) for item in objects]
        said = [text for _, warnings in taken for text in warnings]
        warned += [f"{name}: {text}" for text in unexpected(said)]
        again = [api.apply(item, namespace)[0] for item in objects]
        assert versions(again) == versions([item for item, _ in taken]), name
    assert warned == []


def versions(items: list[Object]) -> dict[str, str]:
    return {
        f"{item['kind']} {item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in items
    }


def test_kubectl_apply_changes_nothing_the_second_time(api: KubernetesApi, unique: str) -> None:
    folder = ROOT / "deploy" / "k8s"
    sources: list[tuple[str | Path, ...]] = [
        ("-f", folder / "manifests" / "ratchet.yaml", "-n", made(api, unique)),
        *(("-k", overlay) for overlay in sorted((folder / "kustomize").iterdir())),
    ]
    for source in sources:
        seen: list[dict[str, str]] = []
        for _ in range(2):
            applied, said = api.kubectl("apply", *source, "-o", "json")
            assert unexpected(said) == []
            seen.append(versions(json.loads("\n".join(applied))["items"]))
        assert seen[0] == seen[1], source


def test_every_set_is_installed_and_all_its_pods_are_admitted_scheduled_and_ready(
    cluster: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    said: list[str] = []
    for name, (profiles, values) in SETS.items():
        namespace = made(cluster, f"{unique}-{name}")
        for claim in claims_of_yours(values):
            cluster.apply(claim, namespace)
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        layers = [*(CHART / "profiles" / f"{one}.yaml" for one in profiles), file]
        given = [part for layer in layers for part in ("--values", layer)]
        lines = cluster.helm("install", "here", CHART, *given, *WAIT, namespace=namespace)
        said += [f"{name}: {line}" for line in unexpected(lines)]
        cluster.helm("uninstall", "here", namespace=namespace)
    assert said == []


def claims_of_yours(values: dict[str, Any]) -> list[Object]:
    """The claims that values name as there already."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": volume["persistentVolumeClaim"]["claimName"]},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        for volume in values.get("extraVolumes", [])
        if "persistentVolumeClaim" in volume
    ]


def test_an_upgrade_keeps_what_an_autoscaler_set_and_a_rollback_brings_the_spec_back(
    cluster: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    namespace = made(cluster, unique)

    def helm(verb: str, *more: str | Path) -> None:
        assert unexpected(cluster.helm(verb, "here", *more, *WAIT, namespace=namespace)) == []

    def spec() -> dict[str, Any]:
        return cluster.get(router, namespace)["spec"]

    scaled = ("--set", "services.router.autoscaling.enabled=true")
    helm("install", CHART, *scaled)
    router = named(objects_of("defaults", tmp_path), "StatefulSet", "here-router")
    installed = spec()
    assert installed["replicas"] == LEAST
    cluster.scale(router, namespace, SCALED_BY_OTHERS)
    helm("upgrade", CHART, *scaled)
    assert spec() == {**installed, "replicas": SCALED_BY_OTHERS}
    helm("upgrade", CHART, *scaled, "--set", "image.tag=next")
    assert spec()["template"] != installed["template"]
    assert spec()["replicas"] == SCALED_BY_OTHERS
    helm("rollback", "1")
    assert spec() == installed, "as many as then, and never fewer than the autoscaler's least"


def test_the_release_before_is_upgraded_and_its_claims_are_used_on(
    cluster: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    before = previous_chart(tmp_path)
    for number, profiles in enumerate(UPGRADED):
        namespace = made(cluster, f"{unique}-{number}")
        held: list[str] = []
        for verb, chart in (("install", before), ("upgrade", CHART)):
            given = [
                part for one in profiles for part in ("-f", chart / "profiles" / f"{one}.yaml")
            ]
            said = cluster.helm(verb, "here", chart, *given, *WAIT, namespace=namespace)
            assert unexpected(said) == []
            claims, _ = cluster.kubectl("get", "pvc", "-n", namespace, "-o", "name")
            assert claims
            assert held in ([], claims), "a claim more would be an empty volume"
            held = claims
        cluster.helm("uninstall", "here", namespace=namespace)


def test_a_move_to_a_newer_base_restarts_one_set_of_engines_at_a_time(
    cluster: KubernetesApi, unique: str
) -> None:
    """The steps of docs/operations.md, "Move to a newer base"."""
    namespace = made(cluster, unique)
    beside = ("--set", "model.next.base=newer,model.next.inference.replicas=2")
    moved = ("--set", "model.base=newer")

    def engines(verb: str, *values: str) -> dict[str, set[str]]:
        """The pods of both sets after the command, by their ids."""
        said = cluster.helm(verb, "here", CHART, *values, *WAIT, namespace=namespace)
        assert unexpected(said) == []
        return {name: running(cluster, namespace, name) for name in ("inference", "next-base")}

    before = engines("install")
    both = engines("upgrade", *beside)
    assert both["inference"] == before["inference"]
    assert len(both["next-base"]) == 2
    after = engines("upgrade", *beside, *moved)
    assert after["next-base"] == both["next-base"]
    assert not after["inference"] & both["inference"]
    assert engines("upgrade", *moved)["inference"] == after["inference"]
    cluster.helm("uninstall", "here", namespace=namespace)


def running(cluster: KubernetesApi, namespace: str, component: str) -> set[str]:
    """The ids of a component's pods that nobody has told to end."""
    selector = f"app.kubernetes.io/component={component}"
    found, _ = cluster.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
    pods = json.loads("\n".join(found))["items"]
    return {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def test_generated_keys_outlive_an_upgrade(cluster: KubernetesApi, unique: str) -> None:
    namespace = made(cluster, unique)
    found: list[list[str]] = []
    for verb in ("install", "upgrade"):
        cluster.helm(verb, "here", CHART, "--set", "generatedKeys=true", *WAIT, namespace=namespace)
        how = ("-n", namespace, "-o", "jsonpath={.data}")
        found.append(cluster.kubectl("get", "secret", "here-generated", *how)[0])
    assert found[0] == found[1]
    cluster.helm("uninstall", "here", namespace=namespace)


def test_the_documents_commands_for_a_cluster_end_well(
    cluster: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    """In their order, as an operator who begins with an empty namespace types them."""
    configuration = yaml.safe_load(cluster.kubeconfig.read_text())
    configuration["contexts"][0]["context"]["namespace"] = made(cluster, unique)
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(configuration))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for name in FILES:
        (tmp_path / name).write_text("x" * 32)
    helm = tmp_path / "bin" / "helm"
    helm.parent.mkdir()
    # A helm that Go built asks no server for its version when it renders alone.
    helm.write_text(f'#!/bin/sh\n[ "$1" != template ] || set -- "$@" {AT}\nexec {HELM} "$@"\n')
    helm.chmod(0o755)
    path = f"{helm.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(tmp_path / "kubeconfig")}
    found = [one for page in PAGES for one in commands(ROOT / "docs" / page)]
    found = [one for one in found if runs(one, ON_CLUSTER)]
    for command in sorted(found, key=lambda one: one.text.startswith(LAST)):
        text = command.text.replace("FOLDER", "1f")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command.page}: {text}\n{done.stdout}{done.stderr}"
