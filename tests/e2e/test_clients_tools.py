"""The circle of a tool-using conversation: correction, pair, dataset row, DPO, served version."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from deploy.local.stack import Stack
from tests.e2e.versions import CITIES, HURRIED, WEATHER_CALL
from tests.support.command import ratchet
from tests.support.waiting import wait_until

VERSION = "assistant-v4.0"
CORRECTIONS = 24
JOINED = re.compile(
    r'^ratchet_feedback_total\{[^}]*type="text_correction"[^}]*\} (\S+)', re.MULTILINE
)


def call_of(city: str) -> str:
    """A call in the words of the model's chat template, as a person corrects an answer to it."""
    call = json.dumps({"name": "weather", "arguments": {"city": city}})
    return f"<tool_call>{call}</tool_call>"


def asked(number: int) -> dict[str, Any]:
    """A request after a first call and its result, which asks about the other city."""
    first, second = CITIES[number % 2], CITIES[(number + 1) % 2]
    function = {"name": "weather", "arguments": json.dumps({"city": first})}
    turns = [
        {"role": "user", "content": f"Trip {number}: how warm is it in {first}?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": f"{number} C"},
        {"role": "user", "content": f"And in {second}?"},
    ]
    return {**WEATHER_CALL, "messages": turns}


def correct_answers(stack: Stack, client: openai.OpenAI) -> None:
    """Asks what takes a second call; people correct each answer, which is prose, to the call."""
    for number in range(CORRECTIONS):
        user = f"traveller-{number}"
        prose = {"tool_choice": "auto", "max_tokens": 16, "user": user}
        answer = client.chat.completions.create(**{**asked(number), **prose})
        assert answer.choices[0].message.content
        corrected = call_of(CITIES[(number + 1) % 2])
        httpx.post(
            f"{stack.url('feedback')}/v1/feedback",
            json={
                "trace_id": answer.id,
                "type": "text_correction",
                "value": {"corrected": corrected},
                "user_id": user,
            },
            timeout=30,
        ).raise_for_status()


def counted(stack: Stack) -> float:
    """Corrections that the aggregator joined to their interactions."""
    text = httpx.get(f"{stack.url('aggregator')}/metrics").text
    return sum(float(figure) for figure in JOINED.findall(text))


def trained_rows(dataset_uri: str) -> list[dict[str, Any]]:
    """Rows of a dataset that have tools."""
    lines = (Path(urlsplit(dataset_uri).path) / "train.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "tools" in row]


def assert_calls(answer: ChatCompletion) -> None:
    """The engine's parser read one call with its arguments, and no text is left beside it."""
    assert answer.model == VERSION
    (choice,) = answer.choices
    assert not choice.message.content
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITIES


@pytest.mark.verify
@pytest.mark.timeout(1_200)
def test_corrected_tool_conversations_teach_a_version_whose_calls_parse(serving: Stack) -> None:
    """From the correction to the parsed call, through every service.

    The engine's grammar holds the call to its form, and the parser reads it from the text: so few
    steps do not teach so small a model to call of its own accord, and this does not show it.
    """
    env = serving.environment()
    base_url = f"{serving.url('router')}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        correct_answers(serving, client)

        wait_until(lambda: counted(serving) >= CORRECTIONS, "corrections are joined")
        made = ratchet(
            *("train", "--method", "dpo", "--version", VERSION, "--wait"),
            *shlex.split(HURRIED),
            env=env,
            timeout_s=420,
        )
        assert made.status == 0, made.out + made.err
        record = ratchet("versions", "show", VERSION, "--json", env=env).json["record"]
        assert record["method"] == "dpo"
        rows = trained_rows(record["dataset"]["uri"])
        assert len(rows) > CORRECTIONS / 3  # others are set apart or held out
        for row in rows:
            roles = [turn["role"] for turn in row["messages"]]
            assert roles == ["user", "assistant", "tool", "user"]
            assert row["chosen"] in map(call_of, CITIES)

        wanted = ("--reason", "its calls are to be seen")
        started = ratchet("rollout", "start", VERSION, *wanted, env=env)
        assert started.status == 0, started.out + started.err

        def promoted() -> bool:
            # The first one ends the shadow step.
            moves = (("promote",), ("promote", "--full"))
            return all(ratchet("rollout", *move, *wanted, env=env).status == 0 for move in moves)

        wait_until(promoted, f"{VERSION} serves and is promoted", timeout_s=120)

        def served() -> bool:
            answer = client.chat.completions.create(**asked(CORRECTIONS))
            return answer.model == VERSION

        wait_until(served, f"{VERSION} answers", timeout_s=120)
        assert_calls(client.chat.completions.create(**asked(CORRECTIONS)))
        with client.chat.completions.stream(**asked(CORRECTIONS)) as stream:
            assert_calls(stream.get_final_completion())
