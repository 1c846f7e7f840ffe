"""`ratchet dataset label`: an AI judge that must agree with people before it labels anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli import scores
from services.cli.dataset import app
from services.cli.errors import CliError
from services.cli.probes import asking
from services.feedback.voting.plan import load_plan
from services.training.importing import read_pairs
from shared.ai_judge import agreement_of, winner_by_score, winner_of


@pytest.mark.parametrize(
    ("plain", "swapped", "winner"),
    [
        ("A", "B", 0),
        ("B.", "Answer A", 1),
        ("A", "A", None),
        ("TIE", "B", None),
        ("It is a tie.", "B", None),
        ("I cannot say", "B", None),
        ("", "", None),
    ],
)
def test_a_winner_wins_in_both_orders(plain: str, swapped: str, winner: int | None) -> None:
    assert winner_of(plain, swapped) == winner


def test_scores_within_the_margin_are_a_tie() -> None:
    assert [winner_by_score(one, 0.0, 0.1) for one in (0.2, -0.2, 0.1)] == [0, 1, None]


@given(st.lists(st.sampled_from([0, 1, None])))
def test_agreement_counts_what_is_decided(winners: Any) -> None:
    found = agreement_of(winners)
    assert found.agreed <= found.decided <= found.asked == len(winners)
    assert 0 <= found.interval[0] <= found.interval[1] <= 1


def rows(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@pytest.fixture
def votes(tmp_path: Path) -> str:
    """Forty votes for polite answers, one of a machine that does not count."""
    content = [
        {"messages": ask(f"vote {n}"), "chosen": f"please {n}", "rejected": f"no {n}"}
        for n in range(40)
    ]
    machine = {**content[0], "chosen": "no", "rejected": "please", "meta": {"source": "ai"}}
    return rows(tmp_path / "votes.jsonl", [*content, machine])


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Router:
    """A judge that prefers `wanted`, wherever it stands, and a version that writes answers."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.questions: list[str] = []
        self.seen: set[tuple[str, str]] = set()
        self.written = 0

    def fetch(self, settings: Any, url: str, *, body: Any, **_: Any) -> tuple[int, str]:
        self.seen.add((url, settings.api_key))
        text = body["messages"][0]["content"]
        self.questions.append(text)
        if "[Answer A]" not in text:
            self.written += 1
            said = f"{'please' if self.written % 2 else 'no'} {self.written}"
        else:
            first = text.split("[Answer A]")[1].split("[Answer B]")[0]
            said = "A" if self.wanted in ("A", "") or self.wanted in first else "B"
        return 200, json.dumps({"choices": [{"message": {"content": said}}]})


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    made = Router("please")
    monkeypatch.setattr(asking, "fetch", made.fetch)
    return made


def label(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["label", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_labelled_pairs_say_by_whom_and_ties_and_high_stakes_are_left_out(
    router: Router, votes: str, tmp_path: Path
) -> None:
    source = rows(
        tmp_path / "answers.jsonl",
        [
            {"messages": ask("q1"), "answers": ["no", "please"], "meta": {"category": "billing"}},
            {"prompt": "q2", "answers": ["please, please", "please"]},
            {"messages": ask("q3"), "chosen": "no", "rejected": "please"},
            {"prompt": "q4", "answers": ["no", "please"], "meta": {"category": "medical"}},
        ],
    )
    out = tmp_path / "labelled.jsonl"
    said = label(source, "--votes", votes, "--to", str(out), "--judge", "judge-1")
    first, second = written(out)
    assert (first["chosen"], first["rejected"]) == ("please", "no")
    assert first["meta"] == {"category": "billing", "source": "ai", "labeller": "judge-1"}
    assert second["messages"] == ask("q3")
    assert "judge-1 agrees with people in 100%" in said
    assert "of 40 votes it decides, of 40" in said
    assert "1 ties, 1 of categories for people only" in said
    assert not any("q4" in question for question in router.questions), "it was not even asked"
    imported = read_pairs(out.read_bytes().splitlines())
    assert [pair.source for pair in imported] == ["ai", "ai"]


def test_no_vote_of_high_stakes_is_in_the_judge_s_exam(router: Router, tmp_path: Path) -> None:
    kinds = ["billing"] * 40 + ["medical", "legal"]
    content = [
        {
            "messages": ask(f"{kind} {n}"),
            "chosen": f"please {n}",
            "rejected": f"no {n}",
            "meta": {"category": kind},
        }
        for n, kind in enumerate(kinds)
    ]
    given = rows(tmp_path / "people.jsonl", content)
    source = rows(tmp_path / "answers.jsonl", [{"prompt": "q", "answers": ["no", "please"]}])
    out = tmp_path / "labelled.jsonl"
    said = label(
        source, "--votes", given, "--to", str(out), "--judge", "judge-1", "--with-votes",
        "--people-only", "medical, legal",
    )  # fmt: skip
    assert "of 40 votes it decides, of 40" in said
    asked = "\n".join(router.questions)
    assert "billing 1" in asked
    assert "medical" not in asked
    assert "legal" not in asked
    assert len(written(out)) == 43, "people's own votes are kept"


@pytest.mark.parametrize("wanted", ["no", "A"])
def test_a_judge_that_disagrees_or_prefers_a_side_writes_nothing(
    router: Router, votes: str, tmp_path: Path, wanted: str
) -> None:
    router.wanted = wanted
    source = rows(tmp_path / "answers.jsonl", [{"prompt": "q", "answers": ["no", "please"]}])
    out = tmp_path / "labelled.jsonl"
    with pytest.raises(CliError, match="agreement with people must have a lower bound of 60%"):
        label(source, "--votes", votes, "--to", str(out), "--judge", "judge-1")
    assert not out.exists()


def test_hybrid_has_the_votes_first_and_a_plan_for_people_who_check(
    router: Router, votes: str, tmp_path: Path
) -> None:
    answers = [{"prompt": f"q{n}", "answers": ["no", "please"]} for n in range(60)]
    out, plan = tmp_path / "hybrid.jsonl", tmp_path / "audit.yaml"
    label(
        rows(tmp_path / "answers.jsonl", answers),
        *("--votes", votes, "--to", str(out), "--judge", "j", "--with-votes"),
        *("--audit", str(plan), "--audit-share", "0.3"),
    )
    found = [row["meta"].get("source", "people") for row in written(out)]
    assert found == ["people"] * 40 + ["ai"] * 60
    assert 5 < len(load_plan(plan).prompts) < 35
    assert yaml.safe_load(plan.read_text())["prompts"][0].startswith("q")


def test_few_labelled_pairs_are_checked_by_one_prompt_at_least(
    router: Router, votes: str, tmp_path: Path
) -> None:
    source = rows(tmp_path / "answers.jsonl", [{"prompt": "q1", "answers": ["no", "please"]}])
    out, plan = tmp_path / "out.jsonl", tmp_path / "audit.yaml"
    given = [source, "--votes", votes, "--to", str(out), "--judge", "j", "--audit-share", "0.01"]
    label(*given, "--audit", str(plan))
    assert len(load_plan(plan).prompts) == 1
    with pytest.raises(CliError, match="is a folder"):
        label(*given, "--audit", str(tmp_path))


def test_a_version_s_own_answers_are_sampled_and_judged(
    router: Router, votes: str, tmp_path: Path
) -> None:
    source = rows(tmp_path / "prompts.jsonl", [{"prompt": f"q{n}"} for n in range(3)])
    out = tmp_path / "own.jsonl"
    label(
        source,
        *("--votes", votes, "--to", str(out), "--judge", "j", "--sample", "m-v1", "--answers", "4"),
    )
    assert router.written == 12
    for row in written(out):
        assert row["chosen"].startswith("please")
        assert row["meta"]["chosen_version"] == row["meta"]["rejected_version"] == "m-v1"


def test_a_judge_elsewhere_gets_its_own_key_alone(
    router: Router, votes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "the installation's")
    monkeypatch.setenv("RATCHET_JUDGE_API_KEY", "the judge's")
    source = rows(tmp_path / "answers.jsonl", [{"prompt": "q", "answers": ["no", "please"]}])
    label(
        source,
        *("--votes", votes, "--to", str(tmp_path / "out.jsonl"), "--judge", "j"),
        *("--judge-url", "https://judge.example/v1/"),
    )
    assert router.seen == {("https://judge.example/v1/chat/completions", "the judge's")}


def test_the_reward_model_labels_by_its_scores(
    votes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: Any, __: str, ___: str, ____: str, *, body: Any, **_____: Any) -> Any:
        return {"scores": [float("please" in item["completion"]) for item in body["items"]]}

    monkeypatch.setattr(scores, "ask", ask)
    source = rows(tmp_path / "answers.jsonl", [{"prompt": "q", "answers": ["no", "please"]}] * 3)
    out = tmp_path / "out.jsonl"
    label(source, "--votes", votes, "--to", str(out))
    assert {row["meta"]["labeller"] for row in written(out)} == {"reward-model"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "answers": ["one"]}, "line 1: answers: must be a list of two texts"),
        ({"answers": ["a", "b"]}, "line 1: messages: must be a list of turns"),
        ({"prompt": "q", "chosen": "a"}, "line 1: rejected: must be a text"),
    ],
)
def test_a_bad_row_is_named(
    router: Router, votes: str, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    source = rows(tmp_path / "answers.jsonl", [row])
    with pytest.raises(CliError, match=said):
        label(source, "--votes", votes, "--to", str(tmp_path / "out.jsonl"), "--judge", "j")
