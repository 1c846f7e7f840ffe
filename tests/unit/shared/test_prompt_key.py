"""Prompt keys of the published vectors; a change of the normal form needs a new version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.events.base import Message
from shared.contracts.prompt_key import PROMPT_KEY_VERSION, normal_prompt, prompt_key

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "shared/contracts/prompt-key-vectors.json").read_text(
        encoding="utf-8"
    )
)


def test_the_vectors_are_of_this_version() -> None:
    assert PUBLISHED["version"] == PROMPT_KEY_VERSION


@pytest.mark.parametrize("vector", PUBLISHED["vectors"])
def test_the_published_vectors(vector: dict[str, Any]) -> None:
    messages = [Message(**turn) for turn in vector["messages"]]
    assert normal_prompt(messages) == vector["normal"]
    assert prompt_key(vector["tenant"], messages) == vector["key"]
