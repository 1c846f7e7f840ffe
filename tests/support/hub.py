"""A stand-in for a model hub's HTTP API on this machine: takes what `upload_folder` sends, or refuses it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import yaml

REPOSITORY = "team/assistant"
COMMIT = "c" * 40
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
STORED_APART = (".safetensors", ".bin", ".parquet")
"""Endings of files whose bytes go to large-file storage, as in a hub's `.gitattributes`."""


def metadata_errors(card: str) -> list[str]:
    """What a hub's `/api/validate-yaml` refuses in a model card's front matter."""
    found = FRONT_MATTER.match(card)
    if not found:
        return ["no YAML front matter"]
    fields: dict[str, Any] = yaml.safe_load(found[1])
    bases = fields.get("base_model", [])
    wrong = [
        f'"base_model" {base!r} is no id of a model'
        for base in ([bases] if isinstance(bases, str) else bases)
        if not HUB_ID.fullmatch(base)
    ]
    if not all(isinstance(tag, str) and tag for tag in fields.get("tags", [])):
        wrong.append('"tags" must be texts')
    texts = ("library_name", "pipeline_tag", "license")
    wrong += [
        f'"{name}" must be a text' for name in texts if not isinstance(fields.get(name, ""), str)
    ]
    return wrong


class Hub(ThreadingHTTPServer):
    """Holds what was uploaded and committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.blobs: dict[str, bytes] = {}
        self.committed: dict[str, str] = {}
        """SHA-256 of each file of the commit, by its path."""
        self.validated: list[str] = []

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a POST."""
        if path == "/api/repos/create":
            return 200, {"url": f"{self.url}/{REPOSITORY}", "id": REPOSITORY}
        if path == "/api/validate-yaml":
            card: str = json.loads(body)["content"]
            self.validated.append(card)
            errors = [{"message": error} for error in metadata_errors(card)]
            return 400 if errors else 200, {"errors": errors, "warnings": []}
        if path == f"/api/models/{REPOSITORY}/preupload/main":
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            asked = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._place(one) for one in asked]}
        if path == f"/api/models/{REPOSITORY}/commit/main":
            return self._commit([json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"{path} is not played"}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.url}/blobs/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _commit(self, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.blobs.get(value["oid"], b"")
                if len(content) != value["size"]:
                    return 400, {"error": f"{value['path']}: {value['oid']} was not uploaded"}
            else:
                continue
            self.committed[value["path"]] = hashlib.sha256(content).hexdigest()
        place = f"{self.url}/{REPOSITORY}/commit/{COMMIT}"
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": place, "hookOutput": ""}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs, ended on leaving."""
    with Hub() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join(10)


def _mode(path: str) -> dict[str, Any]:
    apart = path.endswith(STORED_APART)
    return {"path": path, "uploadMode": "lfs" if apart else "regular", "shouldIgnore": False}


class _Request(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self._send(*cast("Hub", self.server).answer(self.path.partition("?")[0], self._body()))

    def do_PUT(self) -> None:
        content, (_, _, oid) = self._body(), self.path.rpartition("/")
        right = hashlib.sha256(content).hexdigest() == oid
        if right:
            cast("Hub", self.server).blobs[oid] = content
        self._send(200 if right else 400, {})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
