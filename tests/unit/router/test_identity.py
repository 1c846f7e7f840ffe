"""Who asks: precedence of the sources, and values that mean no one."""

from __future__ import annotations

import pytest

from services.router.errors import InvalidRequest
from services.router.fields import FieldRules
from services.router.identity import NOBODY, USER_SOURCES, IdentityRules
from tests.unit.router.conftest import GatewayHarness

PERSON = "u-4711"
BODY = {"user": "a", "safety_identifier": "b", "prompt_cache_key": "e"}
HEADERS = {b"x-ratchet-user": b"c", b"x-openwebui-user-id": b"d"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"user": PERSON}, {}),
        ({"safety_identifier": PERSON}, {}),
        ({"prompt_cache_key": PERSON}, {}),
        ({}, {"x-ratchet-user": PERSON}),
        ({}, {"X-OpenWebUI-User-Id": PERSON}),
    ],
)
async def test_user_successor_fields(bench: GatewayHarness, body, headers):
    """Case user-successor-fields: the same person is on the same version, whatever names them."""
    await bench.start()
    bench.route(candidate="m-v1.1", weight=5_000)
    answers = [await bench.ask(headers, **body) for _ in range(12)]
    assert len({answer.headers["x-ratchet-arm"] for answer in answers}) == 1
    assert not any("x-ratchet-ignored" in answer.headers for answer in answers)
    assert {event.user_id for event in bench.events()} == {PERSON}


async def test_one_user_for_everybody(bench: GatewayHarness):
    """Case one-user-for-everybody, the router's part: "None" is no user, so each request draws."""
    await bench.start()
    bench.route(candidate="m-v1.1", weight=5_000)
    answers = [await bench.ask(user="None") for _ in range(40)]
    assert {answer.headers["x-ratchet-arm"] for answer in answers} == {"stable", "candidate"}
    assert {event.user_id for event in bench.events()} == {""}


def test_the_first_source_that_names_someone_counts():
    rules, body, headers = IdentityRules(), dict(BODY), dict(HEADERS)
    seen: list[str] = []
    for source in USER_SOURCES:
        seen.append(rules.user(body, headers))
        body.pop(source, None)
        headers.pop(source.encode(), None)
    assert seen == ["a", "b", "c", "d", "e"]
    assert rules.user(body, headers) == ""


@pytest.mark.parametrize("value", ["", " ", *NOBODY, "None", "NULL", " Anonymous "])
def test_values_that_mean_no_one_are_passed_over(value: str):
    rules = IdentityRules()
    assert rules.user({"user": value, "prompt_cache_key": "e"}, {}) == "e"
    assert rules.user({}, {b"x-ratchet-user": value.encode()}) == ""
    assert rules.session({b"x-ratchet-session": value.encode()}) == ""


def test_sources_and_nobody_are_settings():
    rules = IdentityRules(("X-Person", "user"), ("guest",))
    assert rules.user({"user": "u"}, {b"x-person": b"p"}) == "p"
    assert rules.user({"user": "None"}, {b"x-person": b"Guest"}) == "None"
    assert rules.user({"prompt_cache_key": "k"}, {}) == ""
    ignored = FieldRules(read=rules.fields).split("chat", {"user": "u", "prompt_cache_key": "k"})[1]
    assert ignored == ("prompt_cache_key",)


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
@pytest.mark.parametrize("value", [7, ["u"], "a\nb", "a" * 201])
def test_a_user_that_no_event_can_hold_is_refused_by_name(name: str, value: object):
    with pytest.raises(InvalidRequest) as raised:
        IdentityRules().user({name: value}, {})
    assert raised.value.param == name
