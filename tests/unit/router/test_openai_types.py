"""Every body of the openai package's own types gets an answer or a shaped 4xx, no field silently lost."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, get_args, get_origin

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from typing_extensions import (
    get_type_hints,
    is_typeddict,
)

from services.router.fields import MAX_NAMED, ROUTER_FIELDS
from services.router.identity import BODY_SOURCES
from tests.unit.router.conftest import GatewayHarness, error_of

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | TEXTS
PLAIN = {
    str: TEXTS,
    int: st.integers(0, 4),
    float: st.floats(0, 2, allow_nan=False),
    bool: st.booleans(),
    NoneType: st.none(),
    Any: SCALARS,
    object: SCALARS,
}


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """JSON values of a type, as the openai package says it."""
    if kind in PLAIN:
        return PLAIN[kind]
    return st.deferred(lambda: _compound(kind))


def _compound(kind: Any) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        return _objects(kind)
    if origin in {Annotated, Required, NotRequired}:
        return values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {typing.Union, UnionType}:
        return st.one_of([values(one) for one in arguments])
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(TEXTS, values(arguments[1]), max_size=2)
    assert issubclass(origin or kind, Iterable), kind
    return st.lists(values(arguments[0]), min_size=1, max_size=2)


def _objects(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    # The package's annotations are strings, in which `__required_keys__` sees no Required.
    required, optional = {}, {}
    for name, hint in hints.items():
        origin = get_origin(hint)
        place = (
            required
            if origin is Required or (kind.__total__ and origin is not NotRequired)
            else optional
        )
        place[name] = values(hint)
    return st.fixed_dictionaries(required, optional=optional)


BODIES = {
    "/v1/chat/completions": (
        chat.CompletionCreateParamsNonStreaming,
        chat.CompletionCreateParamsStreaming,
    ),
    "/v1/responses": (
        responses.ResponseCreateParamsNonStreaming,
        responses.ResponseCreateParamsStreaming,
    ),
}
KEPT_NOWHERE = ("background", "conversation", "previous_response_id", "prompt")
REFUSED = {
    "/v1/chat/completions": {(400, "stream_options")},
    "/v1/responses": {(400, name) for name in (*KEPT_NOWHERE, "input", "stream_options", "tools")},
}
"""What the types allow and the router does not do: options of no stream, an input that is not sent,
hosted tools, and what a server would have to keep."""


@pytest.mark.parametrize("path", BODIES)
@settings(suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
async def test_every_body_of_the_types(
    bench: GatewayHarness, path: str, data: st.DataObject
) -> None:
    if not bench.url:
        await bench.start()
        bench.route()
    body = data.draw(st.one_of([values(kind) for kind in BODIES[path]]))
    body["model"] = "m"
    bench.seen.bodies.clear()
    answer = await bench.client.post(path, json=body)
    if answer.status_code != httpx.codes.OK:
        assert (answer.status_code, error_of(answer)["param"]) in REFUSED[path]
        return
    sent = orjson.loads(bench.seen.bodies[0])
    lost = {name for name, value in body.items() if not _reached(name, value, sent)}
    named = answer.headers.get("x-ratchet-ignored", "").split(", ")
    assert lost <= set(named) or len(named) > MAX_NAMED


def _reached(name: str, value: Any, sent: dict[str, Any]) -> bool:
    """Whether a field got to the engine or the router, or asks for nothing."""
    if value is None or name in ROUTER_FIELDS | BODY_SOURCES:
        return True
    if name == "store" or name in KEPT_NOWHERE:
        return not value
    if name == "stream_options" and name in sent:
        return sent[name] == {**value, "include_usage": True}
    return name in sent and sent[name] == value
