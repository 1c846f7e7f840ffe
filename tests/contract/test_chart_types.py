"""What the chart hands on to Kubernetes is refused by helm where Kubernetes knows no such key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deploy.k8s import values_schema
from tests.support.chart import ChartRefused, render, validate

SCHEMA: dict[str, Any] = json.loads(values_schema.SCHEMA.read_text())
CRDS = Path(__file__).parent / "crds"
OPEN = {
    "properties/global": "Helm's own, which charts around this one may fill",
    "$defs/io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "Kubernetes leaves it open",
}
TERM = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "kubernetes.io/hostname"}
NODE = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]}
SPREAD = {**TERM, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
PEER = {"podSelector": {"matchLabels": {"app": "kafka"}}}
VOLUMES = [
    {"name": "a", "emptyDir": {"sizeLimit": "1Gi"}},
    {"name": "b", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}},
    {"name": "c", "csi": {"driver": "d", "readOnly": True}},
    {"name": "d", "projected": {"sources": [{"configMap": {"name": "m", "optional": True}}]}},
    {"name": "e", "persistentVolumeClaim": {"claimName": "p"}},
]
ENDPOINTS = ("kafka", "redis", "prometheus", "detector", "storage", "endpoints", "tracing")
KNOWN: dict[str, Any] = {
    "image": {"pullSecrets": [{"name": "s"}]},
    "extraVolumes": VOLUMES,
    "extraVolumeMounts": [{"name": one["name"], "mountPath": f"/{one['name']}"} for one in VOLUMES],
    "podSecurityContext": {"fsGroup": 1, "windowsOptions": {"runAsUserName": "u"}},
    "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
    "cli": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": NODE}}},
    "services": {
        name: {
            "resources": {"limits": {"nvidia.com/gpu": 1}, "claims": [{"name": "c"}]},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [SPREAD],
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "podAffinityTerm": TERM}
                    ]
                }
            },
        }
        for name in ("router", "inference")
    },
    "ingress": {
        "enabled": True,
        "hosts": {"router": "r.example"},
        "tls": [{"secretName": "t", "hosts": ["r.example"]}],
    },
    "gateway": {"parentRefs": [{"name": "g", "sectionName": "https", "port": 443}]},
    "networkPolicy": {
        "enabled": True,
        "clients": [PEER],
        "monitoring": [PEER],
        **{name: {"ports": [1], "peers": [PEER]} for name in ENDPOINTS},
    },
}
"""Every value that is of a Kubernetes type."""


def objects(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Places of the objects of Kubernetes' types in the values: what takes no free names."""
    if isinstance(part, dict):
        if _typed(path):
            yield path
        for key, value in part.items():
            yield from objects(value, (*path, key))
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from objects(value, (*path, number))


def _typed(path: tuple[str | int, ...]) -> bool:
    free = ("matchLabels", "limits")
    ours = {"hosts", *ENDPOINTS}
    if not path or path[-1] in free or path[-1] in ours:
        return False
    lists = any(isinstance(step, int) for step in path)
    return lists or path[-1] in {"resources", "affinity"} or "ecurityContext" in str(path[0])


def misspelt(values: Any, path: tuple[str | int, ...]) -> Any:
    """The values with a key at a place that Kubernetes does not know."""
    copy = json.loads(json.dumps(values))
    place = copy
    for step in path:
        place = place[step]
    place["misspelt"] = {}
    return copy


def within(values: Any, path: tuple[str | int, ...]) -> Any:
    """Only the value that a place is in: the others are no matter of its test."""
    return {path[0]: values[path[0]]}


def test_what_kubernetes_knows_is_taken_and_valid(tmp_path: Path) -> None:
    for item in render({**KNOWN, "gateway": {}}, tmp_path):
        validate(item)
    render({"gateway": {"enabled": True, "hosts": {"router": "r"}, **KNOWN["gateway"]}}, tmp_path)


PLACES = list(objects(KNOWN))
DEEPEST = {
    (path[0], path[2] if path[0] == "services" else ""): path
    for path in sorted(PLACES, key=len)
    if path[:2] != ("services", "inference")
}


@pytest.mark.parametrize(
    "path", DEEPEST.values(), ids=lambda path: ".".join(str(step) for step in path)
)
def test_helm_refuses_a_key_that_kubernetes_does_not_know_by_its_name(
    tmp_path: Path, path: tuple[str | int, ...]
) -> None:
    with pytest.raises(ChartRefused, match="misspelt"):
        render(misspelt(within(KNOWN, path), path), tmp_path)


def test_such_a_key_is_refused_at_every_place() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert list(validator.iter_errors(KNOWN)) == []
    taken = [
        ".".join(map(str, path))
        for path in PLACES
        if not any(
            "misspelt" in one.message for one in validator.iter_errors(misspelt(KNOWN, path))
        )
    ]
    assert len(PLACES) > 60
    assert taken == []


def test_every_value_is_closed_or_a_map_of_its_own() -> None:
    def opened(part: Any, path: str) -> Iterator[str]:
        if isinstance(part, dict):
            kinds = part.get("type", [])
            kinds = [kinds] if isinstance(kinds, str) else kinds
            if "object" in kinds and "additionalProperties" not in part and "$ref" not in part:
                yield path
            for key, value in part.items():
                yield from opened(value, f"{path}/{key}".lstrip("/"))
        elif isinstance(part, list):
            for number, value in enumerate(part):
                yield from opened(value, f"{path}/{number}")

    assert set(opened(SCHEMA, "")) == OPEN.keys()


def test_types_are_those_of_kubernetes() -> None:
    assert values_schema.SCHEMA.read_text() == values_schema.text(SCHEMA), (
        "python -m deploy.k8s.values_schema"
    )


def test_a_gateways_reference_has_the_fields_of_its_definition() -> None:
    asked = json.loads((CRDS / "HTTPRoute.json").read_text())["spec"]["properties"]["parentRefs"]
    ours = SCHEMA["properties"]["gateway"]["properties"]["parentRefs"]["items"]
    assert ours["properties"].keys() == asked["items"]["properties"].keys()
    assert ours["required"] == asked["items"]["required"]
