"""Settings of the router, from `RATCHET_ROUTER_…` (and the shared `RATCHET_…`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AnyHttpUrl, Field, TypeAdapter, field_validator, model_validator
from pydantic_settings import NoDecode

from services.router.bounds import AnswerBounds
from services.router.filter_rules import FilterRules
from services.router.identity import BODY_SOURCES, NOBODY, USER_SOURCES
from services.router.latency_limits import FORM, LatencyLimits
from services.router.moderation_endpoint import ModerationPolicy
from services.router.votes import VoteCaps
from shared.contracts.events.interactions import FilterAction
from shared.credentials import CredentialsUnreadable, read_secret
from shared.http.cors import check_origins
from shared.quotas import RateLimits
from shared.settings import ServiceSettings, service_config, split_list

MAX_SEGMENTS = 8
MAX_LATENCY_LIMITS = 32
"""Each may be another edge of a histogram."""
MIN_SECRET, MAX_SECRET = 32, 64
"""Bytes of the assignment's secret; BLAKE2b takes no longer key."""

MAX_PROCESSES = 64
MAX_PORT = 65_535

_LISTS = (
    "engines",
    "moderation_url",
    "latency_limits",
    "segments",
    "pass_fields",
    "refuse_fields",
    "user_sources",
    "nobody",
    "cors_origins",
)
_URL = TypeAdapter(AnyHttpUrl)


class RouterSettings(ServiceSettings):
    """What the router can be told. Durations are in seconds, sizes in bytes."""

    model_config = service_config("router")

    port: int = Field(default=8080, ge=1, le=MAX_PORT)
    processes: int = Field(
        default=1,
        ge=1,
        le=MAX_PROCESSES,
        description="on the one port; each has the operations port plus its number for /metrics",
    )
    moderation_url: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="of the inference services, for /v1/moderated; none: there is no such path",
    )
    output_filter_file: Path | None = Field(
        default=None, description="YAML file with the rules of the output filter; none: no filter"
    )
    output_moderation_url: str = Field(
        default="",
        pattern=r"^$|^https?://[^/]+$",
        description="of an endpoint with POST /v1/moderations that judges answers; empty: none",
    )
    output_moderation_key_file: Path | None = Field(
        default=None, description="file with the endpoint's key"
    )
    output_moderation_model: str = Field(default="", max_length=200)
    output_moderation_action: Literal["flag", "block"] = "block"
    output_moderation_fails: Literal["open", "closed"] = Field(
        default="closed", description="open: what the endpoint does not judge is shown"
    )
    output_moderation_timeout_s: float = Field(default=2.0, gt=0, le=30)
    output_moderation_running: int = Field(
        default=64, ge=1, le=1024, description="questions at a time; more are not judged"
    )
    engines: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("http://127.0.0.1:8000",), min_length=1, description="base URLs of vLLM"
    )
    prefix_affinity: bool = Field(
        default=False,
        description="send conversations that begin alike to one engine, while it has room",
    )
    segments: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=MAX_SEGMENTS, description="values of the metrics' segment label"
    )
    stale_after_s: float = Field(default=60.0, gt=0)
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="for each attempt's answer, on either arm; in streams for each part of it",
    )
    latency_limits: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=MAX_LATENCY_LIMITS,
        description=f"when answers are slow, else after 2 s: {FORM}; * is any",
    )
    heartbeat_s: float = Field(
        default=0.0,
        ge=0,
        description="silence in a stream after which the client gets a comment; 0: none",
    )
    stream_timeout_s: float = Field(
        default=600.0, gt=0, description="for each attempt's whole stream"
    )
    pass_fields: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="further fields of a body that go on to the engine"
    )
    refuse_fields: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="further fields of a body that are a 400"
    )
    unknown_fields: Literal["ignore", "refuse"] = Field(
        default="ignore", description="ignore names them in x-ratchet-ignored, refuse is a 400"
    )
    user_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        default=USER_SOURCES,
        description=f"what names the user, in order: {', '.join(sorted(BODY_SOURCES))} of the body, "
        "else names of headers",
    )
    nobody: Annotated[tuple[str, ...], NoDecode] = Field(
        default=NOBODY, description="users and sessions that mean no one, in any case"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may call the router: https://host[:port], or *"
    )
    body_timeout_s: float = Field(default=30.0, gt=0, description="for a request's body to arrive")
    max_body_bytes: int = Field(default=4 * 1024 * 1024, gt=0)
    assignment_secret_file: Path | None = Field(
        default=None,
        description="file with the secret that keys the assignment to arms, the same on all "
        "replicas; none: whoever knows a user's name and the rollout can compute its arm",
    )
    breaker_failures: int = Field(
        default=20,
        ge=3,
        le=1_000,
        description="candidate failures in a row after which this replica sends it nothing",
    )
    max_running: int = Field(default=1_000, ge=1, description="requests at a time")
    key_requests_per_minute: int = Field(default=0, ge=0, description="of each key; 0: no bound")
    key_tokens_per_minute: int = Field(
        default=0, ge=0, description="of each key, prompts and answers together; 0: no bound"
    )
    key_running: int = Field(default=0, ge=0, description="requests of a key at a time, 0: fair")
    tenant_requests_per_minute: int = Field(default=0, ge=0, description="0: no bound")
    tenant_tokens_per_minute: int = Field(default=0, ge=0, description="0: no bound")
    tenant_running: int = Field(default=0, ge=0, description="requests at a time; 0: no bound")
    key_votes_per_minute: int = Field(
        default=6_000, ge=0, description="attempts of a key that count in a rollout; 0: no bound"
    )
    tenant_votes_per_minute: int = Field(
        default=12_000, ge=0, description="attempts of a tenant that count; 0: no bound"
    )
    nobody_votes_per_minute: int = Field(
        default=0,
        ge=0,
        description="attempts of a key without user and session that count; 0: none does, and a "
        "rollout of such traffic alone never ends",
    )
    max_choices: int = Field(
        default=16, ge=0, description="answers a request: prompts times n or best_of; 0: no bound"
    )
    max_tokens: int = Field(default=0, ge=0, description="of an answer; 0: no bound")
    spool_limit_bytes: int = Field(default=512 * 1024 * 1024, ge=1024 * 1024)
    series_grace_s: float = Field(
        default=900.0, ge=0, description="how long series of an ended rollout stay"
    )
    drain_timeout_s: float = Field(
        default=10.0, gt=0, description="for shipping the spool when stopping"
    )

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _split_lists(cls, value: object) -> object:
        return split_list(value)

    @field_validator("latency_limits")
    @classmethod
    def _check_limits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        LatencyLimits(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_origins(value)

    def filter_rules(self) -> FilterRules:
        """The rules of the output filter; none without a file.

        Raises:
            ValueError: the file cannot be read, or a rule is wrong.

        """
        if self.output_filter_file is None:
            return FilterRules()
        return FilterRules.read(self.output_filter_file)

    def moderation_policy(self) -> ModerationPolicy | None:
        """How answers are judged by an endpoint; None without one."""
        if not self.output_moderation_url:
            return None
        return ModerationPolicy(
            url=self.output_moderation_url,
            action=FilterAction(self.output_moderation_action),
            fail_open=self.output_moderation_fails == "open",
            model=self.output_moderation_model,
            timeout_s=self.output_moderation_timeout_s,
            max_running=self.output_moderation_running,
        )

    def moderation_headers(self) -> dict[str, str]:
        """Headers of a question to the moderation endpoint, with the key as its file has it now.

        Raises:
            CredentialsUnreadable: the file cannot be read.

        """
        if self.output_moderation_key_file is None:
            return {}
        variable = "RATCHET_ROUTER_OUTPUT_MODERATION_KEY_FILE"
        return {"authorization": f"Bearer {read_secret(self.output_moderation_key_file, variable)}"}

    def assignment_secret(self) -> bytes:
        """The key of the assignment's hash; empty where none is set.

        Raises:
            CredentialsUnreadable: the file cannot be read, or its secret is too short or too long.

        """
        if self.assignment_secret_file is None:
            return b""
        variable = "RATCHET_ROUTER_ASSIGNMENT_SECRET_FILE"
        secret = read_secret(self.assignment_secret_file, variable).encode()
        if not MIN_SECRET <= len(secret) <= MAX_SECRET:
            raise CredentialsUnreadable(
                f"{variable}: the secret has {len(secret)} bytes; {MIN_SECRET} to {MAX_SECRET} are "
                "needed, such as those of openssl rand -hex 32"
            )
        return secret

    @property
    def answer_bounds(self) -> AnswerBounds:
        """Bounds of one request where its key has none of its own."""
        return AnswerBounds(self.max_choices, self.max_tokens)

    @property
    def key_limits(self) -> RateLimits:
        """RateLimits of keys that have none of their own."""
        return RateLimits(
            self.key_requests_per_minute, self.key_tokens_per_minute, self.key_running
        )

    @property
    def vote_caps(self) -> VoteCaps:
        """How many attempts a minute count in a rollout's judgement."""
        return VoteCaps(
            self.key_votes_per_minute, self.tenant_votes_per_minute, self.nobody_votes_per_minute
        )

    @property
    def tenant_limits(self) -> RateLimits:
        """RateLimits of each tenant."""
        return RateLimits(
            self.tenant_requests_per_minute, self.tenant_tokens_per_minute, self.tenant_running
        )

    @model_validator(mode="after")
    def _check_processes(self) -> Self:
        if self.processes > 1 and not self.operations_port:
            raise ValueError(
                "RATCHET_ROUTER_PROCESSES: several processes need RATCHET_ROUTER_OPERATIONS_PORT, "
                "the first of as many ports, on which each is scraped"
            )
        last = self.operations_port + self.processes - 1
        if self.processes > 1 and (last > MAX_PORT or self.operations_port <= self.port <= last):
            raise ValueError(
                f"RATCHET_ROUTER_OPERATIONS_PORT: the {self.processes} processes take it and the "
                f"ports up to {last}; RATCHET_ROUTER_PORT, {self.port}, may be none of them, and "
                f"none is over {MAX_PORT}"
            )
        return self

    @field_validator("engines", "moderation_url")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            _URL.validate_python(url)
        # OpenAI clients are given base URLs that end in /v1; the router adds that itself.
        return tuple(url.rstrip("/").removesuffix("/v1").rstrip("/") for url in value)
