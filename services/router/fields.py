"""Request fields: which go on to the engine, which are refused, and which are left out and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import quote

from services.router.errors import InvalidRequest
from services.router.identity import BODY_SOURCES

Endpoint = Literal["chat", "completions", "responses", "embeddings", "messages"]
CHOICES: frozenset[Endpoint] = frozenset(("chat", "completions"))
"""Endpoints whose answers are choices; the last event of their streams has no text."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOTH = _names(
    """
    add_special_tokens allowed_token_ids bad_words echo frequency_penalty ignore_eos
    include_stop_str_in_output length_penalty logit_bias logprob_token_ids logprobs max_tokens
    min_p min_tokens mm_payload n presence_penalty prompt_logprobs repetition_detection
    repetition_penalty response_format return_mm_kwargs return_token_ids return_token_offsets
    return_tokens_as_token_ids routed_experts_prompt_start seed skip_special_tokens
    spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
    structured_outputs temperature thinking_token_budget top_k top_p truncate_prompt_tokens
    truncation_side use_beam_search watermarking
    """
)
_CHAT = _names(
    """
    add_generation_prompt chat_template_kwargs continue_final_message documents include_reasoning
    max_completion_tokens messages parallel_tool_calls reasoning_effort return_prompt_text
    tool_choice tools top_logprobs
    """
)
_RESPONSES = _names(
    """
    chat_template_kwargs frequency_penalty ignore_eos include include_reasoning
    include_stop_str_in_output input instructions logit_bias max_output_tokens max_tool_calls min_p
    mm_payload parallel_tool_calls presence_penalty reasoning repetition_penalty return_mm_kwargs
    seed skip_special_tokens stop stop_token_ids stream structured_outputs temperature text
    tool_choice tools top_k top_logprobs top_p truncation watermarking
    """
)
_EMBEDDINGS = _names(
    """
    add_special_tokens dimensions embed_dtype encoding_format endianness input padding
    truncate_prompt_tokens truncation_side use_activation
    """
)
_MESSAGES = _names(
    """
    chat_template_kwargs max_tokens messages mm_payload output_config return_mm_kwargs
    stop_sequences stream system temperature thinking tool_choice tools top_k top_p watermarking
    """
)
ENGINE_FIELDS: dict[Endpoint, frozenset[str]] = {
    "chat": _BOTH | _CHAT,
    "completions": _BOTH | {"prompt", "suffix"},
    "responses": _RESPONSES,
    "embeddings": _EMBEDDINGS,
    "messages": _MESSAGES,
}
"""Fields of vLLM's request schemas that change the caller's own answer and nothing else."""
STEERING_FIELDS = _names(
    """
    cache_salt chat_template ec_transfer_params kv_transfer_params media_io_kwargs
    mm_processor_kwargs priority prompt_embeds request_id vllm_xargs
    """
)
"""Fields by which one client could steer the engine for others: its queue, caches, memory or code."""
STEERING_PREFIX = "lora"
"""Adapters are chosen by the rollout alone."""
STEERING_TEMPLATE_KWARGS = frozenset(("chat_template", "tokenize"))
ROUTER_FIELDS = frozenset(("metadata", "model", "user"))
"""Fields that the router reads and the engine does not need."""

MAX_NAMED = 16
MAX_NAME = 64


class FieldRules:
    """Sorts the fields of a body: passed on, refused, read by the router, or ignored and named."""

    __slots__ = ("_passed", "_read", "_refuse_unknown", "_refused")

    def __init__(
        self,
        *,
        passed: Iterable[str] = (),
        refused: Iterable[str] = (),
        read: Iterable[str] = BODY_SOURCES,
        refuse_unknown: bool = False,
    ) -> None:
        """`passed` and `refused` are added to the fields known here, and outweigh them; `read` are
        the router's own, beside `ROUTER_FIELDS`.
        """
        more, less = frozenset(passed), frozenset(refused)
        self._passed = {
            name: (known | more) - less - {"model"} for name, known in ENGINE_FIELDS.items()
        }
        self._refused = (STEERING_FIELDS | less) - more
        self._read = ROUTER_FIELDS.union(read) - less
        self._refuse_unknown = refuse_unknown

    def split(
        self, endpoint: Endpoint, payload: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The fields for the engine, and the names of those that nobody reads.

        Raises:
            InvalidRequest: a field may steer the engine for others, or is unknown where the
                settings refuse that. `null` asks for nothing and is never refused.

        """
        passed, read = self._passed[endpoint], self._read
        fields: dict[str, Any] = {}
        ignored: list[str] = []
        for name, value in payload.items():
            if name in passed:
                fields[name] = value
            elif name not in read and value is not None:
                self._check(name)
                ignored.append(name)
        if "chat_template_kwargs" in fields:
            _check_template_kwargs(fields["chat_template_kwargs"])
        return fields, tuple(ignored)

    def _check(self, name: str) -> None:
        shown = name[:MAX_NAME]
        if name in self._refused or name.startswith(STEERING_PREFIX):
            raise InvalidRequest(
                f"{shown}: clients may not set this field; leave it out", param=shown
            )
        if self._refuse_unknown:
            raise InvalidRequest(f"{shown}: is not a known field; leave it out", param=shown)


def _check_template_kwargs(value: object) -> None:
    if value is None:
        return
    param = "chat_template_kwargs"
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param}: must be an object; send one or leave it out", param=param)
    for name in STEERING_TEMPLATE_KWARGS & value.keys():
        raise InvalidRequest(
            f"{param}.{name}: clients may not set this; leave it out", param=f"{param}.{name}"
        )


def ignored_header(names: tuple[str, ...]) -> bytes:
    """Value of `x-ratchet-ignored`: names in percent-encoding; after 16 of them how many more."""
    shown = [quote(name[:MAX_NAME], safe="", errors="replace") for name in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        shown.append(f"and {len(names) - MAX_NAMED} more")
    return ", ".join(shown).encode()
