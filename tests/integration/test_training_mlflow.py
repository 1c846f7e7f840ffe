"""A job's tracking against a real local MLflow server: run, curves, artefacts, model registry."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.environments import locked_environment
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, request
from tests.unit.training.harness import stocked

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with MLflow's client and server, as the lock pins them."""
    return locked_environment("mlflow", tmp_path_factory.mktemp("mlflow") / "venv")


def as_compose_starts_it(folder: Path, port: int) -> list[str]:
    """The command of compose's server, at a port and in a folder of ours."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    found = [
        part.replace("/var/lib/mlflow", str(folder)).replace("0.0.0.0", "127.0.0.1")
        for part in compose["services"]["mlflow"]["command"]
    ]
    return [
        part.replace("=5000", f"={port}").replace("127.0.0.1:5000", f"127.0.0.1:{port}")
        for part in found
    ]


@pytest.fixture
def server(python: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "server.log").open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", *as_compose_starts_it(tmp_path, port)], stdout=output, stderr=output
        )
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(60)


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return json.loads(answer.read())


def answered(server: str, host: str) -> int:
    """The status for a caller that knows the server by this name."""
    asked = urllib.request.Request(
        f"{server}/api/2.0/mlflow/experiments/search?max_results=1", headers={"host": host}
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


async def test_compose_s_server_answers_by_its_name_in_compose_and_no_other(server: str) -> None:
    await eventually(lambda: up(server), "the server is up", timeout_s=300)
    assert answered(server, "mlflow:5000") == 200
    assert answered(server, "elsewhere.example:5000") == 403


def up(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


async def test_a_job_is_one_run_with_curves_artefacts_and_a_registered_version(
    server: str, python: Path, tmp_path: Path
) -> None:
    await eventually(lambda: up(server), "the server is up", timeout_s=300)
    harness = await stocked(tmp_path)
    changes = {"mlflow_tracking_uri": server, "mlflow_python": str(python)}
    outcome = await harness.run(request(), **changes)
    assert harness.metrics.tracked.labels("logged")._value.get() == 1
    api = f"{server}/api/2.0/mlflow"
    experiment = ask(f"{api}/experiments/get-by-name?experiment_name=ratchet/{MODEL}")
    found = ask(
        f"{api}/runs/search", {"experiment_ids": [experiment["experiment"]["experiment_id"]]}
    )
    (run,) = found["runs"]
    assert (run["info"]["run_name"], run["info"]["status"]) == (outcome.version, "FINISHED")
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert params["method"] == "dpo"
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert metrics["win_rate"] == pytest.approx(0.775)
    listed = ask(f"{api}/artifacts/list?run_id={run['info']['run_id']}")["files"]
    assert {"report.html", "adapter_model.safetensors"} <= {one["path"] for one in listed}
    versions = ask(f"{api}/model-versions/search")["model_versions"]
    assert [(one["name"], one["version"], one["run_id"]) for one in versions] == [
        (MODEL, "1", run["info"]["run_id"])
    ]
