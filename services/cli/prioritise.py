"""`ratchet feedback prioritise`: the voting page's queue, the most informative prompts first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from services.cli.errors import CliError, Exit
from services.cli.options import DEFAULT_MODEL
from services.cli.probes.asking import Asking, ask_all
from services.cli.probes.report import check_answered
from services.cli.scores import scores
from services.cli.settings import CliSettings, load_settings
from services.cli.target_files import require_writable
from shared.file_faults import fault_of, load_yaml
from shared.information import AnsweredTwice, diversified

MAX_PROMPTS = 2_000


def prioritise(
    plan: Annotated[Path, typer.Argument(help="A voting plan with prompts.")],
    versions: Annotated[tuple[str, str], typer.Argument(help="Two versions that are served.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="Where the plan with information goes.")],
    model: Annotated[str, typer.Option(help="Whose reward model scores.")] = DEFAULT_MODEL,
) -> None:
    """Ask both versions each prompt, score the answers, and put first what a vote tells most of."""
    require_writable("--to", to)
    settings = load_settings()
    content = _read(plan)
    queued = _prompts(plan, content)
    tokens = int(content.get("max_tokens", 512))
    texts = list(dict.fromkeys(prompt["text"] for prompt in queued))
    answered = _answered(settings, versions, texts, tokens)
    gains = dict(diversified(_scored(settings, model, answered)))
    ranked = sorted(
        ({**prompt, "information": round(gains.get(prompt["text"], 0.0), 6)} for prompt in queued),
        key=lambda prompt: -prompt["information"],
    )
    to.write_text(
        yaml.safe_dump({**content, "prompts": ranked}, sort_keys=False, allow_unicode=True)
    )
    typer.echo(f"{to}: {len(ranked)} prompts, the most informative: {ranked[0]['text'][:60]}")
    if missing := len(texts) - len(answered):
        typer.echo(f"{missing} prompts were not answered by both versions and stand last")


def _read(plan: Path) -> dict[str, Any]:
    try:
        content = load_yaml(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CliError(f"{plan}: cannot be read: {fault_of(error)}", Exit.usage) from None
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS:
        raise CliError(f"{plan}: prompts: give 1 to {MAX_PROMPTS}", Exit.usage)
    return content


def _prompts(plan: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan's prompts, each with its text."""
    queued = [{"text": one} if isinstance(one, str) else one for one in content["prompts"]]
    for number, one in enumerate(queued, 1):
        if not isinstance(one, dict) or not isinstance(one.get("text"), str):
            raise CliError(f"{plan}: prompt {number}: must be a text or have one", Exit.usage)
    return queued


def _answered(
    settings: CliSettings, versions: tuple[str, str], texts: list[str], max_tokens: int
) -> list[tuple[str, tuple[str, str]]]:
    """The prompts that both versions answered, with the answers; a failure stops no other."""
    asked = [[{"role": "user", "content": text}] for text in texts]
    both = [ask_all(settings, Asking(name, max_tokens), asked) for name in versions]
    for answers in both:
        check_answered(answers)
    return [
        (text, (one.text, other.text))
        for text, one, other in zip(texts, *both, strict=True)
        if not (one.failure or other.failure)
    ]


def _scored(
    settings: CliSettings, model: str, answered: list[tuple[str, tuple[str, str]]]
) -> list[AnsweredTwice]:
    items = [
        ([{"role": "user", "content": text}], answer)
        for text, answers in answered
        for answer in answers
    ]
    found = scores(settings, model, items)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [
        AnsweredTwice(text, answers, both)
        for (text, answers), both in zip(answered, pairs, strict=True)
    ]
