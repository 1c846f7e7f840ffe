"""An AI judge as a second opinion: it refuses what it finds worse, and releases nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from services.training import ai_opinion
from services.training.ai_opinion import RESULT, AiJudge, second_opinion
from services.training.errors import JudgeUnavailable
from services.training.evaluation import EvaluationSettings
from shared.contracts.events.training import RunPhase
from tests.unit.training.builders import request
from tests.unit.training.harness import TrainingHarness

Verdict = Callable[[str, str], str]
"""Says A, B or TIE of two answers."""


class Endpoint:
    """An OpenAI-compatible judge that decides by a function of the two answers."""

    def __init__(self, decide: Verdict) -> None:
        self.decide = decide
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.url = ""

    async def answer(self, http: web.Request) -> web.Response:
        body = await http.json()
        self.asked.append(body)
        self.keys.add(http.headers.get("authorization", ""))
        text: str = body["messages"][0]["content"]
        first, _, rest = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")
        said = self.decide(first, rest.partition("\n\nWhich is better?")[0])
        if not said:
            return web.Response(status=500)
        return web.json_response({"choices": [{"message": {"content": said}}]})


@asynccontextmanager
async def endpoint(decide: Verdict) -> AsyncIterator[Endpoint]:
    served, app = Endpoint(decide), web.Application()
    app.router.add_post("/v1/chat/completions", served.answer)
    async with TestServer(app) as server:
        served.url = str(server.make_url("/v1"))
        yield served


def likes_new(first: str, second: str) -> str:
    """Prefers what begins with `new`, whichever stands first."""
    return "A" if first.startswith("new") else "B" if second.startswith("new") else "TIE"


def likes_old(first: str, second: str) -> str:
    return "A" if first.startswith("old") else "B" if second.startswith("old") else "TIE"


def row(number: int, parent: str, candidate: str, **meta: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    return {"messages": messages, "parent": parent, "candidate": candidate, "meta": meta}


def held(chosen: str, rejected: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "held out"}]
    return {"messages": messages, "chosen": chosen, "rejected": rejected, "meta": {}, **fields}


async def opinion(
    folder: Path, served: Endpoint, rows: list[dict[str, Any]], heldout: list[dict[str, Any]]
) -> dict[str, float]:
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "answers.jsonl").write_text(lines)
    judge = AiJudge(served.url, "judge", "The shorter.", "its key")
    await second_opinion(judge, folder, heldout, ("medical",), lambda: None)
    return json.loads((folder / RESULT).read_bytes())


async def test_both_orders_are_asked_and_ties_and_equal_answers_are_halves(tmp_path: Path) -> None:
    rows = [
        row(1, "old 1", "new 1"),
        row(2, "old 2", "other 2"),
        row(3, "the same", "the same"),
        row(4, "new 4", "old 4"),
        row(5, "old 5", "new 5", category="medical"),
    ]
    heldout = [
        held("new a", "old a"),
        held("old b", "new b"),
        held("c", "d"),
        held("new e", "old e", meta={"category": "medical"}),
        held("new f", "old f", chosen_turn={"role": "assistant"}),
    ]
    async with endpoint(likes_new) as served:
        figures = await opinion(tmp_path, served, rows, heldout)
    assert figures == {
        "asked": 4.0,
        "wins": 1.0,
        "ties": 2.0,
        "losses": 1.0,
        "unanswered": 0.0,
        "exam_asked": 3.0,
        "exam_decided": 2.0,
        "exam_agreed": 1.0,
    }
    assert len(served.asked) == 2 * (3 + 3), "equal answers are not asked about, nor people's own"
    assert served.keys == {"Bearer its key"}
    assert "The shorter." in served.asked[0]["messages"][0]["content"]


async def test_a_judge_that_likes_a_place_finds_only_ties(tmp_path: Path) -> None:
    async with endpoint(lambda *_: "A") as served:
        figures = await opinion(tmp_path, served, [row(1, "old", "new")], [held("a", "b")])
    assert (figures["ties"], figures["exam_decided"]) == (1.0, 0.0)


async def test_a_result_that_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    async with endpoint(likes_new) as served:
        await opinion(tmp_path, served, [row(1, "old", "new")], [])
        await opinion(tmp_path, served, [row(1, "old", "new")], [])
    assert len(served.asked) == 2


async def test_a_judge_that_is_away_is_given_up_and_told_of(tmp_path: Path) -> None:
    rows = [row(number, "old", "new") for number in range(200)]
    async with endpoint(lambda *_: "") as served:
        with pytest.raises(JudgeUnavailable, match=r"judge_url: judge at .* left 200 of 200"):
            await opinion(tmp_path, served, rows, [])
    assert len(served.asked) < ai_opinion.FAILURES + 2 * ai_opinion.AT_ONCE
    assert not (tmp_path / RESULT).exists()


async def test_an_answer_that_fails_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(number, f"old {number}", f"new {number}") for number in range(10)]
    async with endpoint(lambda *both: "" if "old 3" in both else likes_new(*both)) as served:
        figures = await opinion(tmp_path, served, rows, [])
    assert (figures["wins"], figures["unanswered"]) == (9.0, 1.0)


@pytest.mark.parametrize(("decide", "phase"), [(likes_old, "rejected"), (likes_new, "succeeded")])
async def test_the_gate_refuses_what_the_ai_judge_surely_finds_worse(
    harness: TrainingHarness, decide: Verdict, phase: str
) -> None:
    harness.plan({"answers": [row(number, f"old {number}", "new") for number in range(20)]})
    async with endpoint(decide) as served:
        evaluation = EvaluationSettings(judge_url=served.url, judge_model="judge")
        outcome = await harness.run(request(), evaluation=evaluation, attempts=1)
    assert outcome.phase == phase, outcome.message
    (check,) = [one for one in outcome.checks if one.name == "ai_judge"]
    assert check.passed == (phase == "succeeded")
    assert "held-out choices" in check.detail
    assert ("ai_judge" in outcome.message) == (phase == "rejected")
    metrics = outcome.metrics or {}
    assert (metrics["ai_win_rate"], metrics["ai_asked"]) == (float(check.passed), 20.0)


async def test_a_job_waits_for_an_ai_judge_that_is_away_and_fails_with_its_place(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.training.runner.OUTAGE_TRIES", 2)
    monkeypatch.setattr("services.training.runner.BACKOFF_FIRST_S", 0.01)
    async with endpoint(lambda *_: "") as served:
        evaluation = EvaluationSettings(judge_url=served.url, judge_model="judge")
        outcome = await harness.run(request(), evaluation=evaluation)
    assert outcome.phase is RunPhase.failed
    assert "leave judge_url out" in outcome.message


def test_a_judge_has_a_name() -> None:
    with pytest.raises(ValidationError, match="judge_model: required beside judge_url"):
        EvaluationSettings(judge_url="http://judge")
