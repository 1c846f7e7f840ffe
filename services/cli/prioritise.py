"""`ratchet feedback prioritise`: the voting page's queue, the most informative prompts first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from services.cli.errors import CliError, Exit
from services.cli.http import ask
from services.cli.information import AnsweredTwice, diversified
from services.cli.rollout import DEFAULT_MODEL
from services.cli.settings import CliSettings, load_settings

MAX_PROMPTS = 2_000
ANSWER_TIMEOUT_S = 120.0
SCORED_AT_ONCE = 100
"""Prompts, two answers each, of one request for scores."""


def prioritise(
    plan: Annotated[Path, typer.Argument(help="A voting plan with prompts.")],
    versions: Annotated[tuple[str, str], typer.Argument(help="Two versions that are served.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="Where the plan with information goes.")],
    model: Annotated[str, typer.Option(help="Whose reward model scores.")] = DEFAULT_MODEL,
) -> None:
    """Ask both versions each prompt, score the answers, and put first what a vote tells most of."""
    settings = load_settings()
    content = _read(plan)
    queued = [{"text": one} if isinstance(one, str) else dict(one) for one in content["prompts"]]
    tokens = int(content.get("max_tokens", 512))
    answered = [
        (
            prompt["text"],
            tuple(_answer(settings, name, prompt["text"], tokens) for name in versions),
        )
        for prompt in queued
    ]
    scored = _scored(settings, model, answered)
    gains = dict(diversified(scored))
    ranked = sorted(
        ({**prompt, "information": round(gains[prompt["text"]], 6)} for prompt in queued),
        key=lambda prompt: -prompt["information"],
    )
    to.write_text(
        yaml.safe_dump({**content, "prompts": ranked}, sort_keys=False, allow_unicode=True)
    )
    typer.echo(f"{to}: {len(ranked)} prompts, the most informative: {ranked[0]['text'][:60]}")


def _read(plan: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(plan.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CliError(f"{plan}: cannot be read: {error}", Exit.usage) from None
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS:
        raise CliError(f"{plan}: prompts: give 1 to {MAX_PROMPTS}", Exit.usage)
    return content


def _answer(settings: CliSettings, version: str, text: str, tokens: int) -> str:
    body = {
        "model": version,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
    }
    answer = ask(
        settings,
        "router",
        "POST",
        "/v1/chat/completions",
        body=body,
        timeout_s=ANSWER_TIMEOUT_S,
    )
    return str(answer["choices"][0]["message"]["content"] or "")


def _scored(
    settings: CliSettings, model: str, answered: list[tuple[str, tuple[str, ...]]]
) -> list[AnsweredTwice]:
    found: list[AnsweredTwice] = []
    for start in range(0, len(answered), SCORED_AT_ONCE):
        part = answered[start : start + SCORED_AT_ONCE]
        items = [
            {"messages": [{"role": "user", "content": text}], "completion": answer}
            for text, answers in part
            for answer in answers
        ]
        body = {"model": model, "items": items}
        scores: list[float] = ask(
            settings, "inference", "POST", "/v1/score", body=body, timeout_s=ANSWER_TIMEOUT_S
        )["scores"]
        pairs = zip(scores[::2], scores[1::2], strict=True)
        for (text, (first, second)), both in zip(part, pairs, strict=True):
            found.append(AnsweredTwice(text, (first, second), both))
    return found
