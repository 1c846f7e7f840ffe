"""Routing view in Redis: routing states for routers, rebuilt from Kafka at any time."""

# pyright: basic
# The Redis client's own types are partly unknown.
from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from pydantic import ValidationError
from redis.asyncio import Redis

from shared.registry.routing import RoutingState

KEY_PREFIX = "ratchet:routing:"
CHANNEL = "ratchet:routing"
RESET = "reset"
MODELS_KEY = "ratchet:routing-models"

_PUT = """
local known = redis.call('GET', KEYS[1])
if known then
  local old = cjson.decode(known)
  local token, seq = tonumber(ARGV[2]), tonumber(ARGV[3])
  if old.token > token or (old.token == token and old.seq > seq) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[1])
return 1
"""


class RoutingView:
    """Routing states by model. A state older than the one kept is refused by a Lua compare.

    Every method raises `redis.RedisError` where Redis is unavailable.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = redis.register_script(_PUT)

    async def put(self, state: RoutingState) -> bool:
        """Store and publish a state; False where a newer one is stored already."""
        kept = await self._put(
            keys=[KEY_PREFIX + state.model, MODELS_KEY],
            args=[state.model_dump_json(), state.token, state.seq, state.model, CHANNEL],
        )
        return cast("int", kept) == 1

    async def all(self) -> list[RoutingState]:
        """Every model's state; what cannot be read is left out."""
        models = sorted(
            name.decode() if isinstance(name, bytes) else str(name)
            for name in await self._redis.smembers(MODELS_KEY)  # pyright: ignore[reportGeneralTypeIssues]
        )
        if not models:
            return []
        values = await self._redis.mget([KEY_PREFIX + model for model in models])
        states = (_read(value) for value in values)
        return [state for state in states if state is not None]

    async def announce_reset(self) -> None:
        """Tell who listens that the order of earlier states counts no more."""
        await self._redis.publish(CHANNEL, RESET)

    async def announcements(self) -> AsyncIterator[RoutingState | None]:
        """States as they are published, the stored ones first; None is a reset.

        Ends with a RedisError.
        """
        async with self._redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            for state in await self.all():
                yield state
            async for message in channel.listen():
                if message["type"] == "message" and message["data"] in (RESET, RESET.encode()):
                    yield None
                elif message["type"] == "message":
                    state = _read(message["data"])
                    if state is not None:
                        yield state

    async def clear(self) -> None:
        """Delete every state, before a rebuild."""
        keys = [KEY_PREFIX + state.model for state in await self.all()]
        await self._redis.delete(MODELS_KEY, *keys)


def _read(value: bytes | str | None) -> RoutingState | None:
    if value is None:
        return None
    try:
        return RoutingState.model_validate_json(value)
    except ValidationError:
        return None
