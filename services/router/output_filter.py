"""Content filter on output: applies an operator's rules to answers, whole or streamed."""

from __future__ import annotations

from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter

from services.router.answer_texts import answer_texts, drop_tokens, text_matches
from services.router.errors import error_body
from services.router.fields import CHOICES, Endpoint
from services.router.filter_rules import FILTERED, FilterFindings, FilterRules, RuleSet, masked
from services.router.filtered_streams import FilteredStream, HeldBytes, HeldStream, LookBackStream
from services.router.moderation_endpoint import ModerationEndpoint
from services.router.moderation_windows import ModerationWindows
from shared.contracts.events.interactions import FilterAction

UNFILTERED: frozenset[Endpoint] = frozenset(("embeddings",))
"""Endpoints whose answers have no text."""


class OutputFilter:
    """Applies rules to answers, and counts what they found."""

    def __init__(
        self,
        rules: FilterRules,
        registry: CollectorRegistry,
        moderation: ModerationEndpoint | None = None,
    ) -> None:
        """`moderation` judges answers after the rules; None where there is no such endpoint."""
        self._rules = rules
        self._moderation = moderation
        self.held = HeldBytes()
        self._found = Counter(
            "ratchet_router_filtered",
            "Answers in which a rule of the output filter found something",
            ("model", "rule", "action"),
            registry=registry,
        )

    @property
    def moderates(self) -> bool:
        """Whether every answer is judged by the moderation endpoint."""
        return self._moderation is not None

    def rules(self, tenant: str, model: str) -> RuleSet | None:
        """The rules for an answer; None where it passes as it is."""
        return self._rules.of(tenant, model)

    def stream(self, rules: RuleSet, endpoint: Endpoint) -> FilteredStream:
        """The filter of one stream; it is closed when the stream is over."""
        kind = LookBackStream if endpoint in CHOICES else HeldStream
        return kind(rules, self.held)

    def windows(self, findings: FilterFindings, endpoint: Endpoint) -> ModerationWindows | None:
        """The way of one stream behind the moderation endpoint; None where there is none."""
        if self._moderation is None or endpoint in UNFILTERED:
            return None
        return ModerationWindows(self._moderation, findings, endpoint)

    async def whole(
        self, rules: RuleSet | None, body: bytes, endpoint: Endpoint
    ) -> tuple[bytes, int, FilterFindings]:
        """A whole answer's body as the client may see it, its status, and what was found."""
        status, findings = 200, FilterFindings()
        if rules is not None:
            body, status, findings = filter_whole(rules, body, endpoint)
        if self._moderation is None or endpoint in UNFILTERED or findings.blocked:
            return body, status, findings
        value = orjson.loads(body)
        texts = [holder[key] for holder, key in answer_texts(value)]
        await self._moderation.judge(texts, findings)
        return (
            (*_refused_whole(value, endpoint), findings)
            if findings.blocked
            else (
                body,
                status,
                findings,
            )
        )

    def note(self, model: str, findings: FilterFindings) -> None:
        """Count what was found in an answer."""
        for rule, action in findings.rules.items():
            self._found.labels(model, rule, action.value).inc()


def filter_whole(
    rules: RuleSet, body: bytes, endpoint: Endpoint
) -> tuple[bytes, int, FilterFindings]:
    """A whole answer's body as the client may see it, its status, and what was found."""
    value = orjson.loads(body)
    findings = FilterFindings()
    changed = False
    for holder, key in answer_texts(value):
        matches = text_matches(rules, key, holder[key])
        findings.take(matches)
        hidden = [match for match in matches if match.rule.action is not FilterAction.flag]
        if hidden:
            holder[key] = masked(holder[key], hidden)
            changed = True
    if changed:
        drop_tokens(value)
    if findings.blocked:
        return (*_refused_whole(value, endpoint), findings)
    return orjson.dumps(value) if changed else body, 200, findings


REFUSAL = error_body(
    "the answer was refused by a content filter; ask in other words",
    kind="invalid_request_error",
    code=FILTERED,
)


def _refused_whole(value: dict[str, Any], endpoint: Endpoint) -> tuple[bytes, int]:
    """Body and status of a whole answer that is refused."""
    if endpoint not in CHOICES:
        return REFUSAL, 400
    value["choices"] = [_refused(choice) for choice in value["choices"]]
    return orjson.dumps(value), 200


def _refused(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without what was written, as the OpenAI API tells of a content filter."""
    empty: dict[str, Any] = {"index": choice.get("index", 0), "finish_reason": FILTERED}
    if "message" in choice:
        return {**empty, "message": {"role": "assistant", "content": None}}
    return {**empty, "text": ""}
