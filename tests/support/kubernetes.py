"""A Kubernetes control plane with its etcd, without nodes: what a cluster says of the chart's objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from deploy.local.ports import HOST, free_ports
from tests.support.chart import HELM
from tests.support.go import build
from tests.support.played_kubelet import PlayedKubelet
from tests.support.waiting import wait_until

CLUSTER = Path(__file__).parent / "cluster"
VERSION = "v1.34.0"
"""As the module `cluster` requires it; helm asks the server for it."""
TOKEN = "tests"
READY_S, CALL_S, STOP_S, COMMAND_S = 120.0, 30.0, 20.0, 300.0
CONTROLLERS = (
    *("deployment", "replicaset", "statefulset", "job", "cronjob", "disruption"),
    *("persistentvolume-binder", "persistentvolumeclaim-protection", "serviceaccount"),
    *("namespace", "garbage-collector", "endpointslice"),
)
"""Those that install and change a release; none that watches a kubelet or asks for metrics."""
Object = Mapping[str, Any]


def structural(schema: Any) -> Any:
    """The schema as a server takes it: unknown fields are refused unless it says that they are kept."""
    if isinstance(schema, list):
        return [structural(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    more: dict[str, Any] = {}
    if "anyOf" in schema:
        more["x-kubernetes-int-or-string"] = True
    elif schema.get("type") == "object" and not {"properties", "additionalProperties"} & set(
        schema
    ):
        more["x-kubernetes-preserve-unknown-fields"] = True
    return more | {
        name: structural(part)
        for name, part in schema.items()
        if not (name == "additionalProperties" and part is False)
    }


def built(folder: Path) -> Path:
    """The program of all parts (four minutes, seconds again)."""
    binary = folder / "cluster"
    build(CLUSTER, binary, variables=f"-X k8s.io/component-base/version.gitVersion={VERSION}")
    return binary


class KubernetesApi:
    """The API server and its etcd, started in an empty folder when entered; `binary` is what `built` made."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self._folder = folder
        self._binary = binary
        self.kubeconfig = folder / "kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = free_ports(("etcd", "peers", "api"))
        self._etcd, self._peers = (f"http://{HOST}:{ports[name]}" for name in ("etcd", "peers"))
        self._port = ports["api"]
        self._plurals: dict[tuple[str, str], str] = {}
        self._http = httpx.Client(
            base_url=f"https://{HOST}:{self._port}",
            headers={"authorization": f"Bearer {TOKEN}"},
            verify=False,
            timeout=CALL_S,
        )

    def helm(self, verb: str, *arguments: str | Path, namespace: str) -> list[str]:
        """Run helm against this server; what it says beside its output, by line."""
        return self._run(HELM, verb, *arguments, "--namespace", namespace).stderr.splitlines()

    def kubectl(self, *arguments: str | Path) -> tuple[list[str], list[str]]:
        """Run kubectl against this server; its output and what it says beside that, by line."""
        done = self._run("kubectl", *arguments)
        return done.stdout.splitlines(), done.stderr.splitlines()

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*command, "--kubeconfig", self.kubeconfig],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @contextmanager
    def with_controllers(self) -> Iterator[Self]:
        """With controllers, scheduler and a played kubelet: what is applied is carried out."""
        account = (f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0")
        names = ",".join(f"{name}-controller" for name in CONTROLLERS)
        self._start("kube-controller-manager", *account, f"--controllers={names}")
        self._start("kube-scheduler", *account)
        with PlayedKubelet(self._http):
            yield self

    def apply(self, item: Object, namespace: str) -> tuple[Object, list[str]]:
        """Server-side apply with strict validation: the object as it is now, and the warnings."""
        answer = self._http.patch(
            self._path(item, namespace),
            content=json.dumps(item),
            params={"fieldManager": "tests", "fieldValidation": "Strict", "force": "true"},
            headers={"content-type": "application/apply-patch+yaml"},
        )
        body = answer.json()
        assert answer.is_success, f"{item['kind']} {item['metadata']['name']}: {body['message']}"
        return body, answer.headers.get_list("warning", split_commas=False)

    def get(self, item: Object, namespace: str) -> dict[str, Any]:
        """The object of this kind and name."""
        answer = self._http.get(self._path(item, namespace))
        assert answer.is_success, answer.text
        return answer.json()

    def scale(self, item: Object, namespace: str, replicas: int) -> None:
        """What an autoscaler does to a workload."""
        answer = self._http.patch(
            f"{self._path(item, namespace)}/scale",
            content=json.dumps({"spec": {"replicas": replicas}}),
            headers={"content-type": "application/merge-patch+json"},
        )
        assert answer.is_success, answer.text

    def add_kinds(self, crds: Iterable[Object]) -> None:
        """Define custom resources by the schema of their `spec`."""
        for crd in crds:
            group, version = crd["apiVersion"].split("/")
            kind, plural = crd["kind"], f"{crd['kind'].lower()}s"
            spec = {"type": "object", **structural(crd["spec"])}
            schema = {"properties": {"spec": spec}, "type": "object"}
            definition = {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": f"{plural}.{group}",
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
                },
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural},
                    "versions": [
                        {
                            "name": version,
                            "served": True,
                            "storage": True,
                            "schema": {"openAPIV3Schema": schema},
                        }
                    ],
                },
            }
            self.apply(definition, "")
            wait_until(
                lambda place=f"/apis/{group}/{version}/{plural}": (
                    self._http.get(place).status_code == httpx.codes.OK
                ),
                f"{kind} is served",
                timeout_s=READY_S,
            )

    def _path(self, item: Object, namespace: str) -> str:
        version, kind = item["apiVersion"], item["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._plurals:
            found = self._http.get(root).raise_for_status().json()["resources"]
            self._plurals |= {
                (version, one["kind"]): one["name"] for one in found if "/" not in one["name"]
            }
        place = f"{root}/namespaces/{namespace}" if namespace else root
        return f"{place}/{self._plurals[version, kind]}/{item['metadata']['name']}"

    def __enter__(self) -> Self:
        key, tokens = self._folder / "accounts.key", self._folder / "tokens.csv"
        making = ("openssl", "genrsa", "-out", str(key), "2048")
        subprocess.run(making, check=True, capture_output=True)
        tokens.write_text(f"{TOKEN},admin,1,system:masters\n")
        self._start(
            "etcd",
            f"--data-dir={self._folder}/etcd",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={self._peers}",
        )
        self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            f"--bind-address={HOST}",
            f"--secure-port={self._port}",
            f"--cert-dir={self._folder}/certs",
            f"--token-auth-file={tokens}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://tests",
            "--service-cluster-ip-range=10.0.0.0/20",
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
        )
        wait_until(self._is_ready, "the API server is ready", timeout_s=READY_S)
        self.kubeconfig.write_text(yaml.safe_dump(self._configuration()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait(STOP_S)

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([self._binary, *command], stdout=log, stderr=subprocess.STDOUT)
            )

    def _is_ready(self) -> bool:
        ended = [process.args for process in self._processes if process.poll() is not None]
        assert not ended, f"{ended}: see {self._folder}"
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _configuration(self) -> Object:
        server = {"server": str(self._http.base_url), "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": server}],
            "users": [{"name": "tests", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "current-context": "tests",
        }
