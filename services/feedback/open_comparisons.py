"""Open comparisons: those without a vote, kept in Redis until their TTL (an hour) expires."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

import orjson
import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.feedback.errors import ComparisonStoreUnavailable
from shared.contracts.events.base import Context, Message, Tool
from shared.contracts.events.votes import Choice, Side, VoteCast
from shared.contracts.subject import subjects_in
from shared.kafka.encrypted_log import UNSET
from shared.kafka.log import LogUnavailable
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_keys import TextsLocked
from shared.observability.events import Unavailable
from shared.seal import UNSEALED, Seal
from shared.text_encryption import TextsUnreadable, decrypt_texts, is_encrypted, key_ids_in

log = structlog.get_logger(__name__)

PREFIX = "ratchet:comparison"


class Comparison(BaseModel):
    """A comparison: two blind answers to one question, texts redacted."""

    model_config = ConfigDict(frozen=True)
    comparison_id: str
    tenant: str
    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    left: Side
    right: Side
    user_id: str
    context: Context
    panel: Literal["", "judge"]


class Ballot(BaseModel):
    """Ballot: the one vote of a comparison, claimed in the store before it is published."""

    model_config = ConfigDict(frozen=True)
    user_id: str
    choice: Choice
    at: AwareDatetime
    asker: str = ""
    """Who asked, where that is another person."""
    labels: dict[str, str] = Field(default_factory=dict)
    """What is known of how the vote came about; they join the comparison's own labels."""
    acknowledged: bool = False

    def repeats(self, other: Ballot) -> bool:
        """True where both are the same choice by the same person (an idempotent retry)."""
        return (self.user_id, self.choice) == (other.user_id, other.choice)


Kept = TypeVar("Kept", Comparison, Ballot)


def vote(comparison: Comparison, ballot: Ballot) -> VoteCast:
    """The event of a ballot; the same ballot gives the same event."""
    context = comparison.context
    if ballot.labels:
        context = context.model_copy(update={"labels": {**context.labels, **ballot.labels}})
    return VoteCast(
        comparison_id=comparison.comparison_id,
        tenant=comparison.tenant,
        model=comparison.model,
        messages=comparison.messages,
        tools=comparison.tools,
        left=comparison.left,
        right=comparison.right,
        choice=ballot.choice,
        user_id=ballot.user_id,
        asker=ballot.asker,
        context=context,
        panel=comparison.panel,
        submitted_at=ballot.at,
        anonymous=not ballot.user_id,
    )


class OpenComparisons(Protocol):
    """Open comparisons and their ballots, kept for a bounded time."""

    async def put(self, comparison: Comparison) -> None:
        """Keep a comparison.

        Raises:
            ComparisonStoreUnavailable: it could not be kept.

        """
        ...

    async def get(self, tenant: str, comparison_id: str) -> Comparison | None:
        """The tenant's comparison, or None where it is unknown or too old.

        Raises:
            ComparisonStoreUnavailable: the store gave no answer.

        """
        ...

    async def claim(self, comparison: Comparison, ballot: Ballot) -> Ballot:
        """Put the ballot in where there is none yet; returns the one that counts.

        Raises:
            ComparisonStoreUnavailable: the store gave no answer.

        """
        ...

    async def acknowledge(self, comparison: Comparison, ballot: Ballot) -> None:
        """Mark the ballot as stored on the log; a repeat is not stored again."""
        ...


class RedisComparisons:
    """OpenComparisons in Redis, signed. A flush loses open comparisons, never a stored vote.

    One that no secret signed for its place is none: nobody's texts become training data. So a first
    secret closes what was opened before it; that ends by itself within its TTL.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        ttl_s: int,
        seal: Seal = UNSEALED,
        text_keys: UserKeyIssuer | None = None,
    ) -> None:
        """`text_keys` encrypt a comparison's texts for who asked; None: they are in clear."""
        self._redis = redis
        self._ttl_s = ttl_s
        self._seal = seal
        self._text_keys = text_keys

    async def put(self, comparison: Comparison) -> None:
        """See OpenComparisons.put."""
        key = _key(comparison.tenant, comparison.comparison_id)
        try:
            text = await self._encrypted(key, comparison)
            await self._redis.set(key, self._seal.close(key, text), ex=self._ttl_s)
        except (RedisError, OSError, LogUnavailable) as error:
            raise _unavailable(error) from error

    async def get(self, tenant: str, comparison_id: str) -> Comparison | None:
        """See OpenComparisons.get."""
        key = _key(tenant, comparison_id)
        try:
            found = await self._redis.get(key)
            sealed = None if found is None else self._unsealed(key, found)
            text = None if sealed is None else await self._decrypted(key, sealed)
        except (RedisError, OSError, LogUnavailable) as error:
            raise _unavailable(error) from error
        return None if text is None else self._valid(key, text, Comparison)

    async def claim(self, comparison: Comparison, ballot: Ballot) -> Ballot:
        """See OpenComparisons.claim."""
        key = _ballot_key(comparison)
        mine = self._seal.close(key, ballot.model_dump_json())
        try:
            before = await self._redis.set(key, mine, ex=self._ttl_s, nx=True, get=True)
            known = self._opened(key, before, Ballot)
            if known is None and before is not None:
                await self._redis.set(key, mine, ex=self._ttl_s)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return ballot if known is None else known

    async def acknowledge(self, comparison: Comparison, ballot: Ballot) -> None:
        """See OpenComparisons.acknowledge."""
        done = ballot.model_copy(update={"acknowledged": True})
        key = _ballot_key(comparison)
        try:
            text = self._seal.close(key, done.model_dump_json())
            await self._redis.set(key, text, xx=True, keepttl=True)
        except (RedisError, OSError) as error:
            # The vote is on the log already; a repeat is stored again and counts once.
            log.warning(Unavailable.redis, during="vote_acknowledge", error=str(error))

    async def _encrypted(self, key: str, comparison: Comparison) -> str:
        if self._text_keys is None:
            return comparison.model_dump_json()
        await self._text_keys.ready()
        body = comparison.model_dump(mode="json")
        await self._text_keys.find_of(dict.fromkeys(subjects_in(body), comparison.tenant))
        self._text_keys.close_texts(body, key)
        await self._text_keys.acknowledged()
        return orjson.dumps(body).decode()

    async def _decrypted(self, key: str, text: str) -> str | None:
        """A comparison with its texts; None where who asked was erased, or it was changed."""
        if not is_encrypted(text.encode()):
            return text
        if self._text_keys is None:
            raise TextsLocked(UNSET)
        body = orjson.loads(text)
        try:
            keys = await self._text_keys.find(key_ids_in(body))
            return orjson.dumps(body).decode() if decrypt_texts(body, key, keys.get) else None
        except TextsUnreadable:
            log.warning("comparison.refused", key=key)
            return None

    def _opened(self, key: str, found: bytes | str | None, model: type[Kept]) -> Kept | None:
        text = None if found is None else self._unsealed(key, found)
        return None if text is None else self._valid(key, text, model)

    def _unsealed(self, key: str, found: bytes | str) -> str | None:
        text = self._seal.open(key, found)
        if text is None:
            log.warning("comparison.refused", key=key)
        return text

    def _valid(self, key: str, text: str, model: type[Kept]) -> Kept | None:
        try:
            return model.model_validate_json(text)
        except ValidationError:
            log.warning("comparison.refused", key=key)
            return None


def _key(tenant: str, comparison_id: str) -> str:
    return f"{PREFIX}:{tenant}:{comparison_id}"


def _ballot_key(comparison: Comparison) -> str:
    return f"{_key(comparison.tenant, comparison.comparison_id)}:ballot"


def _unavailable(error: Exception) -> ComparisonStoreUnavailable:
    return ComparisonStoreUnavailable(
        f"open comparisons cannot be kept or read: {error}; try again", retry_after_s=2
    )
