"""What a kubelet and a provisioner of volumes would do, played: pods run, Jobs end, claims are bound."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx

NODE = "node-1"
CAPACITY = {
    "cpu": "10k",
    "memory": "100Ti",
    "pods": "10k",
    "ephemeral-storage": "100Ti",
    "nvidia.com/gpu": "1k",
}
LABELS = {
    "kubernetes.io/hostname": NODE,
    "topology.kubernetes.io/zone": "zone-1",
    "nvidia.com/gpu.present": "true",
}
DISKS = {
    "metadata": {
        "name": "disks",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "example.com/played",
    "allowVolumeExpansion": True,
}
"""The class of claims that name none."""
LOOK_S, STOP_S = 0.2, 30.0
MERGE = {"content-type": "application/merge-patch+json"}
GONE = {httpx.codes.NOT_FOUND, httpx.codes.CONFLICT}
"""Somebody else was faster; the next look sees it."""
Object = Mapping[str, Any]


class PlayedKubelet:
    """A node with room for everything, as long as it is entered.

    Pods that the scheduler put on it are ready at once, those of Jobs succeed, those that are being
    deleted go, and every claim gets a volume of its own. What goes wrong is raised on exit.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._play, name="kubelet", daemon=True)

    def __enter__(self) -> Self:
        node = {"metadata": {"name": NODE, "labels": LABELS}}
        self._http.post("/api/v1/nodes", json=node).raise_for_status()
        self._http.post("/apis/storage.k8s.io/v1/storageclasses", json=DISKS).raise_for_status()
        status = {"capacity": CAPACITY, "allocatable": CAPACITY, "conditions": [_true("Ready")]}
        self._patch(f"/api/v1/nodes/{NODE}/status", {"status": status})
        # A new node is tainted until a controller that watches kubelets finds it ready.
        self._patch(f"/api/v1/nodes/{NODE}", {"spec": {"taints": None}})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(STOP_S)
        if self._error and not error:
            raise self._error

    def _play(self) -> None:
        try:
            while not self._ended.wait(LOOK_S):
                for pod in self._items("pods"):
                    self._see_to_pod(pod)
                for claim in self._items("persistentvolumeclaims"):
                    if claim["status"].get("phase") == "Pending" and not claim["spec"].get(
                        "volumeName"
                    ):
                        self._provide(claim)
        except (httpx.HTTPError, KeyError) as problem:
            self._error = problem

    def _items(self, plural: str) -> list[dict[str, Any]]:
        return self._http.get(f"/api/v1/{plural}").raise_for_status().json()["items"]

    def _see_to_pod(self, pod: Object) -> None:
        metadata = pod["metadata"]
        place = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            _check(self._http.request("DELETE", place, json={"gracePeriodSeconds": 0}))
        elif pod["spec"].get("nodeName") and pod["status"]["phase"] == "Pending":
            self._patch(f"{place}/status", {"status": _status(pod)})

    def _provide(self, claim: Object) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        volume = {
            "metadata": {"name": f"volume-{metadata['uid']}"},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "storageClassName": spec.get("storageClassName", ""),
                "hostPath": {"path": "/nowhere"},
                "claimRef": {
                    "namespace": metadata["namespace"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        _check(self._http.post("/api/v1/persistentvolumes", json=volume))

    def _patch(self, place: str, change: Object) -> None:
        _check(self._http.patch(place, content=json.dumps(change), headers=MERGE))


def _check(answer: httpx.Response) -> None:
    if answer.status_code not in GONE:
        answer.raise_for_status()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _true(condition: str) -> dict[str, str]:
    return {"type": condition, "status": "True", "lastTransitionTime": _now(), "reason": "Played"}


def _status(pod: Object) -> dict[str, Any]:
    """A pod that is ready, or whose containers have ended well where a Job made it."""
    makers = {owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": _now()}}
    runs = {"running": {"startedAt": _now()}}
    job = "Job" in makers
    ready = [] if job else [_true("Ready"), _true("ContainersReady")]
    return {
        "phase": "Succeeded" if job else "Running",
        "startTime": _now(),
        "conditions": [_true("PodScheduled"), _true("Initialized"), *ready],
        "initContainerStatuses": [
            _container(one, ended, ready=True) for one in pod["spec"].get("initContainers", [])
        ],
        "containerStatuses": [
            _container(one, ended if job else runs, ready=not job)
            for one in pod["spec"]["containers"]
        ],
    }


def _container(one: Object, state: Object, *, ready: bool) -> dict[str, Any]:
    return {
        "name": one["name"],
        "image": one["image"],
        "imageID": "",
        "restartCount": 0,
        "ready": ready,
        "started": ready,
        "state": state,
    }
