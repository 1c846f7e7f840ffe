"""The Helm chart rendered by helm itself, and what its objects are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubernetes_validate import utils

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "k8s" / "helm" / "ratchet"
HELM = ROOT / ".tools" / "bin" / "helm"
KUBERNETES = "1.32"
"""Rendered for; objects are checked by the oldest version that the chart takes and the newest known, too."""
_LEAST = re.compile(r">=(\d+\.\d+)\.")


class ChartRefused(Exception):
    """helm ended with an error; the message is its own."""


def run_helm(*arguments: str | Path) -> str:
    """helm's output; what it says beside it, a warning, counts as an error."""
    assert HELM.exists(), "run make setup"
    done = subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ChartRefused(done.stdout + done.stderr)
    assert not done.stderr, done.stderr
    return done.stdout


def render(
    values: Mapping[str, Any],
    folder: Path,
    *,
    chart: Path = CHART,
    release: str = "here",
    profiles: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The chart's objects with these values, laid over the profiles named."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    layers = [chart / "profiles" / f"{name}.yaml" for name in profiles]
    text = run_helm(
        *("template", release, chart, "--namespace", "there", "--kube-version", KUBERNETES),
        *(part for layer in [*layers, file] for part in ("--values", layer)),
    )
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item is not None]


@cache
def supported() -> tuple[str, ...]:
    """The versions of Kubernetes by whose schemas objects are checked."""
    asked = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    least = _LEAST.match(asked)
    assert least, asked
    newest = kubernetes_validate.latest_version().rpartition(".")[0]
    return least[1], KUBERNETES, newest


def validate(item: Mapping[str, Any]) -> None:
    """Strict validation of an object by Kubernetes' own schemas."""
    _validate(json.dumps(item, sort_keys=True))


@cache
def _validate(item: str) -> None:
    # Most objects are the same in every set of values.
    for version in supported():
        kubernetes_validate.validate(json.loads(item), version, strict=True)


# Else each validation reads and parses the definitions of all kinds anew.
utils.schema_contents = cache(utils.schema_contents)


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """One object."""
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def workloads(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Deployments, StatefulSets and Jobs by their component; of a CronJob the Job it makes."""
    return {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: (
            item["spec"]["jobTemplate"] if item["kind"] == "CronJob" else item
        )
        for item in objects
        if item["kind"] in {"Deployment", "StatefulSet", "Job", "CronJob"}
    }


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each workload's pod by its component."""
    return {name: one["spec"]["template"]["spec"] for name, one in workloads(objects).items()}


def environments(objects: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The environment of each component, as its ConfigMap has it."""
    return {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: item["data"]
        for item in objects
        if item["kind"] == "ConfigMap" and any(key.startswith("RATCHET_") for key in item["data"])
    }
