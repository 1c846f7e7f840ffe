"""Who comes to Kafka, Kubernetes and Secrets: users and topics by Strimzi, service accounts, Secrets."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.k8s import strimzi
from shared.contracts.topics import load_topics
from shared.kafka.acls import Acl, required_acls
from shared.kafka.topics import configuration, count
from tests.support.chart import (
    CHART,
    ChartRefused,
    environments,
    named,
    pods,
    render,
    workloads,
)
from tests.support.chart_sets import SETS, objects_of

TENANTS = ("default", "acme-1.x")
PATTERNS = {"literal": "literal", "prefix": "prefixed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chart")


def specs(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == kind}


def test_the_chart_s_declarations_are_fresh() -> None:
    assert strimzi.DECLARATIONS.read_text() == strimzi.text(), "python -m deploy.k8s.strimzi"


def test_strimzi_s_topics_are_those_that_the_contracts_declare(folder: Path) -> None:
    declared = [one for topic in load_topics() for one in topic.for_tenants(TENANTS)]
    topics = specs(objects_of("strimzi", folder), "KafkaTopic").values()
    assert sorted(topics, key=lambda topic: topic["topicName"]) == [
        {
            "topicName": topic.name,
            "partitions": count(topic, 12),
            "replicas": 3,
            "config": configuration(topic, 3),
        }
        for topic in sorted(declared, key=lambda topic: topic.name)
    ]


def test_fewer_than_three_replicas_ask_for_one_acknowledgement(folder: Path) -> None:
    values = {"kafka": {"replication": 1}}
    topics = specs(render(values, folder, profiles=("strimzi",)), "KafkaTopic").values()
    assert {topic["replicas"] for topic in topics} == {1}
    assert not [topic for topic in topics if "min.insync.replicas" in topic["config"]]


def test_an_uninstalled_release_leaves_its_topics(folder: Path) -> None:
    topics = [one for one in objects_of("strimzi", folder) if one["kind"] == "KafkaTopic"]
    kept = {one["metadata"]["annotations"]["helm.sh/resource-policy"] for one in topics}
    assert kept == {"keep"}


def test_strimzi_s_users_may_what_the_command_prints_and_no_more(folder: Path) -> None:
    users = specs(objects_of("strimzi", folder), "KafkaUser")
    found = {
        Acl(
            f"User:{name}",
            operation,
            rule["resource"]["type"],
            rule["resource"]["name"],
            PATTERNS[rule["resource"]["patternType"]],
        )
        for name, spec in users.items()
        for rule in spec["authorization"]["acls"]
        for operation in rule["operations"]
    }
    assert found == set(required_acls(TENANTS, prefix="here-"))


def test_with_strimzi_each_service_logs_in_as_itself(folder: Path) -> None:
    objects = objects_of("strimzi-production", folder)
    users = specs(objects, "KafkaUser")
    for name, environment in environments(objects).items():
        user = environment["RATCHET_KAFKA_USERNAME"]
        assert user == f"here-{ {'report': 'cli', 'intake': 'feedback'}.get(name, name) }"
        assert users[user]["authentication"] == {"type": "scram-sha-512"}
        (volume,) = (one for one in pods(objects)[name]["volumes"] if one["name"] == "files-kafka")
        mounted = [one["secret"]["name"] for one in volume["projected"]["sources"]]
        assert mounted == [user, "kafka-cluster-ca-cert"]
        assert environment["RATCHET_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
        assert environment["RATCHET_KAFKA_SASL_MECHANISM"] == "SCRAM-SHA-512"
    assert "topics" not in workloads(objects)


def test_keda_asks_as_the_service_whose_lag_it_reads(folder: Path) -> None:
    objects = objects_of("strimzi-production", folder)
    for name, own in (("aggregator", "aggregator"), ("intake", "feedback")):
        access = named(objects, "TriggerAuthentication", f"here-{name}-kafka")["spec"]
        secrets = {one["parameter"]: one["name"] for one in access["secretTargetRef"]}
        assert secrets["password"] == f"here-{own}"
        user = named(objects, "Secret", secrets["username"])
        assert user["stringData"] == {"username": f"here-{own}"}


def test_every_secret_that_is_named_comes_from_the_store_and_none_is_in_the_release(
    folder: Path,
) -> None:
    objects = objects_of("external-secrets", folder)
    fetched = specs(objects, "ExternalSecret")
    assert {spec["target"]["name"] for spec in fetched.values()} == set(fetched)
    keys = {name: spec["dataFrom"] for name, spec in fetched.items()}
    assert keys == {name: [{"extract": {"key": f"ratchet/{name}"}}] for name in fetched}
    named_in_pods: set[str] = set()
    for pod in pods(objects).values():
        named_in_pods |= {
            one["secret"]["secretName"] for one in pod.get("volumes", []) if "secret" in one
        }
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            named_in_pods |= {
                one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one
            } | {one["valueFrom"]["secretKeyRef"]["name"] for one in container.get("env", [])}
    assert set(fetched) == named_in_pods
    # A user's name for KEDA is no secret.
    assert {one["metadata"]["name"] for one in objects if one["kind"] == "Secret"} == {
        "here-aggregator-kafka-user"
    }


@pytest.mark.parametrize("name", sorted(SETS))
def test_each_pod_has_its_component_s_account_without_rights_or_token(
    name: str, folder: Path
) -> None:
    objects = objects_of(name, folder)
    accounts = {o["metadata"]["name"]: o for o in objects if o["kind"] == "ServiceAccount"}
    used = {component: pod["serviceAccountName"] for component, pod in pods(objects).items()}
    # The Job of several nodes trains with the rights of training, and engines of any base are inference.
    own = {"training-job": "here-training", "next-base": "here-inference"}
    assert used == {component: own.get(component, f"here-{component}") for component in used}
    assert set(used.values()) == set(accounts)
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    assert not [o["kind"] for o in objects if "rbac.authorization.k8s.io" in o["apiVersion"]]


def test_what_a_cloud_binds_to_an_account_is_of_one_component_or_all(folder: Path) -> None:
    objects = objects_of("generated-keys-and-accounts", folder)
    every = {"example.com/team": "models"}
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/training"}
    for item in objects:
        if item["kind"] == "ServiceAccount":
            given = item["metadata"]["annotations"]
            training = item["metadata"]["name"] == "here-training"
            assert given == (every | role if training else every)
    yours = render({"serviceAccountName": "mine"}, folder)
    assert not [item for item in yours if item["kind"] == "ServiceAccount"]
    assert {pod["serviceAccountName"] for pod in pods(yours).values()} == {"mine"}


def test_generated_keys_are_mounted_where_they_are_read(folder: Path) -> None:
    objects = objects_of("generated-keys-and-accounts", folder)
    secret = named(objects, "Secret", "here-generated")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert all(len(base64.b64decode(text)) == 64 for text in secret["data"].values())
    variables = {
        "RATCHET_ENGINE_API_KEY_FILE": {"router", "rollout", "inference", "training"},
        "RATCHET_REDIS_SIGNING_FILE": {"router", "feedback", "intake", "rollout", "cli"},
    }
    environment = environments(objects)
    for variable, readers in variables.items():
        assert {name for name, one in environment.items() if variable in one} == readers
    mounted = {
        item["key"]
        for pod in pods(objects).values()
        for volume in pod.get("volumes", [])
        if volume.get("secret", {}).get("secretName") == "here-generated"
        for item in volume["secret"]["items"]
    }
    assert mounted == set(secret["data"]) == {"apiKey", "signing"}


def test_a_key_of_yours_stands_and_an_upgrade_keeps_what_was_generated(tmp_path: Path) -> None:
    engine = {"filesSecret": "mine", "files": {"apiKey": "key"}}
    yours = render({"generatedKeys": True, "engine": engine}, tmp_path)
    (volume,) = (v for v in pods(yours)["inference"]["volumes"] if v["name"] == "files-engine")
    assert volume["secret"]["secretName"] == "mine"

    # Without a cluster `lookup` finds nothing, so a copy of the chart is given what it would find.
    chart = tmp_path / "ratchet"
    shutil.copytree(CHART, chart)
    path = chart / "templates" / "generated-keys.yaml"
    call = '(lookup "v1" "Secret" .Release.Namespace $name)'
    assert call in path.read_text()
    path.write_text(path.read_text().replace(call, "$.Values.global"))
    there = {"apiKey": "b25l", "signing": "dHdv"}
    again = render({"generatedKeys": True, "global": {"data": there}}, tmp_path, chart=chart)
    assert named(again, "Secret", "here-generated")["data"] == there


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kafka": {"strimzi": {"enabled": True}, "username": "me"}}, "kafka.username"),
        ({"kafka": {"strimzi": {"enabled": True}, "filesSecret": "s"}}, "kafka.filesSecret"),
        ({"kafka": {"strimzi": {"enabled": True, "cluster": ""}}}, "cluster"),
        ({"kafka": {"strimzi": {"enabled": True}}, "tenants": ["acme_1"]}, "KafkaUser of acme_1"),
        ({"kafka": {"strimzi": {"enabled": True}}, "tenants": ["Acme"]}, "KafkaUser of Acme"),
        ({"externalSecrets": {"enabled": True}}, "externalSecrets.store.name"),
        ({"externalSecrets": {"store": {"kind": "Vault"}}}, "kind"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_work_is_refused_with_its_name(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChartRefused, match=message):
        render(values, folder)
