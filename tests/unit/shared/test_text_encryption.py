"""Texts of events' JSON under people's keys: what is taken, what stays, and who can read it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.catalogue import BY_SCHEMA
from shared.contracts.events.base import PersonalEvent
from shared.text_encryption import (
    FIELD,
    TextsUnreadable,
    decrypt_texts,
    encrypt_texts,
    is_encrypted,
    tenant_key,
    unwrap_key,
    wrap_key,
)

EXAMPLES = Path("shared/contracts/examples")
KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
BOTH = list(KEYS.items())
PERSONAL = sorted(
    path
    for path in EXAMPLES.glob("*.json")
    if issubclass(BY_SCHEMA[path.stem.partition("+")[0]], PersonalEvent)
)


def texts_of(node: Any) -> set[str]:
    """Contents of turns and answers, which are what people and models wrote."""
    found: set[str] = set()
    if isinstance(node, dict):
        for name, value in node.items():
            if isinstance(value, str) and name in {
                "content", "completion", "chosen", "rejected", "corrected", "prompt", "arguments",
            }:  # fmt: skip
                found.add(value)
            found |= texts_of(value)
    elif isinstance(node, list):
        for value in node:
            found |= texts_of(value)
    return {text for text in found if len(text) > 3}


@pytest.mark.parametrize("path", PERSONAL, ids=lambda path: path.stem)
def test_each_event_is_valid_without_its_texts_and_whole_with_its_keys(path: Path) -> None:
    body = json.loads(path.read_text())
    before = copy.deepcopy(body)
    if not encrypt_texts(body, "place", lambda: BOTH):
        assert not texts_of(before)
        return
    stored = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    for text in texts_of(before):
        assert text not in stored
    assert is_encrypted(stored.encode())
    event = BY_SCHEMA[path.stem.partition("+")[0]].model_validate_json(stored)
    assert isinstance(event, PersonalEvent)
    assert event.encrypted is not None
    assert decrypt_texts(body, "place", KEYS.get)
    assert body == before


@pytest.mark.parametrize("gone", ["k1", "k2"])
def test_one_destroyed_key_of_several_closes_the_texts(gone: str) -> None:
    body = {"tenant": "default", "completion": "Their secret"}
    encrypt_texts(body, "place", lambda: BOTH)
    left = {name: key for name, key in KEYS.items() if name != gone}
    assert not decrypt_texts(body, "place", left.get)
    assert body["completion"] == ""
    assert FIELD in body


def test_none_of_several_keys_opens_alone() -> None:
    body = {"completion": "Their secret"}
    encrypt_texts(body, "place", lambda: BOTH)
    for key in KEYS.values():
        with pytest.raises(TextsUnreadable):
            decrypt_texts(copy.deepcopy(body), "place", lambda _, key=key: key)


def test_a_ciphertext_opens_in_its_place_alone_and_unchanged() -> None:
    body: dict[str, Any] = {"completion": "Their secret"}
    encrypt_texts(body, "here", lambda: BOTH)
    with pytest.raises(TextsUnreadable, match="moved"):
        decrypt_texts(copy.deepcopy(body), "elsewhere", KEYS.get)
    data = body[FIELD]["data"]
    body[FIELD]["data"] = data[:-8] + ("AAAA" if data[-8:-4] != "AAAA" else "BBBB") + data[-4:]
    with pytest.raises(TextsUnreadable, match="changed"):
        decrypt_texts(body, "here", KEYS.get)


@pytest.mark.parametrize("words", [1, 10_000])
def test_short_and_long_texts_come_back(words: int) -> None:
    body = {"completion": "word " * words}
    before = copy.deepcopy(body)
    encrypt_texts(body, "place", lambda: BOTH)
    assert len(json.dumps(body)) < 5 * words + 400
    assert decrypt_texts(body, "place", KEYS.get)
    assert body == before


def test_what_is_no_text_stays_in_clear() -> None:
    body = {"value": 4, "user_id": "ann", "version": "v1", "context": {"locale": "de"}}
    assert not encrypt_texts(body, "place", lambda: BOTH)
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    encrypt_texts(turns, "place", lambda: BOTH)
    assert [turn["role"] for turn in turns["messages"]] == ["user", "assistant"]


def test_what_an_engine_quoted_in_an_error_is_a_text() -> None:
    body = {"attempts": [{"version": "v1", "error": "input should be text: my mother's recipe"}]}
    assert encrypt_texts(body, "place", lambda: BOTH)
    assert body["attempts"] == [{"version": "v1", "error": ""}]


def test_a_text_that_looks_like_the_field_is_not_taken_for_it() -> None:
    assert not is_encrypted(json.dumps({"completion": '"encrypted":{"keys":[]}'}).encode())


def test_a_wrapped_key_opens_with_its_secret_and_for_its_name_alone() -> None:
    tenant = tenant_key(b"s" * 32, "acme")
    wrapped = wrap_key(tenant, KEYS["k1"], "subject:k1")
    assert unwrap_key(tenant, wrapped, "subject:k1") == KEYS["k1"]
    assert tenant_key(b"s" * 32, "other") != tenant
    for key, name in ((tenant_key(b"t" * 32, "acme"), "subject:k1"), (tenant, "subject:k2")):
        with pytest.raises(TextsUnreadable):
            unwrap_key(key, wrapped, name)
