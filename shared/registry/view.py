"""Routing view in Redis: routing states for routers, rebuilt from Kafka at any time.

Where there are secrets (`shared.seal`), a state or a reset that none of them signed is refused.
"""

# pyright: basic
# The Redis client's own types are partly unknown.
from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from pydantic import ValidationError
from redis.asyncio import Redis

from shared.registry.routing import RoutingState
from shared.seal import UNSEALED, Seal

KEY_PREFIX = "ratchet:routing:"
CHANNEL = "ratchet:routing"
RESET = "reset"
RESET_S = 60.0
"""How old a reset may be: one that was recorded and is sent again counts no more."""
MODELS_KEY = "ratchet:routing-models"

STORED = 1
REPLACED = 2
"""What `_PUT` answers where it stored a state: in an empty or older one's place, or in place of
something that has no order; 0 where a newer one is stored."""

# Nobody checks what stands at the keys: an error of the script would stop all writes of a model.
_PUT = """
local known = redis.pcall('GET', KEYS[1])
local outcome = 1
if known and known ~= ARGV[6] then
  local read, old = pcall(cjson.decode, type(known) == 'string' and string.match(known, '{.*') or '')
  local old_token = read and type(old) == 'table' and tonumber(old.token)
  local old_seq = read and type(old) == 'table' and tonumber(old.seq)
  local token, seq = tonumber(ARGV[2]), tonumber(ARGV[3])
  if not (old_token and old_seq) then outcome = 2
  elseif old_token > token or (old_token == token and old_seq > seq) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1])
if type(redis.pcall('SADD', KEYS[2], ARGV[4])) == 'table' then
  redis.call('DEL', KEYS[2])
  redis.call('SADD', KEYS[2], ARGV[4])
end
redis.call('PUBLISH', ARGV[5], ARGV[1])
return outcome
"""


class RoutingView:
    """Routing states by model. A state older than the one kept is refused by a Lua compare.

    Every method raises `redis.RedisError` where Redis is unavailable.
    """

    def __init__(
        self,
        redis: Redis,
        seal: Seal = UNSEALED,
        *,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """`refused` hears of each state or reset that nobody with a secret wrote."""
        self._redis = redis
        self._seal = seal
        self._refused = refused
        self._put = redis.register_script(_PUT)

    @property
    def signed(self) -> bool:
        """Whether what it reads was written by somebody with a secret."""
        return bool(self._seal)

    async def put(self, state: RoutingState) -> bool:
        """Store and publish a state; False where a newer one is stored already."""
        if await self._kept(state):
            return True
        # What was stored may be forged, so that none would ever be newer.
        known = await self._redis.get(KEY_PREFIX + state.model)
        if known is None or self._read(known) is not None:
            return False
        return await self._kept(state, in_place_of=known)

    async def _kept(self, state: RoutingState, in_place_of: bytes | str = "") -> bool:
        text = self._seal.close(CHANNEL, state.model_dump_json())
        kept = await self._put(
            keys=[KEY_PREFIX + state.model, MODELS_KEY],
            args=[text, state.token, state.seq, state.model, CHANNEL, in_place_of],
        )
        if kept == REPLACED:
            self._refused()
        return kept in (STORED, REPLACED)

    async def all(self) -> list[RoutingState]:
        """Every model's state; what cannot be read is left out."""
        models = sorted(
            name.decode(errors="replace") if isinstance(name, bytes) else str(name)
            for name in await self._redis.smembers(MODELS_KEY)  # pyright: ignore[reportGeneralTypeIssues]
        )
        if not models:
            return []
        values = await self._redis.mget([KEY_PREFIX + model for model in models])
        states = (self._read(value) for value in values if value is not None)
        return [state for state in states if state is not None]

    async def announce_reset(self) -> None:
        """Tell who listens that the order of earlier states counts no more."""
        text = f"{RESET} {datetime.now(UTC).isoformat()}"
        await self._redis.publish(CHANNEL, self._seal.close(CHANNEL, text))

    async def announcements(self) -> AsyncIterator[RoutingState | None]:
        """States as they are published, the stored ones first; None is a reset.

        Ends with a RedisError.
        """
        async with self._redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            for state in await self.all():
                yield state
            async for message in channel.listen():
                if message["type"] != "message":
                    continue
                if self._is_reset(message["data"]):
                    yield None
                elif (state := self._read(message["data"])) is not None:
                    yield state

    async def clear(self) -> None:
        """Delete every state, before a rebuild; what is forged, too."""
        names: set[bytes | str] = await self._redis.smembers(MODELS_KEY)  # pyright: ignore[reportGeneralTypeIssues]
        keys = [
            KEY_PREFIX.encode() + (one if isinstance(one, bytes) else one.encode()) for one in names
        ]
        await self._redis.delete(MODELS_KEY, *keys)

    def _read(self, value: bytes | str) -> RoutingState | None:
        text = self._seal.open(CHANNEL, value)
        try:
            if text is not None:
                return RoutingState.model_validate_json(text)
        except ValidationError:
            pass
        self._refused()
        return None

    def _is_reset(self, value: bytes | str) -> bool:
        word, _, at = (self._seal.open(CHANNEL, value) or "").partition(" ")
        try:
            age_s = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
        except (ValueError, TypeError):
            return False
        return word == RESET and abs(age_s) <= RESET_S
