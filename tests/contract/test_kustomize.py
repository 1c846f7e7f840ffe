"""The kustomize overlays: kustomize builds them, and what they change is what their heads say."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from shared.connection_settings import KafkaSettings
from tests.contract.test_deploy import SERVICES
from tests.support.chart import ROOT, environments, pods, validate, workloads

OVERLAYS = ROOT / "deploy" / "k8s" / "kustomize"
KUSTOMIZE = ROOT / ".tools" / "bin" / "kustomize"


@cache
def built(name: str) -> list[dict[str, Any]]:
    """An overlay's objects; what kustomize says beside them, a warning, counts as an error."""
    assert KUSTOMIZE.exists(), "run make setup"
    done = subprocess.run(
        [KUSTOMIZE, "build", OVERLAYS / name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@pytest.mark.parametrize("name", sorted(path.name for path in OVERLAYS.iterdir()))
def test_every_object_is_valid_and_in_the_overlays_namespace(name: str) -> None:
    namespace = {"dev": "ratchet-dev", "prod": "ratchet"}[name]
    for item in built(name):
        validate(item)
        where = item["metadata"]["name" if item["kind"] == "Namespace" else "namespace"]
        assert where == namespace
    assert set(SERVICES) <= workloads(built(name)).keys()


def test_dev_is_one_of_each_without_gpus_on_one_broker() -> None:
    objects = built("dev")
    found = workloads(objects)
    assert {found[name]["spec"]["replicas"] for name in (*SERVICES, "cli")} == {1}
    assert "nvidia.com/gpu" not in yaml.safe_dump(objects)
    environment = environments(objects)
    assert environment["topics"]["RATCHET_KAFKA_REPLICATION"] == "1"
    assert environment["cli"]["RATCHET_KAFKA_REPLICATION"] == "1"
    assert environment["inference"]["RATCHET_INFERENCE_ENGINE_PROFILE"] == "cpu"
    assert not [one for one in objects if one["kind"] == "PodDisruptionBudget"]


def test_prod_comes_to_kafka_by_tls_with_files_that_are_mounted_and_brings_no_secret() -> None:
    objects = built("prod")
    assert "Secret" not in {one["kind"] for one in objects}
    for name, environment in environments(objects).items():
        KafkaSettings.model_validate(environment)
        assert environment["RATCHET_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
        pod = pods(objects)[name]
        (volume,) = (one for one in pod["volumes"] if one["name"] == "files-kafka")
        assert volume["secret"]["secretName"] == "ratchet-kafka"
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["image"].startswith("registry.example.com/ratchet/")
            (mount,) = (one for one in container["volumeMounts"] if one["name"] == "files-kafka")
            for variable in ("RATCHET_KAFKA_PASSWORD_FILE", "RATCHET_KAFKA_CA_FILE"):
                assert environment[variable].startswith(f"{mount['mountPath']}/")
