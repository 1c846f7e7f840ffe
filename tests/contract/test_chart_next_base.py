"""Engines on a newer base beside those on the present one, as `model.next` asks for them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from services.training.settings import TrainingSettings
from tests.support.chart import ChartRefused, environments, named, pods, render, workloads
from tests.support.chart_sets import objects_of

COMPONENT = "app.kubernetes.io/component"
NEWER = "Qwen/Qwen3-1.7B"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chart")


@pytest.fixture(scope="module")
def objects(folder: Path) -> list[dict[str, Any]]:
    return objects_of("next-base", folder)


def of(objects: list[dict[str, Any]], component: str) -> dict[tuple[str, str], dict[str, Any]]:
    """A component's objects by kind and name."""
    return {
        (item["kind"], item["metadata"]["name"]): item
        for item in objects
        if item["metadata"]["labels"][COMPONENT] == component
    }


def as_inference(item: dict[str, Any]) -> dict[str, Any]:
    """The object as that of inference would be called, without what differs on purpose."""
    found = json.loads(json.dumps(item).replace("next-base", "inference"))
    if found["kind"] == "StatefulSet":
        spec = found["spec"]
        del spec["replicas"], spec["volumeClaimTemplates"]
        del spec["template"]["metadata"]["annotations"]["checksum/configuration"]
    return found


def test_engines_of_the_next_base_are_inference_but_for_base_revision_and_what_is_their_own(
    objects: list[dict[str, Any]],
) -> None:
    present, newer = of(objects, "inference"), of(objects, "next-base")
    kinds = {kind for kind, _ in newer}
    assert kinds == {
        "ConfigMap",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "StatefulSet",
    }
    for (kind, name), item in newer.items():
        if kind not in {"ConfigMap", "PodDisruptionBudget"}:
            same = present[kind, name.replace("next-base", "inference")]
            assert as_inference(item) == as_inference(same), (kind, name)
    workload = newer["StatefulSet", "here-next-base"]["spec"]
    assert workload["replicas"] == 2
    (claim,) = workload["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "100Gi"
    environment = environments(objects)
    old, new = environment["inference"], environment["next-base"]
    assert {key: text for key, text in new.items() if old.get(key) != text} == {
        "RATCHET_INFERENCE_BASE_MODEL": NEWER,
        "HF_HUB_OFFLINE": "0",
    }
    # A commit of the present base is none of the newer one's.
    assert old.keys() - new.keys() == {"RATCHET_BASE_REVISION"}


def test_routers_ask_both_and_the_rollout_every_agent_by_itself(
    objects: list[dict[str, Any]],
) -> None:
    environment = environments(objects)
    engines = environment["router"]["RATCHET_ROUTER_ENGINES"].split(",")
    assert engines == ["http://here-inference:8000", "http://here-next-base:8000"]
    inferences = "http://here-inference:8084,http://here-next-base:8084"
    assert environment["router"]["RATCHET_ROUTER_MODERATION_URL"] == inferences
    for address in engines:
        host, port = address.removeprefix("http://").split(":")
        ports = named(objects, "Service", host)["spec"]["ports"]
        assert {"name": "engine", "port": int(port), "targetPort": "engine"} in ports
    agents = environment["rollout"]["RATCHET_ROLLOUT_AGENTS"].split(",")
    assert agents == [
        f"http://here-{name}-{number}.here-{name}-pods:8084"
        for name, replicas in (("inference", 1), ("next-base", 2))
        for number in range(replicas)
    ]
    for name in ("inference", "next-base"):
        workload = named(objects, "StatefulSet", f"here-{name}")["spec"]
        headless = named(objects, "Service", workload["serviceName"])["spec"]
        assert headless["selector"] == workload["selector"]["matchLabels"]


def test_whoever_reaches_engines_of_the_one_base_reaches_those_of_the_other(
    objects: list[dict[str, Any]],
) -> None:
    def reached(component: str) -> set[tuple[str, str]]:
        return {
            (item["metadata"]["name"], port["port"])
            for item in objects
            if item["kind"] == "NetworkPolicy"
            for rule in item["spec"].get("egress", [])
            for peer in rule.get("to", [])
            for port in rule["ports"]
            if peer["podSelector"]["matchLabels"][COMPONENT] == component
        }

    assert {("here-router", "engine"), ("here-rollout", "http")} < reached("inference")
    assert reached("next-base") == reached("inference")


@pytest.mark.parametrize(
    ("present", "newer", "trained_at"),
    [
        ("", "", None),
        ("cafe", "", "org/old@cafe"),
        ("", "beef", f"{NEWER}@beef"),
        ("cafe", "beef", f"org/old@cafe,{NEWER}@beef"),
    ],
)
def test_each_base_is_trained_on_at_its_own_revision(
    folder: Path, present: str, newer: str, trained_at: str | None
) -> None:
    model = {"base": "org/old", "revision": present, "next": {"base": NEWER, "revision": newer}}
    environment = environments(render({"model": model}, folder))
    found = {
        name: environment[name].get("RATCHET_BASE_REVISION")
        for name in ("training", "inference", "next-base")
    }
    assert found == {
        "training": trained_at,
        "inference": present or None,
        "next-base": newer or None,
    }
    if trained_at:
        settings = TrainingSettings(base_revision=trained_at)  # type: ignore[arg-type]
        assert (settings.revision_of("org/old"), settings.revision_of(NEWER)) == (present, newer)


def test_scores_are_asked_of_both(folder: Path) -> None:
    values = {
        "model": {"next": {"base": NEWER}},
        "ranking": {"hours": 6},
        "training": {"filesSecret": "mine", "files": {"scoreApiKey": "key"}},
    }
    environment = environments(render(values, folder))
    for name in ("feedback", "training"):
        assert environment[name][f"RATCHET_{name.upper()}_INFERENCE_URL"] == (
            "http://here-inference:8084,http://here-next-base:8084"
        )


def test_what_a_newer_base_takes_otherwise_is_its_own_and_none_is_an_answer(folder: Path) -> None:
    given = {"base": NEWER, "toolParser": "", "maxContext": 1_048_576}
    environment = environments(render({"model": {"next": given}}, folder))
    for name, parser, context in (("inference", "hermes", "4096"), ("next-base", "", "1048576")):
        assert environment[name]["RATCHET_INFERENCE_TOOL_PARSER"] == parser
        assert environment[name]["RATCHET_INFERENCE_MAX_CONTEXT"] == context


def test_they_come_to_kafka_and_the_store_as_inference_does(folder: Path) -> None:
    objects = render({"model": {"next": {"base": NEWER}}}, folder, profiles=("strimzi",))
    environment = environments(objects)["next-base"]
    assert environment["RATCHET_KAFKA_USERNAME"] == "here-inference"
    assert not [key for key in of(objects, "next-base") if key[0] == "KafkaUser"]
    present, newer = (pods(objects)[name] for name in ("inference", "next-base"))
    assert newer["volumes"] == present["volumes"]
    assert newer["serviceAccountName"] == present["serviceAccountName"] == "here-inference"


def test_metrics_of_both_are_one_job(objects: list[dict[str, Any]]) -> None:
    """The alert on services that are down names the jobs."""
    (monitor,) = (item for item in objects if item["kind"] == "PodMonitor")
    assert monitor["spec"]["jobLabel"] == COMPONENT
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert {
            "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
            "regex": "next-base",
            "targetLabel": "job",
            "replacement": "inference",
        } in endpoint["relabelings"]


def test_the_present_engines_move_to_the_base_while_those_beside_them_stay_as_they_are(
    objects: list[dict[str, Any]], folder: Path
) -> None:
    """The step of docs/operations.md after which the engines beside are not needed any more."""
    values = copy.deepcopy(
        {
            "model": {"base": NEWER, "revision": "", "next": {"base": NEWER}},
            "services": {"inference": {"replicas": 2, "env": {"HF_HUB_OFFLINE": 0}}},
            "moderation": {"enabled": True},
        }
    )
    values["model"]["next"]["inference"] = {
        "replicas": 2,
        "disk": "100Gi",
        "env": {"HF_HUB_OFFLINE": 0},
    }
    moved = render(values, folder, profiles=("production",))
    assert of(moved, "next-base") == of(objects, "next-base")
    assert workloads(moved)["router"] == workloads(objects)["router"]
    assert workloads(moved)["inference"] != workloads(objects)["inference"]
    assert environments(moved)["inference"]["RATCHET_INFERENCE_BASE_MODEL"] == NEWER


def test_without_a_next_base_there_is_nothing_of_it(folder: Path) -> None:
    assert "next-base" not in json.dumps(objects_of("production", folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inference": {"replicas": 0}}, "replicas"),
        ({"inference": {"autoscaling": {"enabled": True}}}, "autoscaling"),
        ({"revison": "main"}, "revison"),
        ({"revision": "a b"}, "revision"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_of_a_next_base_is_refused_with_its_name(
    folder: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChartRefused, match=message):
        render({"model": {"next": {"base": NEWER, **given}}}, folder)
