"""What the deploy files name exists: targets, ports, paths, variables, topics, schemas."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from shared.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "k8s" / "helm" / "ratchet"
MANIFESTS = ROOT / "deploy" / "k8s" / "manifests" / "ratchet.yaml"
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    item for item in yaml.safe_load_all(MANIFESTS.read_text()) if item is not None
]
KUBERNETES = "1.32"
COMPOSE_SCHEMA = "github.com/compose-spec/compose-go/v2@v2.9.0"
SERVICES = ("router", "feedback", "rollout", "aggregator", "inference", "training")
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
# Read by the ratchet command, which has no ServiceSettings of its own.
CLI_VARIABLES = {"RATCHET_KAFKA_JOIN_PARTITIONS", "RATCHET_KAFKA_REPLICATION"}


def variables() -> set[str]:
    """Every RATCHET_… variable that some service's settings read."""
    found = set(CLI_VARIABLES)
    for service in SERVICES:
        module = importlib.import_module(f"services.{service}.settings")
        (settings,) = (
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, ServiceSettings)
            and value is not ServiceSettings
        )
        prefix = str(settings.model_config.get("env_prefix"))
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            choices = getattr(alias, "choices", [f"{prefix}{name}".upper()])
            found.update(str(choice) for choice in choices)
    return found


def named_variables(text: str) -> set[str]:
    return set(re.findall(r"\bRATCHET_[A-Z_]+\b", text))


@pytest.mark.parametrize(
    "path",
    [
        "docker-compose.yml",
        "deploy/docker/Dockerfile",
        "deploy/k8s/manifests/ratchet.yaml",
        "deploy/local/processes.yaml",
    ],
)
def test_every_variable_named_is_read_by_a_service(path: str) -> None:
    assert named_variables((ROOT / path).read_text()) <= variables()


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_what_compose_names_exists(name: str) -> None:
    service = COMPOSE["services"][name]
    if "build" in service:
        assert service["build"]["target"] in TARGETS
        assert (ROOT / service["build"]["dockerfile"]).exists()
    else:
        assert re.search(r":v?\d", service["image"]), "an image without a version"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source
    for other in service.get("depends_on", {}):
        assert other in COMPOSE["services"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "published beyond this host"


def test_compose_and_dockerfile_listen_where_the_services_do() -> None:
    exposed = dict(
        re.findall(r"^FROM \S+ AS (\S+)\n(?:(?!FROM).*\n)*?EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)
    )
    for service in SERVICES:
        settings = importlib.import_module(f"services.{service}.settings")
        (found,) = (
            value
            for value in vars(settings).values()
            if isinstance(value, type)
            and issubclass(value, ServiceSettings)
            and value is not ServiceSettings
        )
        port = found.model_fields["port"].default
        assert exposed[service] == str(port)
        assert VALUES["services"][service]["port"] == port


def test_what_the_dockerfile_copies_exists() -> None:
    for source in re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE):
        assert (ROOT / source.replace("${ML_REQUIREMENTS}", "ml.txt")).exists(), source


@pytest.mark.skipif(shutil.which("go") is None, reason="the compose schema comes as a Go module")
def test_compose_fits_its_schema() -> None:
    done = subprocess.run(
        ["go", "mod", "download", "-json", COMPOSE_SCHEMA],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd="/",
    )
    folder = Path(json.loads(done.stdout)["Dir"])
    schema = json.loads((folder / "schema" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


@pytest.mark.parametrize("item", OBJECTS, ids=lambda o: f"{o['kind']}/{o['metadata']['name']}")
def test_every_rendered_object_is_valid(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "item",
    [item for item in OBJECTS if item["kind"] in {"Deployment", "StatefulSet", "Job"}],
    ids=lambda o: o["metadata"]["name"],
)
def test_every_pod_is_confined_and_watched(item: dict[str, Any]) -> None:
    pod = item["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    # A Service named ratchet-router would set RATCHET_ROUTER_PORT=tcp://… in every pod beside it.
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["image"].split("/")[-1].split(":")[0] in TARGETS
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"requests", "limits"} <= container["resources"].keys()
    if item["kind"] != "Job":
        paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "startupProbe")}
        assert paths == {"/healthz"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claimed = {c["metadata"]["name"] for c in item["spec"].get("volumeClaimTemplates", [])}
        assert mounted == claimed | {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["default", "restore"])
def test_the_chart_brings_the_strategies_of_the_repository(name: str) -> None:
    path = ROOT / "deploy" / "local" / "strategies" / f"{name}.yaml"
    assert yaml.safe_load(VALUES["strategies"][f"{name}.yaml"]) == yaml.safe_load(path.read_text())
