"""What the measuring stages do with long texts, tools and templates, on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.aggregator.fold import FoldRules
from services.aggregator.join import fold_feedback, fold_interaction
from services.training.dataset_rows import canonical, pair_of
from shared.contracts.events.base import Message, Tool, ToolCall
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.preferences import PreferencePair
from tests.support.aggregator import feedback, interaction

ROOT = Path(__file__).resolve().parents[2]
ML_PYTHON = ROOT / ".venv-ml" / "bin" / "python"

pytestmark = pytest.mark.timeout(900)


METRIC = """
def short(messages, answer, reference):
    return float(len(answer) < 30 and messages[-1]["role"] == "user")
"""


def install_metric(folder: Path) -> None:
    """A package with a metric of its own, as an installed one looks on disk."""
    (folder / "own.dist-info").mkdir(parents=True)
    (folder / "own.py").write_text(METRIC)
    (folder / "own.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\n")
    entry = "[ratchet.metrics]\nshort = own:short\n"
    (folder / "own.dist-info" / "entry_points.txt").write_text(entry)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `training_measuring.py` prints: perplexity and judge of a tiny model."""
    script = Path(__file__).with_name("training_measuring.py")
    folder = tmp_path_factory.mktemp("measuring")
    install_metric(folder / "packages")
    (folder / "tools").mkdir()
    (folder / "tools" / "train.jsonl").write_bytes(canonical(tool_rows()))
    done = subprocess.run(
        [ML_PYTHON, script, folder],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder / 'packages'}"},
        stdout=subprocess.PIPE,
        timeout=300,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("texts", ["short", "long"])
def test_perplexity_is_the_plain_one_however_few_logits_fit(
    measured: dict[str, Any], texts: str
) -> None:
    plain = measured[f"{texts}_reference"]
    assert measured[f"{texts}_usual"] == pytest.approx(plain, rel=1e-5)
    assert measured[f"{texts}_small"] == pytest.approx(plain, rel=1e-5)
    assert measured[f"{texts}_small_most_logits"] <= measured["small_logits"]
    assert measured[f"{texts}_usual_noted"] == measured[f"{texts}_small_noted"] == 40


def test_rows_are_cut_where_training_cuts_them(measured: dict[str, Any]) -> None:
    assert measured["long_longest"] > 1000
    assert measured["judge_widest"] == measured["max_length"]
    assert measured["nothing_left"] is None
    assert measured["judge_figures"]["judge_tested"] == 66, "five differ only where they are cut"
    assert measured["verdict"]["ties"] == 5


def test_rows_that_the_template_refuses_or_that_are_too_long_are_named(
    measured: dict[str, Any],
) -> None:
    refused, long, prompt = measured["left_out"]
    assert (refused["file"], refused["line"], refused["reason"]) == ("train.jsonl", 2, "template")
    assert "a tool turn without calls" in refused["detail"]
    assert (long["file"], long["line"], long["reason"]) == ("train.jsonl", 3, "too_long")
    assert long["detail"].endswith(f"max_length is {measured['max_length']}")
    assert (prompt["file"], prompt["reason"]) == ("prompts.jsonl", "too_long")


def test_a_base_that_cannot_be_used_is_told_with_cause_and_cure(measured: dict[str, Any]) -> None:
    nowhere, empty, silent = measured["unusable_bases"]
    for said, name in ((nowhere, "nowhere"), (empty, "empty")):
        assert said.startswith("base: ")
        assert f"{name} does not load: " in said
        assert said.endswith("or a hub id that this machine reaches (HF_HOME, HF_TOKEN)")
    assert "silent has no chat template" in silent
    assert silent.endswith("put a chat_template.jinja into its folder")


def test_a_load_counts_the_tensors_of_the_base_that_are_in_place(measured: dict[str, Any]) -> None:
    tokenizer, (done, total) = measured["loaded"]
    assert tokenizer == [0, 0]
    assert done == total > 0


def test_reasoning_is_trained_on_or_dropped_by_the_recipe(measured: dict[str, Any]) -> None:
    found = measured["thinking"]
    assert found["dropped_plain"] == found["dropped_thinking"] == []
    assert found["kept_thinking"] == [[2, "reasoning"]], "only the rejected answer has it"
    assert found["kept_plain"] == [[1, "reasoning"], [2, "reasoning"]]
    assert found["read_True"] == "<|assistant|><think>chosen?</think>chosen<|end|>"
    assert found["read_False"] == "<|assistant|>chosen<|end|>"


def tool_rows() -> list[dict[str, Any]]:
    """Rows of corrected answers in conversations with a tool, from their events on."""
    call = ToolCall(id="c1", name="get_weather", arguments='{"unit":"C","city":"Rome"}')
    called = Message(role="assistant", content="", tool_calls=(call,))
    question = Message(role="user", content="Weather in Rome?")
    result = Message(role="tool", content="21 C", tool_call_id="c1")
    tools = (Tool(name="get_weather", parameters='{"type":"object"}'),)
    events = [
        interaction("t1", messages=(question,), tools=tools, completion="calls", answer=called),
        interaction(
            "t2", messages=(question, called, result), tools=tools, completion="It is warm."
        ),
    ]
    rows: list[dict[str, Any]] = []
    for number, event in enumerate(events):
        value = {"original": "", "corrected": f"In which of the {number + 2} Romes?"}
        said = feedback(f"f{number}", event.trace_id, FeedbackType.text_correction, value)
        row = fold_interaction(None, event, event.to_json(), 0, FoldRules()).row
        outputs = [output.event for output in fold_feedback(row, said, 1, FoldRules()).outputs]
        rows += [pair_of(made).row() for made in outputs if isinstance(made, PreferencePair)]
    return rows


def test_tool_turns_in_history_and_streamed_tool_call_are_trained_on_by_the_template(
    measured: dict[str, Any],
) -> None:
    tools = measured["tools"]
    call = '<call>{"name": "get_weather", "arguments": {"unit": "C", "city": "Rome"}}</call><|end|>'
    first, second = tools["read"]
    assert (tools["left_out"], tools["moved"] > 0) == ([], True)
    assert first["prompt"].startswith('<|system|>[{"type": "function", "function": {"name": "get_w')
    assert first["prompt"].endswith("<|user|>Weather in Rome?<|end|><|assistant|>")
    assert (first["chosen"], first["rejected"]) == ("In which of the 2 Romes?<|end|>", call)
    assert second["prompt"].endswith(f"<|assistant|>{call}<|tool|>21 C<|end|><|assistant|>")
    assert second["rejected"] == "It is warm.<|end|>"


def test_a_template_that_leaves_out_tool_calls_refuses_their_rows(
    measured: dict[str, Any],
) -> None:
    refused = measured["tools"]["refused"]
    assert [(row["line"], row["reason"]) for row in refused] == [(1, "template"), (2, "template")]
    assert refused[0]["detail"] == "the chat template does not write the call of get_weather"


def test_an_answer_that_was_cut_teaches_nothing_of_where_to_end(measured: dict[str, Any]) -> None:
    assert measured["trained_on"] == [
        ["blue door<|end|>", "a ship<|end|>"],
        ["blue door", "a ship<|end|>"],
        ["blue door<|end|>", "a ship"],
    ]


def test_a_judge_s_scores_are_the_plain_ones_and_their_progress_is_told(
    measured: dict[str, Any],
) -> None:
    assert measured["judge_scores"] == pytest.approx(measured["judge_scores_reference"], abs=1e-5)
    done = [done for done, _ in measured["judge_progress"]]
    assert done == sorted(done)
    assert {total for _, total in measured["judge_progress"]} == {done[-1]}
    assert len(done) > 2 + 132 // 32, "training has two steps, and each batch scored is a line"


def test_rows_are_told_of_while_they_are_made_into_tokens(measured: dict[str, Any]) -> None:
    passes = measured["judge_prepared"]
    assert passes["reading votes"] == [71, 71]
    assert passes["Tokenizing train dataset"] == [16, 16]
    assert passes["Generating train split"][0] == 16


def test_quality_is_that_of_the_references_the_lexicon_and_the_installed_metric(
    measured: dict[str, Any],
) -> None:
    found = measured["quality"]
    for name in ("bleu", "rouge_1", "rouge_l", "sentiment"):
        assert (found[f"parent_{name}"], found[f"candidate_{name}"]) == (
            pytest.approx(1.0),
            pytest.approx(0.0, abs=0.02),
        ), name
    assert (found["parent_short"], found["candidate_short"]) == (0.0, 1.0)
    assert found["metrics_failed"] == 0.0


def test_both_arms_are_asked_the_questions_that_the_context_holds(measured: dict[str, Any]) -> None:
    found = measured["quality"]
    assert found["asked"] > 50
    assert found["questions_skipped"] >= 0
    assert found["safety_lost"] == found["safety_won"] == 0.0, "an untrained LoRA changes nothing"


def test_a_judge_learns_from_thumbs_alone(measured: dict[str, Any]) -> None:
    found = measured["thumbs"]
    assert found["left_out"] == []
    assert (found["judge_pairs"], found["judge_tested"]) == (32, 16)
    assert found["judge_agreed"] >= 14


def test_a_judge_that_agrees_with_fewer_votes_than_its_predecessor_does_not_judge(
    measured: dict[str, Any],
) -> None:
    found = measured["beside_a_predecessor"]
    assert (found["right"]["judge"], "judge_compared" in found["right"]) == ("right", False)
    wrong, again = found["wrong"], found["again"]
    for one in (wrong, again):
        assert (one["judge_tested"], one["judge_compared"]) == (25, 20), "five prompts are known"
    assert wrong["judge_compared_agreed"] < wrong["judge_predecessor_agreed"]
    assert wrong["judge"] == "right"
    assert again["judge_compared_agreed"] > again["judge_predecessor_agreed"]
    assert again["judge"] == "again"


def test_the_win_rate_over_the_chain_s_first_version_is_measured_beside_the_parent_s(
    measured: dict[str, Any],
) -> None:
    """The candidate is the first version again, so all its answers are equal to that one's."""
    known, parent, gone = (measured["over_the_first"][name] for name in ("known", "parent", "gone"))
    assert (known["first_wins"], known["first_ties"], known["first_losses"]) == (0, 12, 0)
    assert known["wins"] + known["losses"] > 0
    assert "first_score" in known["arms"]
    outcomes = ("wins", "ties", "losses", "reward_gain")
    assert [parent[f"first_{name}"] for name in outcomes] == [known[name] for name in outcomes]
    assert "first" not in parent["arms"], "nothing is asked of it twice"
    assert not [name for name in gone if name.startswith("first_")]
    assert [gone[name] for name in outcomes] == [known[name] for name in outcomes]
    steps = [found["steps"] for found in (known, parent, gone)]
    assert all(done == total for done, total in steps)


def test_a_diverged_judge_says_nothing(measured: dict[str, Any]) -> None:
    assert set(measured["diverged"].values()) == {"nan"}
