import asyncio
from datetime import datetime, timedelta

import pytest

from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.topics import API_KEYS
from shared.keys import (
    LOCAL_KEY,
    Forbidden,
    KeyRing,
    KeysUnread,
    Unauthenticated,
    hash_key,
    new_key,
)
from shared.registry.follow import KeyFollower
from shared.testing.clock import START
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually


def issued(key: str, *scopes: Permission, expires_at: datetime | None = None) -> bytes:
    return ApiKeyIssued(
        key_id="k1",
        sha256=hash_key(key),
        tenant="acme",
        scopes=scopes,
        issued_at=START,
        expires_at=expires_at,
    ).to_json()


def test_a_key_gives_its_tenant_and_scopes_until_revoked() -> None:
    ring, key = KeyRing(required=True), new_key()
    ring.apply("k1", issued(key, Permission.infer))
    assert ring.authenticate(f"Bearer {key}", Permission.infer).tenant == "acme"
    with pytest.raises(Forbidden, match="operate"):
        ring.authenticate(f"Bearer {key}", Permission.operate)
    ring.apply("k1", None)
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {key}", Permission.infer)


def test_a_replaced_key_no_longer_opens() -> None:
    ring, old, new = KeyRing(required=True), new_key(), new_key()
    ring.apply("k1", issued(old, Permission.infer))
    ring.apply("k1", issued(new, Permission.infer))
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {old}", Permission.infer)
    assert ring.authenticate(f"bearer {new}", Permission.infer).key_id == "k1"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer nonsense", "Basic abc"])
def test_no_key_no_entry(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        KeyRing(required=True).authenticate(header, Permission.infer)


def test_nobody_needs_a_key_where_none_is_required() -> None:
    assert KeyRing(required=False).authenticate(None, Permission.operate) is LOCAL_KEY


def test_keys_are_long_and_never_kept() -> None:
    key = new_key()
    assert len(key) > 40
    assert key.encode() not in issued(key, Permission.infer)


def test_an_expired_key_no_longer_opens() -> None:
    times = [START.timestamp()]
    ring, key = KeyRing(required=True, now=lambda: times[-1]), new_key()
    end = START + timedelta(days=1)
    ring.apply("k1", issued(key, Permission.infer, expires_at=end))
    assert ring.authenticate(f"Bearer {key}", Permission.infer).key_id == "k1"
    times.append(end.timestamp())
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {key}", Permission.infer)


async def test_no_key_is_unknown_before_all_are_read() -> None:
    log, ring, key = MemoryLog(), KeyRing(required=True), new_key()
    await log.append(API_KEYS, key="k1", value=issued(key, Permission.infer))
    follower = KeyFollower(log, ring)
    with pytest.raises(KeysUnread) as unread:
        ring.authenticate(f"Bearer {key}", Permission.infer)
    assert (unread.value.status, unread.value.retry_after_s) == (503, 1)
    running = asyncio.create_task(follower.run())
    await eventually(lambda: ring.whole, "the keys read")
    assert ring.authenticate(f"Bearer {key}", Permission.infer).key_id == "k1"
    with pytest.raises(Unauthenticated):
        ring.authenticate("Bearer rk_other", Permission.infer)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
