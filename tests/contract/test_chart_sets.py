"""Value sets that installations use: each renders, and each of its objects is valid and confined."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from services.rollout.settings import RolloutSettings
from shared.connection_settings import KafkaSettings, RedisSettings
from shared.tenants import ModelTenants
from tests.contract.test_deploy import SERVICES, service_variables
from tests.support.chart import (
    CHART,
    ROOT,
    ChartRefused,
    environments,
    named,
    pods,
    render,
    validate,
    workloads,
)
from tests.support.chart_sets import SCALED, SETS, objects_of

CRDS = {
    crd["kind"]: crd
    for crd in map(
        json.loads, (file.read_text() for file in (Path(__file__).parent / "crds").glob("*.json"))
    )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chart")


@pytest.fixture(params=sorted(SETS))
def objects(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return objects_of(request.param, folder)


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


def secrets(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """The Secrets that a volume mounts."""
    projected = [one["secret"] for one in volume.get("projected", {}).get("sources", [])]
    return [*projected, *([volume["secret"]] if "secret" in volume else [])]


def test_there_are_enough_sets_and_every_profile_is_in_one() -> None:
    assert len(SETS) >= 14
    used = {profile for profiles, _ in SETS.values() for profile in profiles}
    assert used == {path.stem for path in (CHART / "profiles").glob("*.yaml")}


def test_every_object_is_valid_by_its_schema(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        if crd := CRDS.get(item["kind"]):
            assert item["apiVersion"] == crd["apiVersion"]
            jsonschema.validate(item["spec"], crd["spec"])
        else:
            validate(item)


def test_names_are_distinct_and_short_enough(objects: list[dict[str, Any]]) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))
    assert max(len(name) for _, name in names) <= 63


def test_no_container_is_root_or_writes_its_root_or_is_unbounded(
    objects: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    openshift = "openshift" in request.node.callspec.params.values()
    for name, pod in pods(objects).items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # OpenShift gives ids itself and refuses any other.
        assert ("runAsUser" in context) is not openshift
        assert pod["automountServiceAccountToken"] is False
        for one in containers(pod):
            confined = one["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True, name
            assert confined["allowPrivilegeEscalation"] is False, name
            assert confined["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= one["resources"]["requests"].keys(), name
            assert "memory" in one["resources"]["limits"], name


def test_what_is_mounted_and_read_is_there(objects: list[dict[str, Any]]) -> None:
    configured = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    for item in workloads(objects).values():
        pod = item["spec"]["template"]["spec"]
        claims = {one["metadata"]["name"] for one in item["spec"].get("volumeClaimTemplates", [])}
        volumes = claims | {volume["name"] for volume in pod.get("volumes", [])}
        for one in containers(pod):
            mounts = one.get("volumeMounts", [])
            assert {mount["name"] for mount in mounts} <= volumes
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
            (own,) = (s["configMapRef"]["name"] for s in one["envFrom"] if "configMapRef" in s)
            assert own in configured


def test_the_services_take_the_connections_and_their_files_are_mounted(
    objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pods(objects)
    for name, environment in environments(objects).items():
        KafkaSettings(**environment)
        RedisSettings(**({"RATCHET_REDIS_URL": "rediss://redis:6380/0"} | environment))
        mounted = {
            f"{mount['mountPath']}/{item['path']}"
            for mount in found[name]["containers"][0].get("volumeMounts", [])
            for volume in found[name].get("volumes", [])
            if volume["name"] == mount["name"]
            for secret in secrets(volume)
            for item in secret["items"]
        }
        assert mounted == {text for key, text in environment.items() if key.endswith("_FILE")}


def test_a_variable_goes_to_every_component_that_reads_it_and_nowhere_else(folder: Path) -> None:
    configured = environments(objects_of("prometheus-by-token", folder))
    everything = {key for environment in configured.values() for key in environment}
    shared = {"RATCHET_PROFILE", "RATCHET_HOST", "RATCHET_TENANTS", "RATCHET_ADAPTERS_URI"}
    for name in SERVICES:
        reads = service_variables([name])
        own = {key for key in everything if key.startswith(f"RATCHET_{name.upper()}_")}
        own -= {f"RATCHET_{name.upper()}_URL"}
        assert own <= configured[name].keys() <= reads, name
        assert everything & reads - configured[name].keys() <= {
            # read through the settings that all services have, and used by some
            "RATCHET_PROMETHEUS_URL",
            "RATCHET_ENGINE_API_KEY_FILE",
        }, name
        assert shared <= configured[name].keys()


def test_traces_and_moderation_are_set_and_let_through(folder: Path) -> None:
    objects = objects_of("traces-and-moderation", folder)
    environment = environments(objects)
    assert environment["router"]["RATCHET_ROUTER_MODERATION_URL"].endswith("-inference:8084")
    for service in (*SERVICES, "intake"):
        assert environment[service]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
        assert environment[service]["OTEL_TRACES_SAMPLER_ARG"] == "0.25"
        assert 4318 in outward(objects, service), service
    (router,) = (
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"].endswith("-router")
    )
    reached = [
        (port["port"], peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"])
        for to in router["egress"]
        for port in to["ports"]
        for peer in to.get("to", [])
    ]
    assert ("http", "inference") in reached
    assert environment["feedback"]["RATCHET_FEEDBACK_VOTING_RANK_HOURS"] == "24"
    assert environment["feedback"]["RATCHET_FEEDBACK_INFERENCE_URL"].endswith("-inference:8084")
    inference = named(objects, "NetworkPolicy", "here-inference")["spec"]
    callers = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in inference["ingress"]
        if rule["ports"] == [{"protocol": "TCP", "port": "http"}]
        for peer in rule["from"]
    }
    assert callers == {"router", "feedback", "rollout", "cli"}
    default = environments(objects_of("defaults", folder))["router"]
    assert not [name for name in default if name.startswith("OTEL") or "MODERATION" in name]
    page = environments(objects_of("informative-pairs", folder))["feedback"]
    assert page["RATCHET_FEEDBACK_VOTING_CANDIDATES"] == "2"
    assert page["RATCHET_FEEDBACK_INFERENCE_URL"].endswith("-inference:8084")
    page = environments(objects_of("defaults", folder))["feedback"]
    assert not [
        name for name in page if "RANK" in name or "CANDIDATES" in name or "INFERENCE" in name
    ]


def outward(objects: list[dict[str, Any]], name: str) -> set[int | str]:
    """Ports on which a component may open connections."""
    policy = named(objects, "NetworkPolicy", f"here-{name}")["spec"]
    return {port["port"] for rule in policy["egress"] for port in rule["ports"]}


def test_media_store_and_endpoints_are_reached_where_they_are_set(folder: Path) -> None:
    objects = objects_of("media-and-endpoints", folder)
    environment = environments(objects)
    for name in ("router", "feedback"):
        assert environment[name]["RATCHET_MEDIA_URI"] == "s3://ratchet/media"
    components = ("router", "feedback", "rollout", "aggregator", "inference", "training", "report")
    ports = {name: outward(objects, name) for name in components}
    storage = {name for name in components if 9000 in ports[name]}
    assert storage == {"router", "feedback", "inference", "training"}
    assert {name for name in components if ports[name] >= {443, 8443}} == {
        "router",
        "rollout",
        "inference",
        "training",
        "report",
    }
    # Their addresses are in a Secret, of which the chart knows nothing.
    signed = objects_of("files-of-one-service", folder)
    assert {
        name
        for name in ("router", "rollout", "inference", "training")
        if 8443 in outward(signed, name)
    } == {
        "rollout",
        "training",
    }
    default = objects_of("network-policies", folder)
    assert not outward(default, "router") & {443, 8443, 9000}
    assert 443 not in outward(default, "feedback")
    assert "RATCHET_MEDIA_URI" not in environments(default)["router"]


def test_a_detector_is_asked_by_all_who_store_texts_and_reached_where_it_is_set(
    folder: Path,
) -> None:
    objects = objects_of("detector", folder)
    asking = {"router", "feedback", "intake", "aggregator", "inference", "training", "cli"}
    for name, environment in environments(objects).items():
        given = {
            variable: value
            for variable, value in environment.items()
            if variable.startswith("RATCHET_DETECTOR")
        }
        expected = {
            "RATCHET_DETECTOR_URL": "http://presidio-analyzer:3000",
            "RATCHET_DETECTOR_LANGUAGES": "en,de",
            "RATCHET_DETECTOR_FAILS": "closed",
            "RATCHET_DETECTOR_KEY_FILE": "/etc/ratchet-files/detector/key",
        }
        assert given == (expected if name in asking else {}), name
    assert all(3000 in outward(objects, name) for name in asking)
    assert 3000 not in outward(objects, "rollout")
    default = objects_of("network-policies", folder)
    assert not any(3000 in outward(default, name) for name in asking)
    assert not [name for name in environments(default)["router"] if "DETECTOR" in name]


def test_policies_let_through_what_the_environment_alone_turns_on(folder: Path) -> None:
    values: dict[str, Any] = {"networkPolicy": {"enabled": True}}
    closed = render(values, folder)
    environment = {
        "RATCHET_ROUTER_MODERATION_URL": "http://here-inference:8084",
        "RATCHET_FEEDBACK_VOTING_RANK_HOURS": 6,
        "RATCHET_TRAINING_INFERENCE_URL": "http://here-inference:8084",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
    }
    opened = render(values | {"env": environment}, folder)
    assert [outward(objects, "rollout") & {4318} for objects in (closed, opened)] == [set(), {4318}]
    for name in ("router", "feedback", "training"):
        asks = [
            f"component: {name}" in yaml.safe_dump(scored(objects)) for objects in (closed, opened)
        ]
        assert asks == [False, True], name
    alone = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}
    assert 4318 in outward(render(values | {"env": alone}, folder), "rollout")
    off = render(values | {"env": {"RATCHET_FEEDBACK_VOTING_RANK_HOURS": 0}}, folder)
    assert scored(off) == scored(closed)
    keyed = {"training": {"filesSecret": "mine", "files": {"scoreApiKey": "key"}}}
    objects = render(values | keyed, folder)
    asks = environments(objects)["training"]
    assert asks["RATCHET_TRAINING_INFERENCE_URL"] == "http://here-inference:8084"
    assert asks["RATCHET_TRAINING_SCORE_API_KEY_FILE"] == "/etc/ratchet-files/training/scoreApiKey"
    assert "component: training" in yaml.safe_dump(scored(objects))


def scored(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who may ask inference for scores."""
    rules = named(objects, "NetworkPolicy", "here-inference")["spec"]["ingress"]
    return [rule for rule in rules if rule["ports"][0]["port"] == "http"]


def test_whole_numbers_stay_whole(folder: Path) -> None:
    values = {
        "image": {"tag": 20261125},
        "model": {"maxContext": 1048576},
        "env": {"RATCHET_ADAPTER_MAX_BYTES": 17179869184, "RATCHET_ROUTER_SEGMENTS": ["a", "b"]},
        "services": {"router": {"resources": {"limits": {"memory": 17179869184}}}},
    }
    objects = render(values, folder)
    assert "e+" not in yaml.safe_dump(objects)
    environment = environments(objects)
    assert environment["inference"]["RATCHET_INFERENCE_MAX_CONTEXT"] == "1048576"
    assert environment["router"]["RATCHET_ADAPTER_MAX_BYTES"] == "17179869184"
    assert environment["aggregator"]["RATCHET_ROUTER_SEGMENTS"] == "a,b"
    (container,) = pods(objects)["router"]["containers"]
    assert container["image"].endswith("/router:20261125")
    assert container["resources"]["limits"]["memory"] == 17179869184


def test_a_list_of_brokers_is_joined_and_no_list_or_map_reaches_a_text(folder: Path) -> None:
    brokers = ["a:9092", "b:9092"]
    objects = render({"kafka": {"bootstrap": brokers}}, folder)
    for environment in environments(objects).values():
        assert environment["RATCHET_KAFKA_BOOTSTRAP"] == "a:9092,b:9092"
    wrong: tuple[dict[str, Any], ...] = ({"env": {"A": {"b": 1}}}, {"prometheus": {"url": ["x"]}})
    for values in wrong:
        with pytest.raises(ChartRefused):
            render(values, folder)


def test_whose_keys_operate_which_models_goes_to_the_services_that_check_it(folder: Path) -> None:
    models = {"modelTenants": {"code": "globex", "chat": "acme"}, "operatorsTenant": "ops"}
    configured = environments(render(models, folder))
    readers = {name for name, one in configured.items() if "RATCHET_MODEL_TENANTS" in one}
    assert readers == {"feedback", "inference", "rollout"}
    settings = RolloutSettings(**configured["rollout"])
    assert settings.tenants_of_models() == ModelTenants(
        {"chat": "acme", "code": "globex"}, operators="ops"
    )
    unset = environments(objects_of("defaults", folder)).values()
    assert not any("RATCHET_MODEL_TENANTS" in one for one in unset)


def test_env_replaces_what_the_chart_sets_instead_of_standing_beside_it(folder: Path) -> None:
    values = {
        "env": {"RATCHET_TENANTS": "acme"},
        "services": {"router": {"env": {"RATCHET_TENANTS": "globex", "RATCHET_ROUTER_X": 1}}},
    }
    environment = environments(render(values, folder))
    assert environment["feedback"]["RATCHET_TENANTS"] == "acme"
    assert environment["router"]["RATCHET_TENANTS"] == "globex"
    assert environment["router"]["RATCHET_ROUTER_X"] == "1"
    assert "RATCHET_ROUTER_X" not in environment["feedback"]


@pytest.mark.parametrize(
    ("change", "rolled"),
    [
        ({"strategies": {"mine.yaml": "name: mine\n"}}, {"rollout"}),
        ({"services": {"router": {"env": {"RATCHET_ROUTER_X": "1"}}}}, {"router"}),
        ({"services": {"inference": {"replicas": 2}}}, {"rollout"}),
        ({"model": {"base": "other"}}, {"inference"}),
        ({"model": {"revision": "cafe"}}, {"inference", "training"}),
        ({"redis": {"url": "redis://other/0"}}, {"router", "feedback", "intake", "rollout", "cli"}),
        ({"kafka": {"joinPartitions": 24}}, {"cli", "topics"}),
        ({"dashboards": {"enabled": True}}, set()),
        ({"networkPolicy": {"enabled": True}}, set()),
        ({"services": {"router": {"autoscaling": {"enabled": True}}}}, set()),
    ],
    ids=lambda part: next(iter(part), "nobody") if isinstance(part, dict) else "",
)
def test_a_change_rolls_those_pods_alone_that_read_it(
    folder: Path, change: dict[str, Any], rolled: set[str]
) -> None:
    before, after = (workloads(render(values, folder)) for values in ({}, change))
    templates = {name: item["spec"]["template"] for name, item in before.items()}
    changed = {
        name for name, item in after.items() if item["spec"]["template"] != templates.get(name)
    }
    assert changed == rolled


def test_replicas_are_the_autoscalers_alone(folder: Path) -> None:
    objects = objects_of("autoscaling", folder)
    scaled = {
        item["spec"]["scaleTargetRef"]["name"]: item
        for item in objects
        if item["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}
    }
    assert scaled.keys() == {"here-router", "here-feedback", "here-aggregator"}
    for item in workloads(objects).values():
        if item["kind"] != "Job":
            assert ("replicas" in item["spec"]) is (item["metadata"]["name"] not in scaled)
    for name, scaler in scaled.items():
        target = scaler["spec"]["scaleTargetRef"]
        assert named(objects, target["kind"], name)["apiVersion"] == target["apiVersion"]
        assert named(objects, "PodDisruptionBudget", name)


@pytest.mark.parametrize(("partitions", "most"), [(4, 4), (12, 12), (48, 12)])
def test_keda_never_asks_for_more_workers_than_partitions(
    folder: Path, partitions: int, most: int
) -> None:
    values = {"kafka": {"joinPartitions": partitions}, "services": {"aggregator": SCALED}}
    spec = named(render(values, folder), "ScaledObject", "here-aggregator")["spec"]
    assert spec["maxReplicaCount"] == most
    assert spec["minReplicaCount"] <= most
    assert {trigger["metadata"]["allowIdleConsumers"] for trigger in spec["triggers"]} == {"false"}


def test_keda_reads_the_lag_of_groups_and_topics_that_exist(folder: Path) -> None:
    from services.aggregator.settings import AggregatorSettings
    from services.feedback.intake.handler import GROUP
    from shared.kafka.topics import load_topics

    topics = {one.name for topic in load_topics() for one in topic.for_tenants(("default", "acme"))}
    for name, group in (
        ("autoscaling", AggregatorSettings.model_fields["app_id"].default),
        ("autoscaling-by-lag-and-scram", GROUP),
    ):
        objects = objects_of(name, folder)
        (scaled,) = (item for item in objects if item["kind"] == "ScaledObject")
        for trigger in scaled["spec"]["triggers"]:
            if trigger["type"] == "kafka":
                assert trigger["metadata"]["consumerGroup"] == group
                assert trigger["metadata"]["topic"] in topics
    secure = {trigger["metadata"].get("sasl") for trigger in scaled["spec"]["triggers"]}
    assert secure == {"scram_sha512", None}
    access = named(objects, "TriggerAuthentication", "here-intake-kafka")["spec"]
    given = {one["parameter"] for one in access["secretTargetRef"]}
    assert given == {"username", "password", "ca"}


@pytest.mark.parametrize(
    "release", ["a" * 53, "b" * 52 + "c", "2nd.release", "r" * 41, "r" * 40 + ".x"]
)
def test_a_long_or_odd_release_name_still_gets_its_pods(folder: Path, release: str) -> None:
    objects = render({"model": {"next": {"base": "newer"}}}, folder, release=release)
    for item in objects:
        name = item["metadata"]["name"]
        assert all(len(text) <= 63 for text in item["metadata"]["labels"].values())
        # A StatefulSet's pods carry its name and a hash of ten as a label of at most 63.
        assert len(name) <= {"StatefulSet": 52}.get(item["kind"], 63)
        assert name[0].isalpha()
        assert "." not in name
    agents = environments(objects)["rollout"]["RATCHET_ROLLOUT_AGENTS"]
    hosts = [address.split("//")[1].split(".")[1] for address in agents.split(",")]
    assert all(named(objects, "Service", host.split(":")[0]) for host in hosts)


def test_long_release_names_that_begin_alike_do_not_meet(folder: Path) -> None:
    names = [
        {(o["kind"], o["metadata"]["name"]) for o in render({}, folder, release="x" * 52 + end)}
        for end in "ab"
    ]
    assert not names[0] & names[1]


def test_pods_wait_for_the_topics(folder: Path) -> None:
    for name, pod in pods(objects_of("defaults", folder)).items():
        if name in SERVICES:
            (first,) = pod["initContainers"]
            assert first["command"] == ["sh", "-c", "ratchet topics wait || true"]
            assert first["envFrom"] == pod["containers"][0]["envFrom"]


def test_a_changed_disk_and_an_autoscaler_leave_what_the_cluster_has(tmp_path: Path) -> None:
    # Without a cluster `lookup` finds nothing, so a copy of the chart is given what it would find.
    import shutil

    chart = tmp_path / "ratchet"
    shutil.copytree(CHART, chart)
    path = chart / "templates" / "workloads.yaml"
    text = path.read_text()
    call = 'lookup "apps/v1" $service.kind $.Release.Namespace (include "ratchet.name" $scope)'
    assert call in text
    path.write_text(text.replace(call, "(get $.Values.global $name) | default dict"))
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "2Gi"}},
        "storageClassName": "fast",
        "volumeMode": "Filesystem",
    }
    claims = [{"metadata": {"name": "data"}, "spec": claim}]
    there = {"spec": {"replicas": 7, "volumeClaimTemplates": claims}}
    services = {
        name: {"disk": "9Gi", "storageClassName": "other"} for name in ("router", "rollout")
    }
    services["router"] |= SCALED
    values = {"global": {"router": there}, "services": services}
    rendered = workloads(render(values, tmp_path, chart=chart))
    assert rendered["router"]["spec"]["replicas"] == 7
    found = {
        name: item["spec"]["volumeClaimTemplates"][0]["spec"]
        for name, item in rendered.items()
        if item["kind"] == "StatefulSet"
    }
    assert found["router"] == claim
    assert found["rollout"]["resources"]["requests"]["storage"] == "9Gi"
    assert found["rollout"]["storageClassName"] == "other"


@pytest.mark.parametrize("tag", ["", "1.2.3", 7, "x" * 100, "2026-11-25_"])
def test_the_version_label_is_the_images(folder: Path, tag: Any) -> None:
    objects = render({"image": {"tag": tag}}, folder)
    for item in workloads(objects).values():
        label = item["metadata"]["labels"]["app.kubernetes.io/version"]
        image = item["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.rpartition(":")[2].startswith(label)
        assert re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", label)


def test_every_rule_of_prometheus_links_to_the_runbooks_given(folder: Path) -> None:
    rules = [item for item in objects_of("operator", folder) if item["kind"] == "PrometheusRule"]
    alerts = [
        rule
        for item in rules
        for group in item["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert alerts
    for alert in alerts:
        link = alert["annotations"]["runbook_url"]
        assert link == f"https://example.com/runbooks#{alert['alert'].lower()}"


def test_dashboards_are_installed_as_the_files_are(folder: Path) -> None:
    installed = {
        name: json.loads(text)
        for item in objects_of("operator", folder)
        if item["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        for name, text in item["data"].items()
    }
    files = (CHART / "files" / "dashboards").glob("*.json")
    assert installed == {f"ratchet-{file.name}": json.loads(file.read_text()) for file in files}


def test_a_training_job_is_one_launch_of_accelerate_over_its_pods(folder: Path) -> None:
    objects = objects_of("training-job", folder)
    found = workloads(objects)["training-job"]
    name, job = found["metadata"]["name"], found["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    launch = container["command"][-1].split()
    given = dict(pairwise(launch))
    assert (given["--num_machines"], given["--num_processes"]) == ("3", "24")
    assert given["--main_process_ip"] == f"{name}-0.here-training-job"
    assert given["--machine_rank"] == '"$JOB_COMPLETION_INDEX"'
    assert launch[-2:] == ["/var/lib/ratchet/training/jobs/1f/attempt-1", '"$$$$"']
    assert (ROOT / given["--config_file"]).exists()
    assert pod["subdomain"] == "here-training-job"
    assert named(objects, "Service", "here-training-job")["spec"]["clusterIP"] == "None"
    training = pods(objects)["training"]["containers"][0]
    assert (container["image"], container["resources"]) == (
        training["image"],
        training["resources"],
    )
    claims = [one["persistentVolumeClaim"] for one in pod["volumes"] if one["name"] == "data"]
    assert claims == [{"claimName": "data-here-training-0"}]
    assert "training-job" not in pods(objects_of("defaults", folder))


def test_another_attempt_is_another_job(folder: Path) -> None:
    profiles, values = SETS["training-job"]
    first, again, second = (
        workloads(
            render(
                values | {"trainingJob": values["trainingJob"] | {"folder": attempt}},
                folder,
                profiles=profiles,
            )
        )["training-job"]
        for attempt in ("jobs/1f/attempt-1", "jobs/1f/attempt-1", "jobs/1f/attempt-2")
    )
    assert first == again
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_a_training_job_reaches_its_pods_and_the_hub(folder: Path) -> None:
    objects = objects_of("training-job", folder)
    rules = named(objects, "NetworkPolicy", "here-training-job")["spec"]["egress"]
    among, hub = rules
    assert "ports" not in among, "gloo and NCCL open what they like"
    assert hub == {"ports": [{"protocol": "TCP", "port": 443}]}
    service = named(objects, "NetworkPolicy", "here-training")["spec"]["egress"]
    assert hub in service


def test_the_report_runs_by_its_schedule_with_what_it_reads(folder: Path) -> None:
    objects = objects_of("report", folder)
    assert named(objects, "CronJob", "here-report")["spec"]["schedule"] == "0 7 * * 1"
    (container,) = pods(objects)["report"]["containers"]
    assert container["args"] == ["report", "weekly", "--target", "100"]
    read = environments(objects)["report"]
    assert read["RATCHET_REPORT_WEBHOOK_FILE"] == "/etc/ratchet-files/report/webhook"
    assert {"RATCHET_PROMETHEUS_URL", "RATCHET_KAFKA_BOOTSTRAP"} <= read.keys()
    assert "report" not in pods(objects_of("defaults", folder))


def test_the_secrets_of_people_s_texts_and_ids_go_to_all_who_need_them(folder: Path) -> None:
    read = environments(objects_of("files-of-one-service", folder))
    texts = {*SERVICES, "cli"}
    ids = texts - {"aggregator", "training", "cli"}
    for variable, place, components in (
        ("RATCHET_TEXT_KEY_FILE", "/etc/ratchet-files/text/key", texts),
        ("RATCHET_USER_ID_KEY_FILE", "/etc/ratchet-files/userId/key", ids),
    ):
        found = {name: one[variable] for name, one in read.items() if variable in one}
        assert found == dict.fromkeys(components, place)


def test_every_file_that_one_service_alone_reads_has_a_value(folder: Path) -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]
    read: dict[str, set[str]] = {}
    values: dict[str, Any] = {}
    for name in SERVICES:
        own = re.compile(rf"RATCHET_{name.upper()}_\w+_FILE")
        if found := set(filter(own.fullmatch, service_variables([name]))):
            read[name] = found
            files = known[name]["properties"]["files"]["properties"]
            values[name] = {"filesSecret": f"of-{name}", "files": dict.fromkeys(files, "key")}
    assert read.keys() == {"router", "feedback", "rollout", "inference", "training"}
    objects = render(values, folder)
    for name, environment in environments(objects).items():
        place = f"/etc/ratchet-files/{name}/"
        assert {key for key, text in environment.items() if text.startswith(place)} == read.get(
            name, set()
        )
        volumes = pods(objects)[name].get("volumes", [])
        mounted = {secret["secretName"] for one in volumes for secret in secrets(one)}
        assert mounted == ({f"of-{name}"} if name in read else set()), name


def test_policies_let_through_what_the_data_flow_needs_and_nothing_else(folder: Path) -> None:
    objects = objects_of("network-policies", folder)
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    deny = named(objects, "NetworkPolicy", "here-deny-all")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    into: set[tuple[str, str, str]] = set()
    out: set[tuple[str, str, str]] = set()

    def peers(rules: list[dict[str, Any]], side: str) -> Iterator[tuple[str, str]]:
        for rule in rules:
            for peer in rule.get(side, []):
                for port in rule["ports"]:
                    labels = peer["podSelector"]["matchLabels"]
                    yield labels["app.kubernetes.io/component"], port["port"]

    for policy in policies:
        own = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
        into |= {(c, str(own), p) for c, p in peers(policy["spec"].get("ingress", []), "from")}
        out |= {(str(own), c, p) for c, p in peers(policy["spec"]["egress"], "to")}
    # A connection needs both ends.
    assert into == out
    assert {one for one in into if one[0] != "cli"} == {
        ("feedback", "router", "http"),
        ("rollout", "inference", "http"),
        ("router", "inference", "engine"),
    }
    selected = {
        p["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component") for p in policies
    }
    assert selected == {None, *workloads(objects)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kafka": {"files": {"ca": "ca.crt"}}}, "kafka.filesSecret"),
        ({"prometheusRules": {"enabled": True}}, "prometheusRules.runbooks"),
        ({"ingress": {"enabled": True}}, "ingress.hosts"),
        ({"gateway": {"enabled": True}}, "gateway.hosts"),
        ({"gateway": {"enabled": True, "hosts": {"router": "x"}}}, "gateway.parentRefs"),
        ({"services": {"inference": SCALED}}, "autoscaling"),
        ({"services": {"router": {"autoscaling": {"enabled": True, "lag": 5}}}}, "consumer group"),
        ({"kafka": {"files": {"pasword": "x"}}}, "pasword"),
        ({"ingress": {"hosts": {"training": "x"}}}, "training"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_work_is_refused_with_its_name(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChartRefused, match=message):
        render(values, folder)


def test_the_page_for_operators_makes_the_secrets_that_the_production_profile_names(
    folder: Path,
) -> None:
    text = (ROOT / "docs" / "operations.md").read_text().replace("\\\n", "")
    made = {
        name: set(re.findall(r"--from-(?:file|literal)=([\w.]+)", keys))
        for name, keys in re.findall(r"kubectl create secret generic (\S+) (.+)", text)
    }
    needed: dict[str, set[str]] = {}
    for pod in pods(objects_of("production", folder)).values():
        for volume in pod.get("volumes", []):
            if secret := volume.get("secret"):
                keys = needed.setdefault(secret["secretName"], set())
                keys |= {item["key"] for item in secret["items"]}
        for one in containers(pod):
            for entry in one.get("env", []):
                reference = entry["valueFrom"]["secretKeyRef"]
                needed.setdefault(reference["name"], set()).add(reference["key"])
            for source in one["envFrom"]:
                if reference := source.get(
                    "secretRef"
                ):  # which keys, depends on the object storage
                    needed[reference["name"]] = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert made == needed
