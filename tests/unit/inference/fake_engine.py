"""Behaves like vLLM as far as the service can tell. In process for the agent's tests, and as a
program (`python fake_engine.py <port> <mode> <pid file>`) with children of its own for the
launcher's. Standard library only, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class FakeEngine:
    """An engine whose answers a test decides: `answers` gives each model's log-probability."""

    def __init__(self, port: int = 0) -> None:
        self.loaded: dict[str, str] = {}
        self.answers: dict[str, float] = {"base": -9.0}
        self.calls: list[tuple[str, str]] = []
        self.traceparents: list[str] = []
        """Of chat completions, empty where one had none."""
        self.healthy = True
        self.running = 0
        self.waiting = 0
        self.refuse_loads = ""
        self.message: dict[str, Any] = {}
        self.fail_generations = 0
        self.on_generate: Callable[[dict[str, Any]], None] = lambda _: None
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                self.answer(*engine.get(self.path))

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                if self.path == "/v1/chat/completions":
                    engine.traceparents.append(self.headers.get("traceparent", ""))
                self.answer(*engine.post(self.path, json.loads(self.rfile.read(length))))

            def answer(self, status: int, body: object) -> None:
                content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, path: str) -> tuple[int, object]:
        if path == "/health":
            return (200 if self.healthy else 503), ""
        if path == "/metrics":
            busy = ",".join(self.loaded) if self.running else ""
            return 200, (
                f'vllm:num_requests_running{{engine="0"}} {self.running}.0\n'
                f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
                f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{busy}",'
                'waiting_lora_adapters=""} 1.0\n'
            )
        cards = [{"id": "base", "parent": None}]
        return 200, {"data": cards + [{"id": name, "parent": "base"} for name in self.loaded]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        name = str(body.get("lora_name") or body.get("model"))
        self.calls.append((path.rsplit("/", 1)[-1], name))
        match path:
            case "/v1/load_lora_adapter":
                if self.refuse_loads or name in self.loaded:
                    return 400, error(self.refuse_loads or "already loaded")
                self.loaded[name] = body["lora_path"]
                return 200, "Success"
            case "/v1/unload_lora_adapter":
                if self.loaded.pop(name, None) is None:
                    return 404, error("cannot be found")
                return 200, "Success"
            case "/tokenize":
                return 200, {"tokens": [len(word) for word in body["prompt"].split()]}
            case _ if name != "base" and name not in self.loaded:
                return 404, error(f"The model `{name}` does not exist.")
            case "/v1/completions":
                return 200, {"choices": self.choices(name, body["prompt"])}
            case _:
                if self.fail_generations:
                    self.fail_generations -= 1
                    return 400, error("cannot")
                self.on_generate(body)
                message = self.message or {"content": f"I am {name}"}
                choice = {"message": message, "finish_reason": "stop"}
                return 200, {"choices": [choice], "usage": {"completion_tokens": 3}}

    def choices(self, name: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
        value = self.answers[name]
        return [
            {
                "index": number,
                "prompt_logprobs": [None, *({str(token): {"logprob": value}} for token in ids[1:])],
            }
            for number, ids in enumerate(prompts)
        ]


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def main(port: int, mode: str, pids: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with pids.open("a") as file:
        file.write(f"{child.pid}\n")
    if mode == "dies":
        sys.exit(3)
    if mode == "never":
        time.sleep(600)
    with FakeEngine(port) as engine:
        if mode == "dies at first":
            engine.on_generate = lambda _: os._exit(4)
        if mode == "sickens":
            time.sleep(0.5)
            engine.healthy = False
        time.sleep(600)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
