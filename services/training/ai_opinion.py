"""Second opinion on a candidate: an AI judge at an OpenAI-compatible endpoint, where one is set.

It compares both arms' answers in both orders, and is examined on held-out choices of people. The gate
refuses what it surely finds worse; nothing passes for what it says.
"""

# pyright: strict
from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp

from services.training.errors import JudgeUnavailable
from services.training.trainers.job import read_rows, write_json
from shared.ai_judge import UnlabelledPair, winner_of
from shared.http.answers import read_json
from shared.http.client import request_within

RESULT = "ai_judge.json"
EXAM_PAIRS = 100
"""Held-out choices of people that it is examined on, at most."""
AT_ONCE = 8
TIMEOUT_S = 60.0
"""Longest wait for one verdict."""
VERDICT_TOKENS = 16
MAX_ANSWER_BYTES = 1024 * 1024
FAILURES = 16
"""After so many questions in a row without an answer nothing more is asked."""
MOST_UNANSWERED = 0.5
"""Share of the comparisons beyond which the judge counts as away."""
HTTP_OK = 200


@dataclass(frozen=True)
class AiJudge:
    """Who judges, and by what."""

    url: str
    """OpenAI-compatible, without /v1."""
    model: str
    criteria: str
    key: str = ""

    async def shares(
        self, pairs: Sequence[UnlabelledPair], moved: Callable[[], None]
    ) -> list[float | None]:
        """What the first answer of each pair gets: 1, 0, a half of a tie; None without an answer.

        `moved` is called after each question.

        Raises:
            JudgeUnavailable: most were not answered.

        """
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        async with aiohttp.ClientSession(headers=headers) as session:
            asking = _Asking(self, session, moved)
            found = await asyncio.gather(*map(asking.share, pairs))
        if found.count(None) > MOST_UNANSWERED * len(found):
            raise JudgeUnavailable(
                f"evaluation: judge_url: {self.model} at {self.url} left {found.count(None)} of "
                f"{len(found)} comparisons unanswered ({asking.failure}); look at the endpoint and "
                "at RATCHET_TRAINING_JUDGE_KEY_FILE, or leave judge_url out"
            )
        return found


class _Asking:
    """The questions of one evaluation, so many at a time; ended where nobody answers."""

    def __init__(
        self, judge: AiJudge, session: aiohttp.ClientSession, moved: Callable[[], None]
    ) -> None:
        self._judge, self._session, self._moved = judge, session, moved
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._failures = 0
        self.failure = ""
        """Why the last question had no answer."""

    async def share(self, pair: UnlabelledPair) -> float | None:
        async with self._turns:
            said = [await self._said(pair, swapped=swapped) for swapped in (False, True)]
        plain, swapped = said
        if plain is None or swapped is None:
            return None
        winner = winner_of(plain, swapped)
        return 0.5 if winner is None else 1.0 - winner

    async def _said(self, pair: UnlabelledPair, *, swapped: bool) -> str | None:
        if self._failures >= FAILURES:
            return None
        body = {
            "model": self._judge.model,
            "messages": pair.question(self._judge.criteria, swapped=swapped),
            "temperature": 0,
            "max_tokens": VERDICT_TOKENS,
        }
        try:
            said = await self._answer(body)
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            self._failures += 1
            self.failure = str(error) or type(error).__name__
            return None
        finally:
            self._moved()
        self._failures = 0
        return said

    async def _answer(self, body: Mapping[str, Any]) -> str:
        url = f"{self._judge.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
        async with request_within(TIMEOUT_S, self._session, "POST", url, json=body) as answer:
            if answer.status != HTTP_OK:
                raise ValueError(f"status {answer.status}")
            told = await read_json(answer, limit=MAX_ANSWER_BYTES)
        return str(told["choices"][0]["message"]["content"] or "")


async def second_opinion(
    judge: AiJudge,
    folder: Path,
    heldout: Iterable[Mapping[str, Any]],
    people_only: Collection[str],
    moved: Callable[[], None],
) -> None:
    """Have the judge compare an attempt's answers; writes its figures once, beside the others.

    Figures: `asked` pairs, of them `wins`, `ties`, `losses` of the candidate and `unanswered`; of
    the exam `exam_asked`, `exam_decided` and `exam_agreed`.

    Args:
        judge: Who is asked.
        folder: The attempt's, with `answers.jsonl`; one that has the result already is left alone.
        heldout: Lines of `heldout.jsonl`: the exam.
        people_only: Categories that no machine may judge, in the exam neither.
        moved: Called after each question.

    Raises:
        JudgeUnavailable: it did not answer most of them.

    """
    if (folder / RESULT).exists():
        return
    rows = [row for row in read_rows(folder / "answers.jsonl") if _askable(row, people_only)]
    pairs = [_pair(row, "candidate", "parent") for row in rows]
    compared = [row for row in heldout if _askable(row, people_only) and _is_text_pair(row)]
    exam = [_pair(row, "chosen", "rejected") for row in islice(compared, EXAM_PAIRS)]
    unequal = [pair for pair in pairs if pair.answers[0] != pair.answers[1]]
    found = await judge.shares([*exam, *unequal], moved)
    examined, judged = found[: len(exam)], found[len(exam) :]
    same = len(pairs) - len(unequal)
    write_json(
        folder / RESULT,
        {
            "asked": float(len(pairs)),
            "wins": float(judged.count(1.0)),
            "ties": float(judged.count(0.5) + same),
            "losses": float(judged.count(0.0)),
            "unanswered": float(judged.count(None)),
            "exam_asked": float(len(exam)),
            "exam_decided": float(examined.count(1.0) + examined.count(0.0)),
            "exam_agreed": float(examined.count(1.0)),
        },
    )


def _askable(row: Mapping[str, Any], people_only: Collection[str]) -> bool:
    return row.get("meta", {}).get("category") not in people_only


def _is_text_pair(row: Mapping[str, Any]) -> bool:
    """Whether a held-out row has two answers to one prompt, both of them text alone."""
    apart = {"chosen_turn", "rejected_turn", "rejected_messages"}
    return {"chosen", "rejected"} <= row.keys() and not apart & row.keys()


def _pair(row: Mapping[str, Any], first: str, second: str) -> UnlabelledPair:
    return UnlabelledPair(row["messages"], (row[first], row[second]))
