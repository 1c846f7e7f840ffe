"""Trace ids that clients make: permission, pattern, collisions, the same in answer, stream and event."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from services.router import client_ids, id_claims
from services.router.client_ids import ClientIds
from services.router.errors import InvalidRequest, TraceIdTaken
from services.router.id_claims import RedisIdClaims
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.keys import LOCAL_KEY, hash_key
from tests.unit.router.conftest import GatewayHarness, error_of

OWN = "order-17:turn.2"


@pytest.mark.parametrize("stream", [False, True])
async def test_own_id_is_the_id_of_answer_and_event(bench: GatewayHarness, stream: bool) -> None:
    await bench.start()
    bench.route()
    answer = await bench.ask({"x-ratchet-trace-id": OWN}, stream=stream)
    assert answer.headers["x-ratchet-trace-id"] == answer.headers["x-request-id"] == OWN
    bodies = (
        [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        if stream
        else [answer.text]
    )
    assert {orjson.loads(body)["id"] for body in bodies} == {OWN}
    assert [event.trace_id for event in bench.events()] == [OWN]
    again = await bench.ask({"x-ratchet-trace-id": OWN}, stream=stream)
    assert again.status_code == 409
    assert error_of(again)["code"] == "trace_id_taken"
    assert len(bench.events()) == 1


async def test_a_refused_request_leaves_the_id_free(bench: GatewayHarness) -> None:
    await bench.start()
    bench.route()
    refused = await bench.ask({"x-ratchet-trace-id": OWN}, model="nothing")
    assert refused.status_code == 404
    assert (await bench.ask({"x-ratchet-trace-id": OWN})).status_code == 200


@pytest.mark.parametrize(("allowed", "status"), [(False, 403), (True, 200)])
async def test_only_where_the_key_allows(bench: GatewayHarness, allowed: bool, status: int) -> None:
    await bench.start(keys_required=True)
    bench.route()
    issued = ApiKeyIssued(
        key_id="k",
        sha256=hash_key("rk_secret"),
        tenant="acme",
        scopes=(Permission.infer,),
        own_trace_ids=allowed,
        issued_at=datetime.now(UTC),
    )
    bench.keys.apply("k", issued.model_dump_json().encode())
    headers = {"authorization": "Bearer rk_secret"}
    answer = await bench.ask(headers | {"x-ratchet-trace-id": OWN})
    assert answer.status_code == status
    if not allowed:
        assert error_of(answer)["param"] == "x-ratchet-trace-id"
    assert (await bench.ask(headers)).status_code == 200


@pytest.mark.parametrize(
    "raw", [b"", b"short", b"a" * 129, b"with space", "ümläute-1".encode(), b"0" * 32, b"aB" * 16]
)
def test_pattern(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="x-ratchet-trace-id: must be"):
        ClientIds().read(raw, LOCAL_KEY)


async def test_an_id_is_taken_for_its_tenant_within_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_ids, "MAX_REMEMBERED", 2)
    ids = ClientIds()
    await ids.claim("acme", "first-id")
    await ids.claim("other", "first-id")
    with pytest.raises(TraceIdTaken):
        await ids.claim("acme", "first-id")
    await ids.claim("acme", "second-id")
    await ids.claim("acme", "first-id")


class AbsentRedis:
    """A Redis that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def set(self, name: str, value: int, *, nx: bool, ex: int) -> bool:
        self.asked += 1
        return await asyncio.Event().wait()


async def test_an_absent_redis_delays_one_request_and_not_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(id_claims, "TIMEOUT_S", 0.01)
    redis: Any = AbsentRedis()
    claims = RedisIdClaims(redis)
    monkeypatch.setattr(id_claims, "PAUSE_S", 3_600)
    assert [await claims.take("acme", f"order-{number}") for number in range(3)] == [True] * 3
    assert redis.asked == 1
    monkeypatch.setattr(id_claims, "PAUSE_S", 0)
    claims = RedisIdClaims(redis)
    assert [await claims.take("acme", f"order-{number}") for number in range(3)] == [True] * 3
    assert redis.asked == 4


class StubClaims:
    """Claims in memory, which take a moment."""

    def __init__(self) -> None:
        self.taken: set[tuple[str, str]] = set()

    async def take(self, tenant: str, trace_id: str) -> bool:
        await asyncio.sleep(0)
        first = (tenant, trace_id) not in self.taken
        self.taken.add((tenant, trace_id))
        return first


async def test_an_id_is_taken_on_all_replicas_and_by_one_of_two_at_a_time() -> None:
    claims = StubClaims()
    one, other = ClientIds(claims), ClientIds(claims)
    both = await asyncio.gather(
        *(one.claim("acme", "first-id") for _ in range(2)), return_exceptions=True
    )
    assert [type(result) for result in both] == [type(None), TraceIdTaken]
    with pytest.raises(TraceIdTaken):
        await other.claim("acme", "first-id")
    await other.claim("acme", "second-id")
