"""What the deploy files name exists: targets, ports, paths, variables, topics, schemas."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.k8s.monitoring.boards import BOARDS
from services.cli.settings import DEFAULT_PORTS, load_settings, url_variable
from shared.detector_settings import DetectorSettings
from shared.settings import ServiceSettings
from tests.support.chart import environments

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "k8s" / "helm" / "ratchet"
MANIFESTS = ROOT / "deploy" / "k8s" / "manifests" / "ratchet.yaml"
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    item for item in yaml.safe_load_all(MANIFESTS.read_text()) if item is not None
]
KUBERNETES = "1.32"
COMPOSE_SCHEMA = ROOT / ".tools" / "compose-spec.json"
SERVICES = ("router", "feedback", "intake", "rollout", "aggregator", "inference", "training")
PACKAGES = {"intake": "services.feedback.intake"}
"""Packages of services that are no child of `services`; their image is their parent's."""
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
# Read by the ratchet command, which has no ServiceSettings of its own.
URLS = {
    url_variable(service): f"http://{service}:{port}" for service, port in DEFAULT_PORTS.items()
}
CLI_VARIABLES = {
    "RATCHET_API_KEY",
    "RATCHET_KAFKA_JOIN_PARTITIONS",
    "RATCHET_KAFKA_REPLICATION",
    *URLS,
}


def variables() -> set[str]:
    """Every RATCHET_… variable that a service's settings or the ratchet command read."""
    return CLI_VARIABLES | service_variables()


def service_variables(services: Iterable[str] = SERVICES) -> set[str]:
    """Those that the settings of some of these services read."""
    found: set[str] = set()
    for service in services:
        settings = settings_of(service)
        prefix = str(settings.model_config.get("env_prefix"))
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            choices = getattr(alias, "choices", [f"{prefix}{name}".upper()])
            found.update(str(choice) for choice in choices)
    return found


def by_default(environment: dict[str, Any], **given: str) -> dict[str, str]:
    """An environment of compose as it is with what is given, or else by its defaults."""

    def chosen(found: re.Match[str]) -> str:
        return given.get(found[1]) or found[2]

    return {
        name: re.sub(r"\$\{([A-Z_]+):?-([^}]*)\}", chosen, str(value))
        for name, value in environment.items()
    }


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings class of a service."""
    module = importlib.import_module(f"{PACKAGES.get(service, f'services.{service}')}.settings")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ServiceSettings)
        and value.__module__ == module.__name__
    )
    return found


def named_variables(text: str) -> set[str]:
    return set(re.findall(r"\bRATCHET_[A-Z_]+\b", text))


@pytest.mark.parametrize(
    "path",
    [
        "docker-compose.yml",
        "deploy/docker/Dockerfile",
        ".env.example",
        "deploy/k8s/helm/ratchet/templates/NOTES.txt",
        "deploy/k8s/helm/ratchet/values.yaml",
        "deploy/k8s/manifests/ratchet.yaml",
        "deploy/local/processes.yaml",
        "docs/runbooks.md",
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
        port = settings_of(service).model_fields["port"].default
        if service not in PACKAGES:
            assert exposed[service] == str(port)
        assert VALUES["services"][service]["port"] == port


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_metrics_where_the_chart_scrapes_them(service: str) -> None:
    package = PACKAGES.get(service, f"services.{service}")
    source = (ROOT / package.replace(".", "/") / "__main__.py").read_text()
    (serving,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "serve"
    )
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in serving.keywords}
    assert given["operations_port"].endswith(".operations_port")


def test_what_the_dockerfile_copies_exists() -> None:
    for source in re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE):
        assert (ROOT / source.replace("${ML_REQUIREMENTS}", "ml.txt")).exists(), source


def lines_of(target: str, instruction: str) -> list[str]:
    """What follows an instruction in a stage of the Dockerfile and those below it, lowest first."""
    stage = re.search(rf"^FROM (\S+) AS {target}\n((?:(?!FROM).*\n?)*)", DOCKERFILE, re.MULTILINE)
    if stage is None:
        return []
    here = re.findall(rf"^{instruction} ((?:.*\\\n)*.*)", stage[2], re.MULTILINE)
    return [*lines_of(stage[1], instruction), *(line.replace("\\\n", " ") for line in here)]


def environment_of(target: str) -> dict[str, str]:
    """The environment that an image sets."""
    pairs = (pair.partition("=") for line in lines_of(target, "ENV") for pair in line.split())
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize(
    "name", [name for name, one in COMPOSE["services"].items() if "build" in one]
)
def test_what_compose_builds_is_nobody_s_and_confined_and_watched(name: str) -> None:
    service = COMPOSE["services"][name]
    assert "user" not in service
    target = service["build"]["target"]
    assert lines_of(target, "USER")[-1] == "10001"
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    own = " ".join(service.get("healthcheck", {}).get("test", []))
    asked = own or " ".join(lines_of(target, "HEALTHCHECK"))
    if target == "cli":
        assert not asked, "a command ends by itself"
        return
    port = settings_of(name.removesuffix("-gpu")).model_fields["port"].default
    assert f"http://127.0.0.1:{port}/" in asked


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Named volumes of a compose service by where they are mounted."""
    pairs = (volume.split(":")[:2] for volume in service.get("volumes", []))
    return {target: source for source, target in pairs if not source.startswith("./")}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_write_to_its_volumes_and_its_home(service: str) -> None:
    # A named volume takes owner and mode of the image's folder; where there is none it is root's.
    made = re.findall(r"install -d -o 10001 -g 10001 (.+)", DOCKERFILE)
    owned = {folder for line in made for folder in line.split()}
    mounted = mounts(COMPOSE["services"][service])
    home = environment_of(COMPOSE["services"][service]["build"]["target"])["HOME"]
    assert mounted.keys() <= owned
    # The caches of vLLM, Triton and the hub's client lie under HOME.
    assert home in mounted
    (pod,) = (
        item["spec"]["template"]["spec"]
        for item in OBJECTS
        if item["kind"] in {"Deployment", "StatefulSet"}
        and item["metadata"]["name"] == f"ratchet-{service}"
    )
    (data,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "data")
    assert data["mountPath"] == home


def test_engine_and_trainer_share_what_they_download() -> None:
    for name in ("inference", "training"):
        service = COMPOSE["services"][name]
        assert mounts(service)[service["environment"]["HF_HOME"]] == "models"


def test_the_engine_finds_what_it_links_and_compiles_with() -> None:
    installed = re.findall(r"apt-get install (.+)", DOCKERFILE)
    assert {"libnuma1", "gcc", "libc6-dev"} <= {*re.findall(r"[\w-]+", " ".join(installed))}


@pytest.mark.parametrize(
    "path", ["deploy/docker/Dockerfile", "deploy/k8s/helm/ratchet/values.yaml"]
)
def test_the_storage_package_named_is_of_the_lock_s_fsspec(path: str) -> None:
    lock = (ROOT / "requirements" / "services.txt").read_text()
    pinned = re.findall(r"^fsspec==(\S+)", lock, re.MULTILINE)
    assert set(re.findall(r"\bs3fs==([\d.]+\d)", (ROOT / path).read_text())) == set(pinned)


def test_the_build_says_what_it_may_be_given() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    (services,) = (stage for stage in stages if " AS services-environment" in stage)
    assert 'ARG EXTRA_PACKAGES=""' in services
    given = {
        "BASE": "${BASE_IMAGE:-python:3.11-slim-bookworm}",
        "ML_REQUIREMENTS": "${ML_REQUIREMENTS:-ml.txt}",
    }
    more = {"inference": {}, "training": {"EXTRA_PACKAGES": "${EXTRA_PACKAGES:-}"}}
    cuda = {"ML_REQUIREMENTS": "ml-cuda.txt"}
    for name, own in more.items():
        assert COMPOSE["services"][name]["build"]["args"] == given | own
        assert COMPOSE["services"][f"{name}-gpu"]["build"]["args"] == given | own | cuda


@pytest.mark.parametrize("name", ["inference", "training"])
def test_each_profile_has_an_engine_and_a_trainer_at_one_address(name: str) -> None:
    cpu, gpu = COMPOSE["services"][name], COMPOSE["services"][f"{name}-gpu"]
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    assert gpu["networks"] == {"ratchet": {"aliases": [name]}}
    lock = gpu["build"]["args"]["ML_REQUIREMENTS"]
    assert (ROOT / "requirements" / lock).exists()
    assert lock != "ml.txt"
    assert gpu["build"]["target"] == cpu["build"]["target"] == name
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    # Both lie on the same volumes, so that a stack can change its profile.
    assert gpu["volumes"] == cpu["volumes"]
    differ = {"RATCHET_INFERENCE_ENGINE_PROFILE", "RATCHET_INFERENCE_GPU_MEMORY_RATIO"}
    changed = {
        key for key, text in gpu["environment"].items() if cpu["environment"].get(key) != text
    }
    assert changed == (differ if name == "inference" else set())


def test_only_engine_trainer_detector_tracker_and_command_wait_for_a_profile() -> None:
    waiting = {
        name: one["profiles"] for name, one in COMPOSE["services"].items() if "profiles" in one
    }
    assert waiting == {
        "cli": ["cli"],
        "detector": ["detector"],
        "inference": ["cpu"],
        "inference-gpu": ["gpu"],
        "mlflow": ["mlflow"],
        "training": ["cpu"],
        "training-gpu": ["gpu"],
    }
    for name, one in COMPOSE["services"].items():
        if "profiles" not in one:
            assert not waiting.keys() & one.get("depends_on", {}).keys(), name


def test_the_example_of_env_names_what_compose_asks_for_and_its_defaults() -> None:
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))
    assert given.pop("COMPOSE_PROFILES") == "cpu"
    text = (ROOT / "docker-compose.yml").read_text()
    defaults: list[tuple[str, str, str]] = re.findall(r"\$\{([A-Z_]+)(:?-)([^}]*)\}", text)
    assert given == {name: default for name, _, default in defaults}
    # Empty is no parser, and must not become the default.
    assert ("TOOL_PARSER", "-", "hermes") in defaults


def test_prometheus_of_compose_scrapes_every_service_and_grafana_shows_every_dashboard() -> None:
    docker = ROOT / "deploy" / "docker"
    prometheus = yaml.safe_load((docker / "prometheus.yml").read_text())
    targets = {
        one["job_name"]: one["static_configs"][0]["targets"] for one in prometheus["scrape_configs"]
    }
    for service in SERVICES:
        port = VALUES["services"][service]["port"]
        assert targets.pop(service) == [f"{service}:{port}"]
    assert targets == {"vllm": ["inference:8000"]}
    (rules,) = prometheus["rule_files"]
    mounted = dict(
        reversed(one.removesuffix(":ro").split(":"))
        for name in ("prometheus", "grafana")
        for one in COMPOSE["services"][name]["volumes"]
        if one.startswith("./")
    )
    assert list((ROOT / mounted[rules.rpartition("/")[0]]).glob("*.yml"))
    provider = yaml.safe_load((docker / "grafana" / "dashboards" / "ratchet.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert len(list((ROOT / mounted[folder]).glob("*.json"))) == len(BOARDS)
    source = yaml.safe_load((docker / "grafana" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_a_trainer_logs_where_env_names_a_tracker_by_a_client_of_the_lock_s_version() -> None:
    pinned = (ROOT / "requirements" / "mlflow.in").read_text().partition("mlflow==")[2].strip()
    for text in (ENV_EXAMPLE, (ROOT / "docker-compose.yml").read_text()):
        assert set(re.findall(r"mlflow-skinny==([\d.]+\d)", text)) == {pinned}
        assert f"mlflow/mlflow:v{pinned}" in text
    address = "http://mlflow:5000"
    assert f"MLFLOW_URL={address}" in ENV_EXAMPLE
    for name in ("training", "training-gpu"):
        environment = COMPOSE["services"][name]["environment"]
        assert environment["MLFLOW_TRACKING_URI"] == "${MLFLOW_URL:-}"
        assert environment["RATCHET_TRAINING_MLFLOW_PYTHON"] == "/opt/ratchet/bin/python"
    command = COMPOSE["services"]["mlflow"]["command"]
    hosts = dict(one.split("=", 1) for one in command if "=" in one)["--allowed-hosts"].split(",")
    assert address.removeprefix("http://") in hosts


@pytest.mark.parametrize("url", ["", "http://detector:3000"])
def test_a_detector_is_asked_by_every_service_where_env_names_it(url: str) -> None:
    detector = COMPOSE["services"]["detector"]
    assert str(detector["environment"]["PORT"]) == "3000"
    assert "DETECTOR_URL=http://detector:3000" in ENV_EXAMPLE
    for service in (*SERVICES, "cli"):
        given = by_default(COMPOSE["services"][service]["environment"], DETECTOR_URL=url)
        assert DetectorSettings.model_validate(given).detector_url == url, service


def test_kafka_is_reached_from_the_network_and_from_this_host() -> None:
    kafka = COMPOSE["services"]["kafka"]
    environment = kafka["environment"]
    listeners, advertised, protocols = (
        dict(re.split(r":(?://)?", item, maxsplit=1) for item in environment[name].split(","))
        for name in (
            "KAFKA_LISTENERS",
            "KAFKA_ADVERTISED_LISTENERS",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
        )
    )
    assert listeners.keys() == advertised.keys() | {"CONTROLLER"} == protocols.keys()
    assert environment["KAFKA_INTER_BROKER_LISTENER_NAME"] in advertised
    assert (
        advertised["PLAINTEXT"]
        == COMPOSE["services"]["router"]["environment"]["RATCHET_KAFKA_BOOTSTRAP"]
    )
    # README's client asks 127.0.0.1:9092 and is then sent to what is advertised there.
    assert advertised["HOST"] == "127.0.0.1:9092"
    assert kafka["ports"] == [f"127.0.0.1:9092{listeners['HOST']}"]


def test_the_ratchet_command_knows_every_service_and_no_service_minds() -> None:
    cli = COMPOSE["services"]["cli"]
    assert cli["profiles"] == ["cli"]
    assert "ports" not in cli
    assert dict(load_settings(by_default(cli["environment"])).urls) == {
        service: URLS[url_variable(service)] for service in DEFAULT_PORTS
    }
    configuration = environments(OBJECTS)["cli"]
    ports = {
        item["metadata"]["name"]: {port["port"] for port in item["spec"]["ports"]}
        for item in OBJECTS
        if item["kind"] == "Service"
    }
    for service in DEFAULT_PORTS:
        url = urlsplit(configuration[url_variable(service)])
        assert url.port in ports[str(url.hostname)]
    assert not URLS.keys() & service_variables()


def test_compose_fits_its_schema() -> None:
    assert COMPOSE_SCHEMA.exists(), "run make setup"
    schema = json.loads(COMPOSE_SCHEMA.read_text())
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
    for one in [container, *pod.get("initContainers", [])]:
        assert one["image"].split("/")[-1].split(":")[0] in TARGETS
        assert one["securityContext"]["readOnlyRootFilesystem"]
        assert {"requests", "limits"} <= one["resources"].keys()
    if item["metadata"]["labels"]["app.kubernetes.io/component"] in SERVICES:
        paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "startupProbe")}
        assert paths == {"/healthz"}
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claimed = {c["metadata"]["name"] for c in item["spec"].get("volumeClaimTemplates", [])}
        assert mounted == claimed | {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["default", "restore"])
def test_the_chart_brings_the_strategies_of_the_repository(name: str) -> None:
    path = ROOT / "services" / "rollout" / "strategies" / f"{name}.yaml"
    assert yaml.safe_load(VALUES["strategies"][f"{name}.yaml"]) == yaml.safe_load(path.read_text())


LOCKS = [one for one in (ROOT / "requirements").glob("*.txt") if one.name != "ml-overrides.txt"]


@pytest.mark.parametrize("lock", sorted(LOCKS), ids=lambda path: path.name)
def test_every_pin_of_a_lock_has_hashes_and_no_index(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)
    # One package with few others or none.
    small = {"arenakit.txt", "bench-smg.txt", "flink.txt", "grafana.txt"}
    assert len(entries) > 20 or lock.name in small
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text
    assert "index" not in re.sub(r"#.*", "", text)


def test_helm_renders_the_chart_without_being_told_a_kubernetes() -> None:
    setup = (ROOT / "deploy" / "local" / "setup.sh").read_text()
    (built_for,) = re.findall(r"^readonly HELM_KUBERNETES=1\.(\d+)$", setup, re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (oldest,) = re.findall(r"^>=1\.(\d+)\.0-0$", chart["kubeVersion"])
    assert int(built_for) >= int(oldest)


def test_every_install_of_a_lock_checks_its_hashes() -> None:
    setup = (ROOT / "deploy" / "local" / "setup.sh").read_text()
    installs = re.findall(
        r"^.*pip (?:--python \S+ )?(?:sync|install)\b.*$", f"{setup}\n{DOCKERFILE}", re.MULTILINE
    )
    locked = [line for line in installs if ".txt" in line or '"$lock"' in line]
    assert len(locked) == 11
    for line in locked:
        assert "--require-hashes" in line or "${extra[@]}" in line, line
    assert "extra=(--require-hashes)" in setup
