"""The aggregator's settings: `RATCHET_AGGREGATOR_…`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from shared.contracts.prompt_key import PromptRule
from shared.settings import ServiceSettings, service_config, shared_name, split_list

MAX_SEGMENTS = 8
MAX_AUDIENCES = 16
CATEGORIES = ("factual_qa", "comparison", "creative", "problem_solving", "explanation")
"""The five of requirement P3."""


class AggregatorSettings(ServiceSettings):
    """What the aggregator reads from the environment beyond what every service reads."""

    model_config = service_config("aggregator")

    port: int = Field(default=8085, ge=1, le=65_535)
    app_id: str = Field(default="ratchet.aggregator", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    session_timeout_s: float = Field(
        default=10.0, ge=6.0, le=60.0, description="after which a dead worker's partitions move"
    )
    horizon_days: float = Field(
        default=30.0, gt=0, le=3650, description="how long feedback waits for its interaction"
    )
    unknown_trace_s: float = Field(
        default=300.0, ge=60, description="how long feedback waits before its trace is unknown"
    )
    state_cache_mib: int = Field(
        default=64, ge=8, le=65_536, description="memory for blocks read from the state on disk"
    )
    tenant_max_mib: int = Field(
        default=0,
        ge=0,
        le=2**40,
        description="rows of a tenant over which its oldest texts without feedback go; 0: no bound",
    )
    scores_per_day: int = Field(
        default=3, ge=1, description="scores counted per user, rollout and day"
    )
    signals_judge: bool = Field(
        default=False, description="what signals imply enters the judge's satisfaction"
    )
    signals_teach: bool = Field(
        default=False, description="signals that imply a good or bad answer become training data"
    )
    segments: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=MAX_SEGMENTS,
        validation_alias=shared_name("router_segments"),
        description="values of the segment label; the router's, so that both agree",
    )

    categories: Annotated[tuple[str, ...], NoDecode] = Field(
        default=CATEGORIES,
        max_length=MAX_AUDIENCES,
        description="categories that shares of feedback are counted by; others are `other`",
    )
    locales: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=MAX_AUDIENCES,
        description="locales or languages that shares of feedback are counted by",
    )
    prompt_ignores: Annotated[tuple[PromptRule, ...], NoDecode] = Field(
        default=(PromptRule.clock, PromptRule.ids),
        validation_alias=shared_name("prompt_ignores"),
        description="what a system prompt may say differently each time: clock, ids, or none",
    )

    @field_validator("segments", "categories", "locales", "prompt_ignores", mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        return split_list(value)
