"""The chart by helm itself: no warning, manifests that are its output, and what its values change."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from services.cli.__main__ import app
from services.feedback.voting.pages import PATH as VOTE
from services.rollout.console.files import FILES
from services.router.app import ENDPOINTS, MODELS
from tests.contract.test_deploy import SERVICES
from tests.support.chart import (
    CHART,
    KUBERNETES,
    ROOT,
    ChartRefused,
    environments,
    named,
    pods,
    render,
    run_helm,
    validate,
)

MANIFESTS = ROOT / "deploy" / "k8s" / "manifests" / "ratchet.yaml"


def test_the_chart_lints_without_a_warning_and_the_manifests_are_fresh() -> None:
    linted = run_helm("lint", "--strict", CHART, "--kube-version", KUBERNETES)
    assert "WARNING" not in linted
    rendered = run_helm("template", "ratchet", CHART, "--kube-version", KUBERNETES)
    assert rendered == MANIFESTS.read_text(), "run: make manifests"


def test_secrets_volumes_and_an_account_of_yours_reach_the_pods(tmp_path: Path) -> None:
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": "adapters"}}
    mount = {"name": "shared", "mountPath": "/var/lib/ratchet-adapters"}
    values = {
        "envFromSecrets": ["object-storage", "hub"],
        "serviceAccountName": "storage-access",
        "image": {"pullSecrets": [{"name": "registry"}]},
        "extraVolumes": [volume],
        "extraVolumeMounts": [mount],
        "cli": {"apiKeySecret": "operator"},
        "storage": {"adapters": "file:///var/lib/ratchet-adapters"},
    }
    objects = render(values, tmp_path)
    for item in objects:
        validate(item)
    found = pods(objects)
    for name, pod in found.items():
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == "storage-access", name
        assert pod["imagePullSecrets"] == [{"name": "registry"}], name
        sources = [source.get("secretRef", {}).get("name") for source in container["envFrom"]]
        assert sources == [None, "object-storage", "hub"], name
        if name not in {"cli", "topics"}:
            assert volume in pod["volumes"]
            assert mount in container["volumeMounts"]
    keys = {entry["name"]: entry["valueFrom"] for entry in found["cli"]["containers"][0]["env"]}
    assert keys["RATCHET_API_KEY"]["secretKeyRef"]["name"] == "operator"


def test_the_voting_page_gets_its_files_and_nobody_else_does(tmp_path: Path) -> None:
    files = {"votingSecret": "secret", "routerApiKey": "key"}
    objects = render({"feedback": {"filesSecret": "raters", "files": files}}, tmp_path)
    for name, pod in pods(objects).items():
        sources = [volume.get("secret", {}).get("secretName") for volume in pod.get("volumes", [])]
        assert ("raters" in sources) == (name == "feedback"), name
    (configuration,) = (
        item["data"]
        for item in objects
        if item["kind"] == "ConfigMap" and item["metadata"]["name"] == "here-feedback"
    )
    place = "/etc/ratchet-files/feedback"
    assert configuration["RATCHET_FEEDBACK_VOTING_SECRET_FILE"] == f"{place}/votingSecret"
    assert configuration["RATCHET_FEEDBACK_ROUTER_API_KEY_FILE"] == f"{place}/routerApiKey"


def test_the_pod_monitor_scrapes_every_service_and_the_engine(tmp_path: Path) -> None:
    assert not [o for o in render({}, tmp_path) if o["kind"] == "PodMonitor"]
    values = {"podMonitor": {"enabled": True, "labels": {"release": "stack"}}}
    objects = render(values, tmp_path)
    (monitor,) = (item for item in objects if item["kind"] == "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"]["release"] == "stack"
    endpoints = {endpoint["port"]: endpoint for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert {endpoint["interval"] for endpoint in endpoints.values()} == {"5s"}
    assert {endpoint["path"] for endpoint in endpoints.values()} == {"/metrics"}
    labels = monitor["spec"]["selector"]["matchLabels"]
    ports: set[str] = set()
    for item in objects:
        if item["kind"] in {"Deployment", "StatefulSet"}:
            template = item["spec"]["template"]
            # Scraped both ways, every request would count twice.
            assert "prometheus.io/scrape" not in template["metadata"]["annotations"]
            assert labels.items() <= template["metadata"]["labels"].items()
            (container,) = template["spec"]["containers"]
            ports |= {port["name"] for port in container.get("ports", [])}
    assert endpoints.keys() == ports - {"http"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {
            "cli": {"enabled": False},
            "podMonitor": {"enabled": True},
            "dashboards": {"enabled": True},
            "model": {"next": {"base": "newer"}},
        },
    ],
)
def test_the_notes_name_commands_that_exist(tmp_path: Path, extra: dict[str, Any]) -> None:
    # Helm shows notes only where there is a cluster, so a copy of the chart shows them as an object.
    chart = tmp_path / "ratchet"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(
        'kind: Notes\ntext: {{ tpl (.Files.Get "notes.txt") . | quote }}\n'
    )
    objects = render(extra, tmp_path, chart=chart)
    (notes,) = (item["text"] for item in objects if item["kind"] == "Notes")
    assert "every 5 s" in notes
    assert ("dashboards.enabled=true" in notes) is not bool(extra)
    assert ("Engines of newer (statefulset/here-next-base)" in notes) is bool(extra)
    lines = [line.strip() for line in notes.splitlines() if "kubectl exec" in line]
    if extra:
        assert not lines
        assert "cli" not in pods(objects)
        return
    assert "cli" in pods(objects)
    assert any(line.endswith("ratchet doctor") for line in lines)
    scopes = set()
    for line in lines:
        where, _, command = line.partition(" -- ")
        assert where == "kubectl exec -n there deploy/here-cli"
        scopes |= parse(shlex.split(command.split("ratchet ", 1)[1])).get("scope", set())
    assert scopes == {"infer", "feedback", "operate"}
    assert any("ratchet versions register" in line for line in lines)


def test_values_that_the_chart_refuses_leave_the_plain_manifests_as_they_are(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.yaml").write_text("services: {router: {replicas: many}}")
    before = MANIFESTS.read_text()
    done = subprocess.run(
        [ROOT / "deploy" / "k8s" / "render.sh", "mine.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert "replicas" in done.stderr
    assert MANIFESTS.read_text() == before
    assert [path.name for path in MANIFESTS.parent.glob("ratchet.*")] == ["ratchet.yaml"]


def job(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == "Job")
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"image": {"tag": "other"}},
        {"tenants": ["default", "acme"]},
        {"kafka": {"joinPartitions": 24}},
        {"cli": {"nodeSelector": {"pool": "small"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_second_sync_has_another_job_where_its_spec_is_another(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    before, same, after = (job(render(v, tmp_path)) for v in ({}, {}, change))
    # Applied again with the same values, a Job is not touched; its spec cannot be changed.
    assert same == before
    assert after["spec"] != before["spec"]
    assert after["metadata"]["name"] != before["metadata"]["name"]
    # Deleted after a time, it would be missing wherever the manifests are compared with the cluster.
    assert "ttlSecondsAfterFinished" not in before["spec"]


def test_scheduling_values_send_pods_where_they_say(tmp_path: Path) -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    scheduling = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": required},
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
    }
    values = {
        "services": {
            "inference": {**scheduling, "storageClassName": "fast"},
            "feedback": scheduling,
            "training": scheduling,
        },
        "cli": scheduling,
        "report": {"enabled": True},
        "trainingJob": {"enabled": True, "folder": "training/jobs/j/attempt-1"},
    }
    objects = render(values, tmp_path)
    for item in objects:
        validate(item)
    for name, pod in pods(objects).items():
        sent = name in {
            *("inference", "feedback", "training", "training-job"),
            *("cli", "topics", "report"),
        }
        for field, value in scheduling.items():
            assert pod.get(field) == (value if sent else None), (name, field)
    claims = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: claim["spec"]
        for item in objects
        if item["kind"] == "StatefulSet"
        for claim in item["spec"]["volumeClaimTemplates"]
    }
    assert claims.pop("inference")["storageClassName"] == "fast"
    assert not any("storageClassName" in claim for claim in claims.values())


@pytest.mark.parametrize(
    ("values", "named_in_error"),
    [
        ({"servicez": {}}, "servicez"),
        ({"services": {"inference": {"tolerationz": []}}}, "tolerationz"),
        ({"services": {"inferense": {"replicas": 2}}}, "inferense"),
        ({"services": {"router": {"replicas": "three"}}}, "replicas"),
        ({"tenants": ["team a"]}, "tenants"),
        ({"cli": {"nodeSelectors": {}}}, "nodeSelectors"),
        ({"model": {"profile": "tpu"}}, "profile"),
        ({"podSecurityContext": {"fsGroups": 1}}, "fsGroups"),
        ({"securityContext": {"capabilities": {"dropp": ["ALL"]}}}, "dropp"),
    ],
)
def test_a_value_that_the_chart_does_not_know_is_refused_by_its_name(
    tmp_path: Path, values: dict[str, Any], named_in_error: str
) -> None:
    with pytest.raises(ChartRefused, match=named_in_error):
        render(values, tmp_path)


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the ratchet command reads in these arguments; an unknown one raises."""
    command: Any = get_command(app)
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, arguments[:1], parent=context)
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    parameters = command.make_context(command.name, arguments, parent=context).params
    return {name: set(v) if isinstance(v, (list, tuple)) else v for name, v in parameters.items()}


def test_a_port_of_yours_is_listened_on_and_asked_at(tmp_path: Path) -> None:
    ports = {"router": {"port": 9001}, "inference": {"port": 9004, "extraPorts": {"engine": 9000}}}
    objects = render({"services": ports}, tmp_path)
    environment = environments(objects)
    assert environment["router"]["RATCHET_ROUTER_PORT"] == "9001"
    assert environment["feedback"]["RATCHET_FEEDBACK_ROUTER_URL"] == "http://here-router:9001"
    assert (
        environment["rollout"]["RATCHET_ROLLOUT_AGENTS"]
        == "http://here-inference-0.here-inference-pods:9004"
    )
    assert environment["inference"]["RATCHET_INFERENCE_ENGINE_URL"] == "http://127.0.0.1:9000"
    assert environment["router"]["RATCHET_ROUTER_ENGINES"] == "http://here-inference:9000"


@pytest.mark.parametrize(("stop", "drain"), [(120, "60"), (600, "540"), (30, "0")])
def test_an_engine_drains_within_its_pods_grace_period(
    tmp_path: Path, stop: int, drain: str
) -> None:
    objects = render({"services": {"inference": {"stop": stop}}}, tmp_path)
    assert environments(objects)["inference"]["RATCHET_INFERENCE_ENGINE_DRAIN_S"] == drain
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "here-inference"
    )
    assert pod["terminationGracePeriodSeconds"] == stop


@pytest.mark.parametrize("given", [9300, 0])
def test_each_router_process_is_scraped_once(tmp_path: Path, given: int) -> None:
    values: dict[str, Any] = {"services": {"router": {"processes": 2}}}
    with pytest.raises(ChartRefused, match="podMonitor"):
        render(values, tmp_path)
    moved = {"podMonitor": {"enabled": True}, "env": {"RATCHET_ROUTER_OPERATIONS_PORT": 9200}}
    with pytest.raises(ChartRefused, match="RATCHET_ROUTER_OPERATIONS_PORT"):
        render(values | moved, tmp_path)
    objects = render(values | {"podMonitor": {"enabled": True}, "operationsPort": given}, tmp_path)
    environment = environments(objects)["router"]
    assert environment["RATCHET_ROUTER_PROCESSES"] == "2"
    first = int(environment["RATCHET_ROUTER_OPERATIONS_PORT"])
    (container,) = pods(objects)["router"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert first == (given or 9100)
    assert ports == {"http": 8080, "operations": first, "operations-1": first + 1}
    (monitor,) = (item for item in objects if item["kind"] == "PodMonitor")
    endpoints = {one["port"]: one for one in monitor["spec"]["podMetricsEndpoints"]}
    assert endpoints.keys() - {"http"} == {"engine", "operations", "operations-1"}
    assert ("http" in endpoints) == (not given)
    if not given:
        (drop,) = endpoints["http"]["relabelings"]
        assert (drop["regex"], drop["action"]) == ("router", "drop")


def test_every_adapter_agent_is_asked_by_itself(tmp_path: Path) -> None:
    objects = render({"services": {"inference": {"replicas": 3}}}, tmp_path)
    environment = environments(objects)
    workload = named(objects, "StatefulSet", "here-inference")
    governing = workload["spec"]["serviceName"]
    service = named(objects, "Service", governing)
    assert service["spec"]["clusterIP"] == "None"
    assert environment["rollout"]["RATCHET_ROLLOUT_AGENTS"].split(",") == [
        f"http://here-inference-{number}.{governing}:8084" for number in range(3)
    ]


def test_metrics_have_a_port_that_no_client_is_let_to(tmp_path: Path) -> None:
    values = {
        "operationsPort": 9300,
        "networkPolicy": {
            "enabled": True,
            "clients": [{"podSelector": {"matchLabels": {"app": "ingress"}}}],
            "monitoring": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        },
    }
    objects = render(values, tmp_path)
    environment = environments(objects)
    for name, pod in pods(objects).items():
        if name not in SERVICES:
            continue
        variable = f"RATCHET_{name.upper()}_OPERATIONS_PORT"
        assert environment[name][variable] == environment["cli"][variable] == "9300"
        (container,) = pod["containers"]
        assert {"name": "operations", "containerPort": 9300} in container["ports"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
        service = named(objects, "Service", f"here-{name}")
        assert {"name": "operations", "port": 9300, "targetPort": "operations"} in service["spec"][
            "ports"
        ]
        kind = "Deployment" if name in ("feedback", "intake") else "StatefulSet"
        workload = named(objects, kind, f"here-{name}")
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == "9300"
        policy = named(objects, "NetworkPolicy", f"here-{name}")
        let_in = {
            str(peer["podSelector"]["matchLabels"].get("app", "ratchet")): {
                port["port"] for port in rule["ports"]
            }
            for rule in policy["spec"]["ingress"]
            for peer in rule["from"]
        }
        assert let_in["prometheus"] == {"operations", *(("engine",) if name == "inference" else ())}
        assert let_in.get("ingress", {"http"}) == {"http"}


def test_without_an_operations_port_metrics_are_where_they_were(tmp_path: Path) -> None:
    objects = render({"operationsPort": 0, "podMonitor": {"enabled": True}}, tmp_path)
    assert not any("OPERATIONS" in key for one in environments(objects).values() for key in one)
    (monitor,) = (item for item in objects if item["kind"] == "PodMonitor")
    ports = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
    assert ports == {"engine", "http"}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"operationsPort": 8081}, "services.feedback"),
        ({"operationsPort": 8000}, "services.inference"),
        ({"env": {"RATCHET_TRAINING_OPERATIONS_PORT": 9400}}, "RATCHET_TRAINING_OPERATIONS_PORT"),
    ],
)
def test_an_operations_port_that_cannot_be_is_refused(
    tmp_path: Path, values: dict[str, Any], name: str
) -> None:
    with pytest.raises(ChartRefused, match=name):
        render(values, tmp_path)


@pytest.mark.parametrize("way", ["ingress", "gateway"])
def test_products_paths_and_pages_are_passed_on_and_nothing_else(tmp_path: Path, way: str) -> None:
    hosts = {name: f"{name}.example.com" for name in ("router", "feedback", "rollout")}
    gateway = {"parentRefs": [{"name": "public"}]} if way == "gateway" else {}
    objects = render({way: {"enabled": True, "hosts": hosts, **gateway}}, tmp_path)
    passed: dict[str, set[tuple[str, str]]] = {}
    for item in objects:
        if item["kind"] == "Ingress":
            for rule in item["spec"]["rules"]:
                passed[rule["host"].split(".")[0]] = {
                    (path["pathType"], path["path"]) for path in rule["http"]["paths"]
                }
        elif item["kind"] == "HTTPRoute":
            assert all(len(rule["matches"]) <= 8 for rule in item["spec"]["rules"])
            passed[item["spec"]["hostnames"][0].split(".")[0]] = {
                (match["path"]["type"].removeprefix("Path"), match["path"]["value"])
                for rule in item["spec"]["rules"]
                for match in rule["matches"]
            }
    assert passed == {
        "router": {("Prefix", "/v1")},
        "feedback": {("Prefix", "/v1"), ("Prefix", VOTE)},
        "rollout": {("Prefix", "/v1"), *(("Exact", path) for path in FILES)},
    }
    assert all(path.startswith("/v1/") for path in (*ENDPOINTS, MODELS))
