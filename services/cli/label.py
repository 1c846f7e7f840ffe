"""`ratchet dataset label`: pairs that an AI judge or the reward model labels, for training."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import yaml

from services.cli.errors import CliError, Exit
from services.cli.options import DEFAULT_MODEL
from services.cli.probes.asking import Asking, ask_all
from services.cli.probes.report import check_answered
from services.cli.scores import scores
from services.cli.settings import CliSettings, load_settings
from services.cli.target_files import require_writable
from services.cli.unlabelled import read_prompts, read_unlabelled, read_votes
from shared.ai_judge import (
    CRITERIA,
    UnlabelledPair,
    Winner,
    agreement_of,
    winner_by_score,
    winner_of,
)
from shared.contracts.row_sources import HIGH_STAKES

JUDGE_KEY = "RATCHET_JUDGE_API_KEY"
VERDICT_TOKENS = 16
MIN_VOTES = 30
"""Votes that a judge must decide before its agreement counts."""
REWARD_MODEL = "reward-model"
"""Name of the reward model in place of an AI judge's."""
SAMPLED_AT = 1.0
"""Temperature of sampled answers, so that two of one prompt differ."""


def label(
    source: Annotated[
        Path, typer.Argument(help="JSONL: messages with answers, pairs, or with --sample prompts.")
    ],
    *,
    votes: Annotated[Path, typer.Option(help="JSONL pairs that people chose: the judge's exam.")],
    to: Annotated[Path, typer.Option("--to", help="Where the labelled pairs go.")],
    judge: Annotated[
        str, typer.Option(help=f"Model name at the judge's endpoint, or {REWARD_MODEL}.")
    ] = REWARD_MODEL,
    judge_url: Annotated[
        str, typer.Option(help=f"OpenAI-compatible, without /v1; its key is {JUDGE_KEY}.")
    ] = "",
    model: Annotated[str, typer.Option(help="Whose reward model scores.")] = DEFAULT_MODEL,
    criteria: Annotated[str, typer.Option(help="What the judge holds to be better.")] = CRITERIA,
    margin: Annotated[float, typer.Option(min=0, help="Least difference of two scores.")] = 0.1,
    min_agreement: Annotated[
        float, typer.Option(min=0.5, max=1, help="Lower 95 % bound of agreement with the votes.")
    ] = 0.6,
    sample: Annotated[str, typer.Option(help="Served version whose own answers are judged.")] = "",
    answers: Annotated[
        int, typer.Option(min=2, max=16, help="Answers sampled a prompt; even.")
    ] = 2,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=32_768, help="Tokens of a sampled answer.")
    ] = 256,
    people_only: Annotated[
        str, typer.Option(help="Categories that no machine labels, with commas.")
    ] = ",".join(HIGH_STAKES),
    with_votes: Annotated[
        bool,
        typer.Option(
            "--with-votes", help="Write the votes first: people where they voted, AI beyond."
        ),
    ] = False,
    audit: Annotated[
        Path | None, typer.Option(help="Voting plan for people who check a sample.")
    ] = None,
    audit_share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of pairs to check.")
    ] = 0.1,
) -> None:
    """Label pairs by a judge whose agreement with people is measured first, and required.

    Every pair is asked in both orders and ties are dropped. Rows say that an AI labelled them and
    which one; datasets bound their share and never hold them out.
    """
    require_writable("--to", to)
    if audit is not None:
        require_writable("--audit", audit)
    settings = load_settings()
    decide = _decider(settings, judge, judge_url, model, criteria, margin)
    voted = read_votes(votes)
    high_stakes = {name.strip() for name in people_only.split(",")} - {""}
    agreement = agreement_of(decide(_askable(voted, high_stakes)))
    typer.echo(f"{judge} agrees with people in {agreement}", err=True)
    if agreement.decided < MIN_VOTES or agreement.interval[0] < min_agreement:
        raise CliError(
            f"{judge}: agreement with people must have a lower bound of {min_agreement:.0%} on "
            f"{MIN_VOTES} votes or more; give more votes, another judge or clearer --criteria. "
            f"{to} was not written",
            Exit.failed,
        )
    pairs = (
        _sampled(settings, source, Asking(sample, max_tokens, temperature=SAMPLED_AT), answers)
        if sample
        else read_unlabelled(source)
    )
    asked = _askable(pairs, high_stakes)
    winners = decide(asked)
    labelled = [
        pair.row(winner, judge)
        for pair, winner in zip(asked, winners, strict=True)
        if winner is not None
    ]
    kept_votes = [_vote_row(one) for one in voted] if with_votes else []
    _write(to, [*kept_votes, *labelled])
    counts = Counter(people_only=len(pairs) - len(asked), ties=len(asked) - len(labelled))
    typer.echo(
        f"{to}: {len(labelled)} labelled by {judge}, {len(kept_votes)} votes; left out: "
        f"{counts['ties']} ties, {counts['people_only']} of categories for people only",
        err=True,
    )
    if audit is not None:
        _write_audit(audit, labelled, audit_share)


def _askable(
    pairs: Sequence[UnlabelledPair], high_stakes: AbstractSet[str]
) -> list[UnlabelledPair]:
    """Pairs that a judge may see, in its exam too."""
    return [pair for pair in pairs if pair.meta.get("category") not in high_stakes]


Decide = Callable[[Sequence[UnlabelledPair]], "list[Winner | None]"]


def _decider(
    settings: CliSettings, judge: str, url: str, model: str, criteria: str, margin: float
) -> Decide:
    if judge == REWARD_MODEL:
        return lambda pairs: _by_score(settings, model, margin, pairs)
    if url:
        # The judge's endpoint never sees the key of this installation.
        elsewhere = {**settings.urls, "router": url.rstrip("/").removesuffix("/v1")}
        settings = replace(settings, urls=elsewhere, api_key=os.environ.get(JUDGE_KEY, ""))
    return lambda pairs: _by_judge(settings, Asking(judge, VERDICT_TOKENS), criteria, pairs)


def _by_score(
    settings: CliSettings, model: str, margin: float, pairs: Sequence[UnlabelledPair]
) -> list[Winner | None]:
    items = [
        ([dict(turn) for turn in pair.messages], answer)
        for pair in pairs
        for answer in pair.answers
    ]
    found = [one.value for one in scores(settings, model, items)]
    both = zip(found[::2], found[1::2], strict=True)
    return [winner_by_score(first, second, margin) for first, second in both]


def _by_judge(
    settings: CliSettings, asking: Asking, criteria: str, pairs: Sequence[UnlabelledPair]
) -> list[Winner | None]:
    """Each pair in both orders; one that was not answered twice is a tie."""
    questions = [
        pair.question(criteria, swapped=swapped) for pair in pairs for swapped in (False, True)
    ]
    said = ask_all(settings, asking, questions)
    check_answered(said)
    return [
        winner_of(plain.text, swapped.text)
        for plain, swapped in zip(said[::2], said[1::2], strict=True)
    ]


def _sampled(
    settings: CliSettings, source: Path, asking: Asking, count: int
) -> list[UnlabelledPair]:
    """Pairs of a version's own answers to each prompt; a prompt that fails gives none."""
    prompts = read_prompts(source)
    conversations = [[dict(turn) for turn in one.messages] for one in prompts]
    rounds = [ask_all(settings, asking, conversations) for _ in range(count // 2 * 2)]
    check_answered([answer for one in rounds for answer in one])
    writer = {"chosen_version": asking.version, "rejected_version": asking.version}
    return [
        UnlabelledPair(prompt.messages, (first.text, second.text), {**prompt.meta, **writer})
        for one, other in zip(rounds[::2], rounds[1::2], strict=True)
        for prompt, first, second in zip(prompts, one, other, strict=True)
        if first.text.strip() and second.text.strip() and first.text != second.text
    ]


def _vote_row(vote: UnlabelledPair) -> dict[str, Any]:
    chosen, rejected = vote.answers
    messages = [dict(turn) for turn in vote.messages]
    return {"messages": messages, "chosen": chosen, "rejected": rejected, "meta": dict(vote.meta)}


def _write(to: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        raise CliError(f"no pair was decided; {to} was not written", Exit.failed)
    _write_bytes(to, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _write_bytes(to: Path, data: bytes) -> None:
    try:
        to.write_bytes(data)
    except OSError as error:
        raise CliError(f"{to}: cannot be written: {error}", Exit.failed) from None


def _write_audit(plan: Path, labelled: Sequence[dict[str, Any]], share: float) -> None:
    """A voting plan with the prompts of a sample that a hash of the rows chooses, one at least."""
    rows = sorted(labelled, key=_place)
    count = max(1, sum(_place(row) < share for row in rows))
    prompts = list(dict.fromkeys(str(row["messages"][-1]["content"]) for row in rows[:count]))
    text = yaml.safe_dump({"prompts": prompts}, sort_keys=False, allow_unicode=True)
    _write_bytes(plan, text.encode())
    typer.echo(f"{plan}: {len(prompts)} prompts for people to check", err=True)


def _place(row: dict[str, Any]) -> float:
    """A fixed place of a row in [0, 1)."""
    data = json.dumps(row, sort_keys=True).encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") / 2**64
