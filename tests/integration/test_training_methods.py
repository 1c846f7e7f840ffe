"""Every training method on the tiny model: it raises what it is to raise, and trains LoRA alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.recipes import ONLINE

ROOT = Path(__file__).resolve().parents[2]
CAPABILITY = ROOT / "services/training/capability.jsonl"
OVER_BASE = ("dpo_base", "kto_base")
"""Of a model whose stable version has no adapter."""
METHODS = ("sft", "sigmoid", "robust", "ipo", "hinge", "kto", *OVER_BASE, "grpo_base", *ONLINE)
HEADS = {"ppo": "value_head.weight", "heads": "score.modules_to_save.default.weight"}
"""What is trained beside the adapter, by method; `heads` is a reward model."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `training_methods.py` prints, by method; one process trains them all."""
    script = Path(__file__).with_name("training_methods.py")
    hub = {"HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [ROOT / ".venv-ml/bin/python", script, tmp_path_factory.mktemp("methods")],
        check=True,
        cwd=ROOT,
        env={**os.environ, **hub, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=840,
    )
    return json.loads(done.stdout)


def test_a_job_is_trained_on_the_base_at_the_revision_asked_for(methods: dict[str, Any]) -> None:
    assert methods["revision"] == ["base", "b" * 40, "a" * 40]


@pytest.mark.parametrize("name", ["sigmoid", "robust", "ipo", "hinge", "kto", *OVER_BASE])
def test_good_answers_become_likelier_than_bad_ones(methods: dict[str, Any], name: str) -> None:
    found = methods[name]
    assert found["after"] > found["before"] + 1.0, "nats of the mean margin"
    assert found["figures"]["margins"] > 0


def test_demonstrated_answers_become_likelier(methods: dict[str, Any]) -> None:
    assert methods["sft"]["after"] > methods["sft"]["before"] + 1.0, "nats of the mean margin"
    assert methods["sft"]["figures"]["loss"] > 0


@pytest.mark.parametrize("name", ["grpo_base", *ONLINE])
def test_sampled_answers_score_higher_by_the_reward_model(
    methods: dict[str, Any], name: str
) -> None:
    found = methods[name]
    assert found["proxy"]["agreed"] == found["proxy"]["tested"], "the reward model learnt its pairs"
    assert found["after"] > found["before"] + 0.1
    assert found["figures"]["kl"] > 0
    assert found["kl_answer"] <= 10, "nats of a whole answer from the parent"


def test_without_a_parent_the_base_is_parent_and_first_of_the_chain(
    methods: dict[str, Any],
) -> None:
    drift = methods["drift_base"]
    assert drift["kl"] > 0
    assert (drift["kl_first"], drift["kl_first_answer"]) == (drift["kl"], drift["kl_answer"])


def test_a_policy_that_games_its_reward_model_is_stopped_and_its_best_checkpoint_kept(
    methods: dict[str, Any],
) -> None:
    found = methods["monitor"]["gamed"]
    figures, steps, judge = found["figures"], found["steps"], found["judge"]
    assert figures["monitor_stopped"] == 1
    assert steps[-1] < 30, "six epochs of five steps"
    best = steps[1 + judge[1:].index(max(judge[1:]))]
    assert figures["monitor_step"] == best < steps[-1]
    assert figures["monitor_judge_gain"] < 0 < figures["monitor_proxy_gain"]
    assert found["moved"] > 0


def test_a_stopped_training_that_is_killed_before_its_result_ends_the_same(
    methods: dict[str, Any],
) -> None:
    found = methods["monitor"]["gamed"]
    before = {name: found["figures"][name] for name in found["again"]}
    assert found["again"] == pytest.approx(before)
    assert found["apart"] == 0


def test_a_policy_that_the_judge_likes_too_is_trained_to_its_end(methods: dict[str, Any]) -> None:
    figures = methods["monitor"]["honest"]["figures"]
    assert figures["monitor_stopped"] == 0
    assert figures["monitor_step"] == methods["monitor"]["honest"]["steps"][-1] == 15
    assert figures["monitor_judge_gain"] > 0


def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_steps(
    methods: dict[str, Any],
) -> None:
    short, smaller = methods["memory"]["short"], methods["memory"]["smaller"]
    assert short["batch_halved"] == 1
    assert short["steps"] == smaller["steps"] == [9, 9]
    assert methods["memory"]["apart"] < 1e-4, "the same weights as with the smaller batch"


def test_ppo_that_was_killed_ends_with_the_same_weights(methods: dict[str, Any]) -> None:
    assert methods["resumed"] < 1e-6


def test_gradient_checkpointing_changes_no_weight(methods: dict[str, Any]) -> None:
    assert methods["checkpointed"]["after"] == pytest.approx(methods["sigmoid"]["after"], rel=1e-5)


def test_packing_reads_the_same_rows_in_fewer_steps(methods: dict[str, Any]) -> None:
    alone, packed = methods["packed"]["alone"], methods["packed"]["packed"]
    assert alone["steps"] == [24, 24]
    assert packed["steps"][0] == packed["steps"][1] < 12
    assert 0 < packed["loss"] < 10


def test_four_bits_without_bitsandbytes_are_told_with_the_remedy(methods: dict[str, Any]) -> None:
    if methods["four_bit"] != "installed":
        assert methods["four_bit"].startswith("four_bit: bitsandbytes is not installed")


def test_two_processes_reach_the_loss_of_one(methods: dict[str, Any]) -> None:
    one, two = methods["processes"]["run"], methods["processes"]["launch"]
    assert two["steps"] == one["steps"] == [9, 9]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["margins"] == pytest.approx(one["margins"], rel=1e-3)


def test_advantages_are_those_of_the_formula(methods: dict[str, Any]) -> None:
    surprises = [0.1 + 0.5 - 0.3, 0.2 + 0.7 - 0.5, 1.0 - 0.7]
    for lam in (0.0, 0.5, 1.0):
        wanted = [
            sum(surprises[later] * lam ** (later - place) for later in range(place, 3))
            for place in range(3)
        ]
        assert methods["advantages"][str(lam)] == pytest.approx([*wanted, 0.0, 0.0])


def test_several_heads_agree_with_the_pairs_and_say_how_unsure_they_are(
    methods: dict[str, Any],
) -> None:
    found = methods["heads"]
    assert found["figures"]["agreed"] == found["figures"]["tested"]
    assert found["heads"] == 3
    assert found["shares"]
    assert [prefix > 0 for prefix in found["shared"]] == [True], "one conversation, read once"
    assert found["apart"] < 1e-4, "evaluation and scorer read the same score"
    assert found["least_uncertainty"] > 0
    assert found["figures"]["disagreement_right"] > 0
    assert "disagreement_wrong" not in found["figures"]


def test_a_batch_is_scored_in_a_tenth_of_the_passes_of_its_answers_alone(
    methods: dict[str, Any],
) -> None:
    passes = methods["heads"]["passes"]
    assert passes["single"] == 24, "one for each answer"
    assert passes["batch"] * 10 <= passes["single"]


def test_the_profiles_of_several_gpus_are_read_by_accelerate_itself(
    methods: dict[str, Any],
) -> None:
    profiles = methods["profiles"]
    kinds = {name: profile["distributed_type"] for name, profile in profiles.items()}
    assert kinds == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert profiles["fsdp"]["fsdp_config"]["fsdp_sharding_strategy"] == "FULL_SHARD"


def test_prompts_that_fill_no_step_are_told_before_training(methods: dict[str, Any]) -> None:
    one, two = methods["few_prompts"]
    assert one.startswith("train: 3 prompts are fewer than the 4 of one step")
    assert two.startswith("train: 6 prompts are fewer than the 8 of one step")


@pytest.mark.parametrize("name", METHODS)
def test_every_lora_weight_moved_and_no_other(methods: dict[str, Any], name: str) -> None:
    assert methods[name]["still"] == []
    assert methods[name]["moved"] == []
    assert "ref" not in methods[name]["files"]
    assert "adapter_model.safetensors" in methods[name]["files"]


@pytest.mark.parametrize("name", [*METHODS, "heads"])
def test_all_that_is_to_be_trained_moves_heads_too_and_nothing_else(
    methods: dict[str, Any], name: str
) -> None:
    found = methods[name]
    assert (found["missed"], found["hit"]) == ([], [])
    head = HEADS.get(name, "lora_B.default.weight")
    assert any(one.endswith(head) for one in found["meant"])


def test_drift_is_zero_for_the_parent_itself_and_not_for_its_child(
    methods: dict[str, Any],
) -> None:
    still, moved = methods["drift"]["unmoved"], methods["drift"]["sigmoid"]
    assert still["kl"] == pytest.approx(0, abs=1e-6)
    assert (still["cases_lost"], still["capability_lost"], still["capability_won"]) == (0, 0, 0)
    assert moved["kl"] > 1e-3
    assert moved["kl_answer"] > moved["kl"]
    assert moved["kl_first"] == pytest.approx(0, abs=1e-6), "it is its own chain's first here"
    assert still["kl_first"] > 1e-3, "the parent is that far from the first"
    tasks = len(CAPABILITY.read_text(encoding="utf-8").splitlines())
    assert (moved["capability_items"], moved["cases_items"]) == (tasks, 24)
    assert moved["cases_candidate"] >= moved["cases_parent"]


def test_a_loss_that_is_no_number_ends_the_training(methods: dict[str, Any]) -> None:
    assert methods["diverged"].startswith("dpo: the loss is nan at step 1: training diverged")


def test_an_answer_that_was_cut_has_no_end_to_learn(methods: dict[str, Any]) -> None:
    assert methods["kto_ends"] == {"cut": [False], "whole": [True]}
