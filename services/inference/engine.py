"""vLLM client: the part of its HTTP interface that this service uses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

from services.inference.errors import (
    EngineLacks,
    EngineRefused,
    EngineTimedOut,
    EngineUnavailable,
)
from shared.contracts.conversation import stored_turn
from shared.contracts.events.versions import Fingerprint, FingerprintText
from shared.http.answers import read_answer
from shared.http.client import request_within

HEALTH_TIMEOUT_S = 10.0
QUICK_TIMEOUT_S = 15.0
FIRST_TIMEOUT_S = 60.0
"""Of an engine's first token, for which some compile."""
LOAD_TIMEOUT_S = 120.0
FINGERPRINT_TIMEOUT_S = 300.0
KEY_REFUSED = (401, 403)
LACKING = (404, 405)
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_ERROR = 400
"""Characters of an engine's error that are passed on."""

_LORA_LINE = re.compile(
    r'^vllm:lora_requests_info\{[^}]*?running_lora_adapters="(?P<running>[^"]*)"'
    r'[^}]*?waiting_lora_adapters="(?P<waiting>[^"]*)"[^}]*\} (?P<at>\S+)$',
    re.MULTILINE,
)
_COUNT_LINE = re.compile(
    r"^vllm:num_requests_(?P<what>running|waiting)\{[^}]*\} (?P<count>\S+)$", re.MULTILINE
)


@dataclass(frozen=True)
class ServedModels:
    """Names that the engine answers under: those of base models, and of loaded adapters."""

    bases: tuple[str, ...] = ()
    adapters: frozenset[str] = frozenset()

    @property
    def base(self) -> str:
        """The base model's first name; empty where there is none."""
        return self.bases[0] if self.bases else ""


@dataclass(frozen=True)
class EngineLoad:
    """Load of the engine: requests running and waiting, and the adapters they are for."""

    running: int
    waiting: int
    busy: frozenset[str]


@dataclass(frozen=True)
class Generated:
    """One completed generation."""

    text: str
    finish_reason: str
    tokens: int
    turn: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The answer in the stored form."""

    @property
    def tool_calls(self) -> tuple[str, ...]:
        """Names of the tools called."""
        return tuple(call["name"] for call in self.turn.get("tool_calls", ()))


class EngineClient:
    """Talks to one vLLM, or to another OpenAI-compatible engine. Every call has a deadline."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        key_setting: str = "RATCHET_ENGINE_API_KEY_FILE",
    ) -> None:
        """`key_setting` names the file of the key that the session sends."""
        self._session = session
        self._url = url
        self._key_setting = key_setting

    async def healthy(self) -> bool:
        """Whether `/health` answers 200 in time, or `/v1/models` where an engine has no `/health`."""
        try:
            try:
                await self._call("GET", "/health", timeout_s=HEALTH_TIMEOUT_S)
            except EngineLacks:
                await self._call("GET", "/v1/models", timeout_s=HEALTH_TIMEOUT_S)
        except (EngineRefused, EngineUnavailable):
            return False
        return True

    async def answers(self) -> bool:
        """Whether the engine answers a chat completion of one token, be it with a refusal.

        `/health` is well before any layer of the model has run: an engine without a kernel for the
        model's sizes ends at its first request.
        """
        try:
            served = await self.models()
            hello = {"role": "user", "content": "Hello"}
            body = {"model": served.base, "messages": [hello], "max_tokens": 1}
            await self.generate(body, timeout_s=FIRST_TIMEOUT_S)
        except EngineUnavailable:
            return False
        except EngineRefused:
            return True
        return True

    async def models(self) -> ServedModels:
        """The names that the engine lists.

        Raises:
            EngineUnavailable, EngineRefused: no list was given.

        """
        content = await self._call("GET", "/v1/models", timeout_s=QUICK_TIMEOUT_S)
        with _understood("/v1/models"):
            cards = [(card["id"], card.get("parent")) for card in orjson.loads(content)["data"]]
        return ServedModels(
            bases=tuple(name for name, parent in cards if parent is None),
            adapters=frozenset(name for name, parent in cards if parent is not None),
        )

    async def load_figures(self) -> EngineLoad:
        """How busy the engine is.

        Raises:
            EngineUnavailable, EngineRefused: no metrics were given.

        """
        text = (await self._call("GET", "/metrics", timeout_s=QUICK_TIMEOUT_S)).decode()
        return parse_load(text)

    async def load(self, name: str, path: str) -> None:
        """Load an adapter under a name that is not loaded.

        Raises:
            EngineUnavailable: the engine did not answer.
            EngineRefused: it would not load it.

        """
        await self._call(
            "POST",
            "/v1/load_lora_adapter",
            {"lora_name": name, "lora_path": path},
            timeout_s=LOAD_TIMEOUT_S,
        )

    async def unload(self, name: str) -> None:
        """Unload an adapter; one that is not loaded is none to unload.

        Raises:
            EngineUnavailable, EngineRefused: it may still be loaded.

        """
        try:
            await self._call(
                "POST",
                "/v1/unload_lora_adapter",
                {"lora_name": name},
                timeout_s=QUICK_TIMEOUT_S,
            )
        except EngineRefused:
            if name in (await self.models()).adapters:
                raise

    async def tokens(self, model: str, text: str) -> tuple[int, ...]:
        """A text as the model's token ids, without added special tokens.

        Raises:
            EngineUnavailable, EngineRefused: no ids were given.

        """
        content = await self._call(
            "POST",
            "/tokenize",
            {"model": model, "prompt": text, "add_special_tokens": False},
            timeout_s=QUICK_TIMEOUT_S,
        )
        with _understood("/tokenize"):
            return tuple(int(token) for token in orjson.loads(content)["tokens"])

    async def fingerprint(
        self,
        model: str,
        tokens: Sequence[Sequence[int]],
        dtype: Literal["float32", "bfloat16"],
    ) -> Fingerprint:
        """Log-probabilities of some texts, given as token ids, each of at least two.

        Raises:
            EngineUnavailable: the engine did not answer.
            EngineRefused: it did not take the tokens, or answered something else.

        """
        content = await self._call(
            "POST",
            "/v1/completions",
            {
                "model": model,
                "prompt": [list(text) for text in tokens],
                "max_tokens": 1,
                "temperature": 0.0,
                "prompt_logprobs": 0,
            },
            timeout_s=FINGERPRINT_TIMEOUT_S,
        )
        with _understood("/v1/completions"):
            answers: dict[int, list[Any]] = {
                choice["index"]: choice["prompt_logprobs"]
                for choice in orjson.loads(content)["choices"]
            }
            texts = tuple(
                FingerprintText(
                    tokens=tuple(ids),
                    logprobs=tuple(
                        float(answers[number][place][str(token)]["logprob"])
                        for place, token in enumerate(ids)
                        if place > 0
                    ),
                )
                for number, ids in enumerate(tokens)
            )
        return Fingerprint(dtype=dtype, texts=texts)

    async def generate(
        self, body: Mapping[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> Generated:
        """One chat completion; `body` is the request. A higher `priority` is served later.

        The engine's own span is under `traceparent`.

        Raises:
            EngineUnavailable: the engine did not answer; `EngineTimedOut`: not in time.
            EngineRefused: it did not take the request.

        """
        content = await self._call(
            "POST", "/v1/chat/completions", body, timeout_s=timeout_s, traceparent=traceparent
        )
        with _understood("/v1/chat/completions"):
            answer = orjson.loads(content)
            choice = answer["choices"][0]
            message = choice["message"]
            return Generated(
                text=message["content"] or "",
                finish_reason=choice["finish_reason"] or "",
                tokens=answer["usage"]["completion_tokens"],
                turn=stored_turn({**message, "role": "assistant"}),
            )

    async def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        timeout_s: float,
        traceparent: str = "",
    ) -> bytes:
        data = None if body is None else _encoded(path, body)
        headers = {} if body is None else {"content-type": "application/json"}
        if traceparent:
            headers["traceparent"] = traceparent
        try:
            async with request_within(
                timeout_s,
                self._session,
                method,
                self._url + path,
                data=data,
                headers=headers,
            ) as response:
                content = await read_answer(response, limit=MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise EngineTimedOut(f"{path}: no answer within {timeout_s:g} s; try again") from error
        except aiohttp.ClientError as error:
            raise EngineUnavailable(
                f"{path}: {error or type(error).__name__}; see the engine's log, and try again"
            ) from error
        if response.status in KEY_REFUSED:
            raise EngineUnavailable(
                f"{path}: {response.status}: the engine refuses our key; "
                f"set {self._key_setting} to a file with its key"
            )
        if response.status == 503:
            raise EngineUnavailable(f"{path}: 503 {error_message(content)}; try again")
        if response.status != 200:
            kind = EngineLacks if response.status in LACKING else EngineRefused
            raise kind(
                f"{path}: {response.status} {error_message(content)}; correct what it names, "
                "or see the engine's log"
            )
        return content


def _encoded(path: str, body: object) -> bytes:
    """The body as JSON; a caller's integer may be beyond 64 bits."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise EngineRefused(
            f"{path}: the request cannot be written as JSON: {error}; send whole numbers of at most "
            "64 bits"
        ) from error


@contextlib.contextmanager
def _understood(path: str) -> Iterator[None]:
    """Turn what comes of an answer of another shape into the engine's refusal."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EngineRefused(
            f"{path}: its answer cannot be read ({error!r}); is this engine a vLLM?"
        ) from error


def error_message(content: bytes) -> str:
    """Message of an OpenAI-shaped error, else the beginning of the body."""
    try:
        message = str(orjson.loads(content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = content.decode("utf-8", "replace")
    return message[:MAX_ERROR]


def parse_load(metrics: str) -> EngineLoad:
    """The engine's own figures.

    `vllm:lora_requests_info` keeps a series for each set of adapters that ever ran together; its
    value is when that set was last current, so the newest series speaks of now.
    """
    counts = {"running": 0.0, "waiting": 0.0}
    for line in _COUNT_LINE.finditer(metrics):
        counts[line["what"]] += float(line["count"])
    busy: frozenset[str] = frozenset()
    newest = max(_LORA_LINE.finditer(metrics), key=lambda line: float(line["at"]), default=None)
    if newest is not None and counts["running"] + counts["waiting"] > 0:
        names = f"{newest['running']},{newest['waiting']}".split(",")
        busy = frozenset(name for name in names if name)
    return EngineLoad(int(counts["running"]), int(counts["waiting"]), busy)
