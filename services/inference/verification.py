"""Fingerprint verification: measures a loaded adapter, its base and neighbours at the engine.

`fingerprints` judges the answers; this module collects them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

import structlog

from services.inference.acceptances import Acceptances
from services.inference.engine import EngineClient
from services.inference.errors import EngineRefused
from services.inference.fingerprints import FingerprintCheck, FingerprintFault, check_fingerprint
from shared.contracts.events.versions import Fingerprint, VersionRecord
from shared.registry.adapters import FINGERPRINT_TEXTS
from shared.registry.versions import Registry

log = structlog.get_logger(__name__)

Tokens = tuple[tuple[int, ...], ...]
"""Texts as token ids."""


class AdapterVerifier:
    """Measures fingerprints at one engine. The base's fingerprint is kept until the next start."""

    def __init__(
        self,
        client: EngineClient,
        registry: Registry,
        acceptances: Acceptances,
        tolerance: Callable[[str], float],
    ) -> None:
        """`tolerance` gives the nats a fingerprint recorded in a dtype may differ here."""
        self._client = client
        self._registry = registry
        self._acceptances = acceptances
        self._tolerance = tolerance
        self._base = ""
        self._base_answers: dict[Tokens, Fingerprint] | None = None

    def tolerance(self, record: VersionRecord) -> float:
        """Nats this version's answers may differ from its record here."""
        return self._tolerance(record.fingerprint.dtype)

    def forget(self) -> None:
        """Drop the base's fingerprint: the engine restarted."""
        self._base_answers = None

    async def learn_base(self, base: str, wanted: Iterable[VersionRecord]) -> None:
        """Measure the base once after each start of the engine, before other traffic.

        On CPU vLLM 0.32 gives base requests the adapter in the last slot where a batch has
        requests of adapters too (index -1 into the stacked weights), so later is too late.

        Raises:
            EngineUnavailable, EngineRefused: the engine gave no tokens or did not answer.

        """
        self._base = base
        if self._base_answers is not None:
            return
        texts = [await self._client.tokens(base, text) for text in FINGERPRINT_TEXTS]
        sets: set[Tokens] = {tuple(texts)}
        sets |= {_tokens(record.fingerprint) for record in wanted}
        answers: dict[Tokens, Fingerprint] = {}
        for tokens in sets:
            try:
                answers[tokens] = await self._client.fingerprint(base, tokens, "float32")
            except EngineRefused as error:
                log.warning("agent.base_refused", error=str(error))
        self._base_answers = answers

    async def verify(
        self, record: VersionRecord, loaded: Collection[str]
    ) -> tuple[FingerprintCheck, Mapping[str, Fingerprint]]:
        """Compare an adapter with its record and its neighbours; also returns their answers.

        Args:
            record: The version under whose name the adapter is loaded.
            loaded: All adapters the engine has.

        Raises:
            EngineUnavailable: the engine did not answer.
            EngineRefused: it answered something else than log-probabilities.
            ValueError: the answers cannot be compared.

        """
        answered = await self._ask(record.version, record.fingerprint)
        others = await self._others(record, loaded)
        check = check_fingerprint(
            record.fingerprint,
            answered,
            others,
            self.tolerance(record),
            accepted=self._acceptances.of(record.version, record.adapter_sha256),
        )
        return check, others

    async def changed(
        self, records: Iterable[VersionRecord], answers: Mapping[str, Fingerprint]
    ) -> AsyncIterator[tuple[str, FingerprintCheck]]:
        """Those of some verified versions that no longer answer as recorded.

        Args:
            records: Versions that were verified before.
            answers: What each answered a moment ago, to its own or to other tokens.

        """
        for record in records:
            recorded, answered = record.fingerprint, answers[record.version]
            if _tokens(recorded) != _tokens(answered):
                answered = await self._ask(record.version, recorded)
            check = check_fingerprint(recorded, answered, {}, self.tolerance(record))
            if check.fault is FingerprintFault.mismatch:
                yield record.version, check

    async def _others(
        self, record: VersionRecord, loaded: Collection[str]
    ) -> dict[str, Fingerprint]:
        """What all that the version could be mistaken for answers to its tokens.

        A parent that is not loaded speaks through its record, where that has the same tokens.
        """
        assert self._base_answers is not None
        recorded, parent = record.fingerprint, record.parent
        tokens = _tokens(recorded)
        if tokens not in self._base_answers:
            self._base_answers[tokens] = await self._ask(self._base, recorded)
        others = {self._base: self._base_answers[tokens]}
        for name in sorted(set(loaded) - {record.version}):
            others[name] = await self._ask(name, recorded)
        if parent and parent not in others:
            known = self._registry.adapter(parent)
            if known is not None and _tokens(known.fingerprint) == tokens:
                others[parent] = known.fingerprint
        return others

    async def _ask(self, model: str, recorded: Fingerprint) -> Fingerprint:
        return await self._client.fingerprint(model, _tokens(recorded), recorded.dtype)


def _tokens(fingerprint: Fingerprint) -> Tokens:
    return tuple(text.tokens for text in fingerprint.texts)
