"""Text encryption: the texts of an event's JSON as one AES-256-GCM ciphertext under people's keys.

What names people, versions and figures stays in clear. Texts are taken out by the names of their
fields at any depth, and what stays in their place is valid for every reader: turns keep their roles.
A ciphertext is bound to its place (the event's type and id, or a row's key), so that it opens nowhere
else. It needs the keys of all people whom the event names: one erased person is enough to close it. Pure.
"""

from __future__ import annotations

import base64
import hmac
import os
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, cast

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
COMPRESS_BYTES = 2048
"""Texts above this size are compressed first, for brokers cannot compress a ciphertext."""
FIELD = "encrypted"
"""The field of an event that holds the ciphertext of its texts and the ids of the keys."""
MARK = "[encrypted]"
"""In the place of a text that may not be empty."""
TEXT_FIELDS = frozenset(
    (
        "messages", "tools", "response_format", "completion", "answer", "prompt", "value",
        "chosen", "rejected", "chosen_turn", "rejected_turn",
        "error",  # engines quote the request that they refuse
        "body", "detail",  # of dead letters
    )
)  # fmt: skip
_HINT = b'"encrypted":{'
"""In JSON without white space only where the field is: inside a text the quotes are escaped."""

Path: TypeAlias = list[str | int]
DataKey: TypeAlias = tuple[str, bytes]
"""Id and key."""


class TextsUnreadable(Exception):
    """A ciphertext is not what its keys and its place say: it was changed, cut or put elsewhere."""


def is_encrypted(value: bytes | None) -> bool:
    """Whether an event's or row's JSON may hold encrypted texts, without parsing it."""
    return value is not None and _HINT in value


def key_ids_in(body: Any) -> list[str]:
    """Ids of the keys under which the texts of an event's JSON are encrypted.

    Raises:
        TextsUnreadable: it has no such field, or one of another shape.

    """
    match body:
        case {"encrypted": {"keys": [_, *_] as ids, "data": str()}}:
            found = [one for one in cast("list[Any]", ids) if isinstance(one, str)]
            if len(found) == len(cast("list[Any]", ids)):
                return found
        case _:
            pass
    raise TextsUnreadable("the field encrypted does not hold ids of keys and a ciphertext")


def encrypt_texts(
    body: dict[str, Any], place: str, keys_of: Callable[[], Sequence[DataKey]]
) -> bool:
    """Replace the texts of a body by their ciphertext, in place; False where there are none.

    `keys_of` is asked only where there are: who wrote nothing needs no key.
    """
    found: list[tuple[Path, Any]] = []
    _take_texts(body, [], found)
    if not found:
        return False
    keys = keys_of()
    nonce = os.urandom(NONCE_BYTES)
    plain = orjson.dumps(found)
    if len(plain) > COMPRESS_BYTES:
        plain = zlib.compress(plain, 1)
    sealed = _cipher(tuple(key for _, key in keys)).encrypt(nonce, plain, place.encode())
    body[FIELD] = {
        "keys": [key_id for key_id, _ in keys],
        "data": base64.b64encode(nonce + sealed).decode(),
    }
    return True


def decrypt_texts(body: dict[str, Any], place: str, key_of: Callable[[str], bytes | None]) -> bool:
    """Put the texts of a body back, in place; False where a key is gone, and the body stays as it is.

    Raises:
        TextsUnreadable: they were changed, or belong to another place.

    """
    keys = [key_of(key_id) for key_id in key_ids_in(body)]
    if any(key is None for key in keys):
        return False
    try:
        stored = base64.b64decode(body[FIELD]["data"])
        plain = _cipher(tuple(cast("list[bytes]", keys))).decrypt(
            stored[:NONCE_BYTES], stored[NONCE_BYTES:], place.encode()
        )
    except (InvalidTag, ValueError):
        raise TextsUnreadable(f"the encrypted texts of {place!r} were changed or moved") from None
    if not plain.startswith(b"["):
        plain = zlib.decompress(plain)
    for path, value in orjson.loads(plain):
        node: Any = body
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value
    del body[FIELD]
    return True


def wrap_key(tenant_key: bytes, key: bytes, place: str) -> str:
    """A data key as it is stored: encrypted under the tenant's key."""
    nonce = os.urandom(NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(tenant_key).encrypt(nonce, key, place.encode())).decode()


def unwrap_key(tenant_key: bytes, wrapped: str, place: str) -> bytes:
    """The data key that `wrap_key` stored.

    Raises:
        TextsUnreadable: it was wrapped under another secret, or for another place.

    """
    try:
        stored = base64.b64decode(wrapped)
    except ValueError:
        stored = b""
    return unwrap_bytes(tenant_key, stored, place)


def unwrap_bytes(tenant_key: bytes, wrapped: bytes, place: str) -> bytes:
    """As `unwrap_key`, of what its base64 stands for."""
    try:
        return AESGCM(tenant_key).decrypt(
            wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], place.encode()
        )
    except (InvalidTag, ValueError):
        raise TextsUnreadable(f"key {place} was wrapped under another secret, or changed") from None


def tenant_key(secret: bytes, tenant: str) -> bytes:
    """The key that wraps a tenant's data keys: HMAC-SHA-256 of the tenant under the secret."""
    return hmac.digest(secret, b"ratchet-texts\0" + tenant.encode(), "sha256")


def forget_ciphers() -> None:
    """Forget keys that were used: one of them is destroyed."""
    _cipher.cache_clear()


@lru_cache(4096)
def _cipher(keys: tuple[bytes, ...]) -> AESGCM:
    """One key is itself; several become one that none of them gives alone."""
    if len(keys) == 1:
        return AESGCM(keys[0])
    return AESGCM(hmac.digest(b"".join(keys), b"ratchet-texts-of-several", "sha256"))


def _take_texts(node: Any, path: Path, found: list[tuple[Path, Any]]) -> None:
    if isinstance(node, dict):
        fields = cast("dict[str, Any]", node)
        for name, value in fields.items():
            if name in TEXT_FIELDS and value and isinstance(value, str | list | dict):
                stays = _placeholder(name, cast("Any", value))
                if value != stays:  # a destroyed key's text is none, and wants no other key
                    found.append(([*path, name], cast("Any", value)))
                    fields[name] = stays
            else:
                _take_texts(value, [*path, name], found)
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[Any]", node)):
            _take_texts(value, [*path, index], found)


def _placeholder(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return MARK if name == "value" else ""
    if isinstance(value, list):
        turns = [one for one in cast("list[Any]", value) if "role" in one]
        return [{"role": turn["role"], "content": ""} for turn in turns]
    if name != "value":
        return None
    fields = cast("dict[str, Any]", value)
    return {name: at if name.endswith("_version") else MARK for name, at in fields.items()}
