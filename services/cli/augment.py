"""`ratchet dataset augment`: varied prompts beside the original pairs, at most a fifth of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer

from services.cli.augmentation import (
    BY_LEXICON,
    METHODS,
    Method,
    PlannedVariant,
    fault_of,
    plan,
)
from services.cli.errors import CliError, Exit
from services.cli.pair_formats.pair import BadPair, meta_of
from services.cli.probes.asking import Asking, ask_all
from services.cli.probes.report import check_answered
from services.cli.row_files import messages_of, read_rows
from services.cli.settings import load_settings
from services.cli.target_files import require_writable
from shared.contracts.row_sources import MACHINE_MADE, MAX_AUGMENTED_SHARE

PARAPHRASE = "Say the following in other words. Keep its meaning, names and numbers. Write the new text only."
TRANSLATE = "Translate the following into {language}. Write the translation only."
ENGLISH = "en"


def augment(
    source: Annotated[Path, typer.Argument(help="JSONL pairs, such as a dataset's train.jsonl.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="Where the pairs and their variants go.")],
    methods: Annotated[
        str, typer.Option(help=f"With commas, of {', '.join(METHODS)}.")
    ] = "synonym,insertion",
    share: Annotated[
        float,
        typer.Option(
            min=0.01, max=MAX_AUGMENTED_SHARE, help="Share of variants in the result, at most."
        ),
    ] = MAX_AUGMENTED_SHARE,
    seed: Annotated[int, typer.Option(help="Seed; the same one varies the same rows alike.")] = 0,
    version: Annotated[
        str, typer.Option(help="Served version that paraphrases and translates.")
    ] = "",
    via: Annotated[str, typer.Option(help="Language of a back-translation.")] = "German",
    back: Annotated[str, typer.Option(help="Language of the prompts.")] = "English",
    max_tokens: Annotated[int, typer.Option(min=1, max=32_768, help="Tokens of a variant.")] = 256,
) -> None:
    """Vary prompts and keep their answers; variants are marked and never held out.

    The lexicon is English: a row of another locale, or without a word it knows, is counted as
    `no_lexicon` and not varied by it.
    """
    wanted = _methods(methods, version)
    require_writable("--to", to)
    rows = read_rows(source, _checked)
    people = [row for row in rows if meta_of(row).get("source") not in MACHINE_MADE]
    if not people:
        raise CliError(f"{source}: no row is a person's; nothing is varied twice", Exit.usage)
    planned = plan(people, wanted, share, seed)
    texts = [
        *_by_lexicon([one for one in planned if one.method in BY_LEXICON]),
        *_by_model([one for one in planned if one.method not in BY_LEXICON],
                   Asking(version, max_tokens), (via, back)),
    ]  # fmt: skip
    left_out: Counter[str] = Counter()
    kept: dict[bytes, None] = {}
    for one, text in texts:
        reason = "no_lexicon" if text is None else fault_of(one.prompt, text)
        line = b"" if text is None else orjson.dumps(one.with_prompt(text.strip()))
        reason = reason or ("duplicate" if line in kept else "")
        if reason:
            left_out[reason] += 1
        else:
            kept[line] = None
    try:
        to.write_bytes(b"\n".join([*map(orjson.dumps, rows), *kept]) + b"\n")
    except OSError as error:
        raise CliError(f"{to}: cannot be written: {error}", Exit.failed) from None
    why = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items())) or "none"
    typer.echo(f"{to}: {len(rows)} rows and {len(kept)} variants; left out: {why}", err=True)


Varied = tuple[PlannedVariant, "str | None"]


def _methods(given: str, version: str) -> list[Method]:
    names = list(filter(None, given.split(",")))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise CliError(
            f"--methods: {unknown[0] if unknown else 'none'!r}; known are {', '.join(METHODS)}",
            Exit.usage,
        )
    wanted = cast("list[Method]", names)
    by_model = [name for name in wanted if name not in BY_LEXICON]
    if by_model and not version:
        raise CliError(
            f"--version: {by_model[0]} is written by a served version; name one", Exit.usage
        )
    return wanted


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a pair with its turns where variants look for them."""
    if "chosen" not in row or "rejected" not in row:
        raise BadPair("chosen, rejected: a pair has both")
    return {**row, "messages": list(messages_of(row))}


def _by_lexicon(planned: Sequence[PlannedVariant]) -> list[Varied]:
    return [(one, (one.by_lexicon() or None) if _is_english(one) else None) for one in planned]


def _is_english(one: PlannedVariant) -> bool:
    return meta_of(dict(one.row)).get("locale", ENGLISH).lower().startswith(ENGLISH)


def _by_model(
    planned: Sequence[PlannedVariant], asking: Asking, languages: tuple[str, str]
) -> list[Varied]:
    """Variants that a served version writes, at temperature 0; a failed one is empty."""
    translated = [one for one in planned if one.method == "back-translation"]
    there, back = (TRANSLATE.format(language=language) for language in languages)
    paraphrased = [one for one in planned if one.method == "paraphrase"]
    said = _said(asking, PARAPHRASE, [one.prompt for one in paraphrased])
    foreign = _said(asking, there, [one.prompt for one in translated])
    again = _said(asking, back, foreign)
    return [
        *zip(paraphrased, said, strict=True),
        *zip(translated, again, strict=True),
    ]


def _said(asking: Asking, instruction: str, texts: Sequence[str]) -> list[str]:
    """The version's answer to each text; empty where the text is, or where it failed."""
    asked = [text for text in texts if text.strip()]
    if not asked:
        return [""] * len(texts)
    turns = [[{"role": "user", "content": f"{instruction}\n\n{text}"}] for text in asked]
    answers = ask_all(load_settings(), asking, turns)
    check_answered(answers)
    said = iter(answers)
    return [next(said).text if text.strip() else "" for text in texts]
