"""The official OpenAI client against the router before a real vLLM."""

from __future__ import annotations

import openai
import pytest

from deploy.local.stack import Stack

QUESTION = "Where is my parcel?"


@pytest.fixture
def client(serving: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.url('router')}/v1", api_key="none", max_retries=0)


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
