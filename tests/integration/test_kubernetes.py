"""The chart on a real API server: each set of values is taken twice, and helm's own way back works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_chart_sets import CRDS
from tests.support.chart import CHART, named
from tests.support.chart_sets import SETS, objects_of
from tests.support.go import needs_go
from tests.support.kubernetes import KubernetesApi, Object

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_200), needs_go]

OF_THE_SERVER = "spec.SessionAffinity is ignored for headless services"
"""The server says so of each headless service, whose affinity it defaults itself."""
LEAST, SCALED_BY_OTHERS = 3, 5


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path_factory.mktemp("kubernetes")) as api:
        api.add_kinds(CRDS.values())
        yield api


def made(kubernetes: KubernetesApi, namespace: str) -> str:
    """A new namespace that admits only pods of the restricted standard, and warns of others."""
    levels = {f"pod-security.kubernetes.io/{how}": "restricted" for how in ("enforce", "warn")}
    metadata = {"name": namespace, "labels": levels}
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, "")
    return namespace


def test_every_set_is_taken_without_a_warning_and_a_second_time_changes_nothing(
    kubernetes: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    warned: list[str] = []
    for name in SETS:
        namespace = made(kubernetes, f"{unique}-{name}")
        objects = [
            {**item, "metadata": {**item["metadata"], "namespace": namespace}}
            for item in objects_of(name, tmp_path)
        ]
        taken = [kubernetes.apply(item, namespace) for item in objects]
        said = [text for _, warnings in taken for text in warnings]
        warned += [f"{name}: {text}" for text in said if OF_THE_SERVER not in text]
        again = [kubernetes.apply(item, namespace)[0] for item in objects]
        assert versions(again) == versions([item for item, _ in taken]), name
    assert warned == []


def versions(items: list[Object]) -> dict[str, str]:
    return {
        f"{item['kind']} {item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in items
    }


def test_an_upgrade_keeps_what_an_autoscaler_set_and_a_rollback_brings_the_spec_back(
    kubernetes: KubernetesApi, unique: str, tmp_path: Path
) -> None:
    namespace = made(kubernetes, unique)

    def helm(verb: str, *more: str | Path) -> None:
        said = kubernetes.helm(verb, "here", *more, namespace=namespace)
        assert [line for line in said if OF_THE_SERVER not in line] == []

    def spec() -> dict[str, Any]:
        return kubernetes.get(router, namespace)["spec"]

    scaled = ("--set", "services.router.autoscaling.enabled=true")
    helm("install", CHART, *scaled)
    router = named(objects_of("defaults", tmp_path), "StatefulSet", "here-router")
    installed = spec()
    assert installed["replicas"] == LEAST
    kubernetes.scale(router, namespace, SCALED_BY_OTHERS)
    helm("upgrade", CHART, *scaled)
    assert spec() == {**installed, "replicas": SCALED_BY_OTHERS}
    helm("upgrade", CHART, *scaled, "--set", "image.tag=next")
    assert spec()["template"] != installed["template"]
    assert spec()["replicas"] == SCALED_BY_OTHERS
    helm("rollback", "1")
    assert spec() == installed, "as many as then, and never fewer than the autoscaler's least"
