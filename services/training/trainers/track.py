"""`python -m services.training.trainers.track <folder>`: logs one job to MLflow, from `run.json`.

A process of its own in an environment that has mlflow or mlflow-skinny, so that neither its imports
nor a server that hangs can touch the service. A job that was logged before is logged over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

JOB_TAG = "ratchet.job_id"
MAX_TEXT = 6000
"""Characters of a parameter's value; MLflow takes no more."""


def main(folder: Path) -> int:
    """Log the run that `<folder>/run.json` describes, with the files below `<folder>/artifacts`."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    told: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    client = MlflowClient()
    run_id = _run(client, told)
    at = told["at_ms"]
    figures = [Metric(name, value, at, 0) for name, value in told["metrics"].items()]
    curves = [Metric(one["name"], one["value"], at, one["step"]) for one in told["curves"]]
    client.log_batch(
        run_id,
        metrics=[*figures, *curves],
        params=[Param(name, str(value)[:MAX_TEXT]) for name, value in told["params"].items()],
        tags=[RunTag(name, value) for name, value in told["tags"].items()],
    )
    artifacts = folder / "artifacts"
    if artifacts.is_dir():
        client.log_artifacts(run_id, str(artifacts))
    if told["version"]:
        _register(client, run_id, told)
    client.set_terminated(run_id, status=told["status"])
    print(run_id)
    return 0


def _run(client: Any, told: dict[str, Any]) -> str:
    """The run of this job: the one of an earlier try, else a new one."""
    experiment = client.get_experiment_by_name(told["experiment"])
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(told["experiment"])
    )
    known = client.search_runs(
        [experiment_id], filter_string=f"tags.`{JOB_TAG}` = '{told['job_id']}'", max_results=1
    )
    if known:
        return known[0].info.run_id
    tags = {JOB_TAG: told["job_id"]}
    return client.create_run(experiment_id, run_name=told["name"], tags=tags).info.run_id


def _register(client: Any, run_id: str, told: dict[str, Any]) -> None:
    """Make the version one of the registered model's, unless an earlier try did."""
    from mlflow.exceptions import MlflowException

    name, version = told["registered_model"], told["version"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if any(one.run_id == run_id for one in client.search_model_versions(f"name = '{name}'")):
        return
    source = client.get_run(run_id).info.artifact_uri
    client.create_model_version(name, source, run_id, tags={"ratchet.version": version})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
