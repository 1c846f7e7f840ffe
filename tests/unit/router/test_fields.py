"""No field of a body is dropped without a word (case settings-dropped)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

from services.router.errors import InvalidRequest
from services.router.fields import (
    ENGINE_FIELDS,
    MAX_NAMED,
    ROUTER_FIELDS,
    STEERING_FIELDS,
    Endpoint,
    FieldRules,
    ignored_header,
)
from services.router.responses_api import NOT_KEPT

ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
VLLM = ".venv-ml/lib/python3*/site-packages/vllm/entrypoints"
SCHEMAS: dict[Endpoint, tuple[str, set[str]]] = {
    "chat": ("openai/chat_completion", {"ChatCompletionRequest"}),
    "completions": ("openai/completion", {"CompletionRequest"}),
    "responses": ("openai/responses", {"ResponsesRequest"}),
    "embeddings": (
        "pooling/base",
        {
            "PoolingBasicRequestMixin",
            "CompletionRequestMixin",
            "EncodingRequestMixin",
            "EmbedRequestMixin",
        },
    ),
    "messages": ("anthropic", {"AnthropicMessagesRequest"}),
}
"""Folder and classes whose fields an endpoint takes."""
IGNORED_OF_VLLM: dict[Endpoint, set[str]] = {
    "chat": {"session_id"},
    "completions": {"session_id"},
    "responses": {
        "session_id",
        "enable_response_messages",
        "previous_input_messages",
        "prompt_cache_key",
        "service_tier",
        "store",
        *NOT_KEPT,
    }
    - {"conversation"},
    "embeddings": set(),
    "messages": set(),
}
"""Left out and named, or read by the router. A session would let a client choose whose cache it
meets, but is no more than a hint; what the Responses API would keep is refused or not kept."""


def schema_fields(endpoint: Endpoint) -> set[str]:
    """Fields of vLLM's request class, read from its source: an import takes half a minute."""
    folder, names = SCHEMAS[endpoint]
    found = sorted(Path(__file__).parents[3].glob(f"{VLLM}/{folder}/protocol.py"))
    if not found:
        pytest.skip("vLLM is not installed")
    tree = ast.parse(found[0].read_text())
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in names]
    assert len(classes) == len(names)
    targets = (n.target for cls in classes for n in cls.body if isinstance(n, ast.AnnAssign))
    return {t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_")}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_settings_dropped_every_field_of_vllm_has_its_rule(endpoint: Endpoint):
    schema, passed = schema_fields(endpoint), ENGINE_FIELDS[endpoint]
    assert passed <= schema
    assert not passed & STEERING_FIELDS
    assert schema - passed - STEERING_FIELDS - ROUTER_FIELDS == IGNORED_OF_VLLM[endpoint]


@pytest.mark.parametrize("name", [*sorted(STEERING_FIELDS), "lora_request", "lora"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_may_steer_others_is_refused(name: str, endpoint: Endpoint):
    with pytest.raises(InvalidRequest) as raised:
        FieldRules().split(endpoint, {name: 1})
    assert raised.value.param == name
    assert FieldRules().split(endpoint, {name: None}) == ({}, ())


@pytest.mark.parametrize("kwargs", [{"chat_template": "{{ evil }}"}, {"tokenize": True}, [], "x"])
def test_template_kwargs_carry_no_template(kwargs: object):
    with pytest.raises(InvalidRequest) as raised:
        FieldRules().split("chat", {"chat_template_kwargs": kwargs})
    assert (raised.value.param or "").startswith("chat_template_kwargs")


def test_settings_outweigh_the_rules():
    rules = FieldRules(passed=("cache_salt", "guided_json", "model"), refused=("n", "metadata"))
    asked = {"model": "m", "cache_salt": "x", "guided_json": {}, "store": True}
    assert rules.split("chat", asked) == ({"cache_salt": "x", "guided_json": {}}, ("store",))
    for body in ({"n": 2}, {"metadata": {}}):
        with pytest.raises(InvalidRequest):
            rules.split("chat", body)


def test_unknown_fields_are_refused_by_setting():
    with pytest.raises(InvalidRequest) as raised:
        FieldRules(refuse_unknown=True).split("chat", {"stroe": True})
    assert raised.value.param == "stroe"


def test_the_header_is_bounded():
    names = tuple(f"{'x' * 500}{number}\ud800" for number in range(MAX_NAMED + 4))
    value = ignored_header(names)
    assert value.endswith(b", and 4 more")
    assert len(value) < 2_000
