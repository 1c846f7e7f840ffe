"""Who writes a training's answers, and an engine that is late, refuses or dies: told, never a hang."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from services.training.generation import GenerationSettings
from services.training.settings import TrainingSettings
from services.training.trainers.generation import (
    CHUNK,
    EnginePlan,
    by_vllm,
    rank_of,
    started,
    used,
)
from services.training.trainers.job import CannotTrain
from services.training.trainers.present_policy import PresentPolicy
from shared.contracts.recipes import BadRecipe, read_recipe

PLAN = EnginePlan(base="base", dtype="float32", rank=12, adapters=2, max_length=64, gpu=False)
ECHO = """
import json, sys
print(json.dumps({"vllm": "0"}), flush=True)
json.loads(sys.stdin.readline())
for line in sys.stdin:
    asked = json.loads(line)
    ids = [[asked.get("number"), *prompt] for prompt in asked.get("prompts", ())]
    print(json.dumps({"ids": ids, "logprobs": [[0.0] for _ in ids], "asked": asked}), flush=True)
"""
"""Answers each prompt with the adapter's number and the prompt."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    found = SimpleNamespace()
    return lambda there: monkeypatch.setattr(
        importlib.util, "find_spec", lambda _: found if there else None
    )


def child(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_auto_is_vllm_where_a_gpu_and_vllm_are_and_never_in_four_bits(
    installed: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(True)
    assert by_vllm("auto", gpu=True)
    assert not by_vllm("auto", gpu=False)
    assert not by_vllm("auto", gpu=True, four_bit=True)
    assert not by_vllm("transformers", gpu=True)
    assert by_vllm("vllm", gpu=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not by_vllm("auto", gpu=True)
    with pytest.raises(CannotTrain, match=r"generation: .*\(FSDP\); train by DDP, or set gener"):
        by_vllm("vllm", gpu=True)
    installed(False)
    assert not by_vllm("auto", gpu=True)


def test_vllm_that_is_not_installed_is_told_with_the_remedy() -> None:
    """The services' environment has none."""
    with pytest.raises(CannotTrain, match=r"not installed .*requirements/ml-cuda\.txt"):
        by_vllm("vllm", gpu=False)


def test_the_services_setting_holds_where_a_recipe_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert TrainingSettings().hyperparameters("grpo")["generation"] == "transformers"
    monkeypatch.setenv("RATCHET_TRAINING_GENERATION", '{"engine": "auto", "start_s": 60}')
    assert TrainingSettings().hyperparameters("ppo")["generation"] == "auto"
    assert "generation" not in TrainingSettings().hyperparameters("dpo")
    monkeypatch.setenv("RATCHET_TRAINING_ONLINE_DPO", '{"generation": "vllm"}')
    assert TrainingSettings().hyperparameters("online_dpo")["generation"] == "vllm"
    monkeypatch.setenv("RATCHET_TRAINING_GENERATION", '{"gpu_memory_share": 1.5}')
    with pytest.raises(ValidationError, match="gpu_memory_share"):
        TrainingSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: grpo\nhyperparameters: {generation: gpu}", "generation: Input should be"),
        ("method: dpo\nhyperparameters: {generation: vllm}", "generation: unknown name"),
        ("method: ppo\nhyperparameters: {generation: vllm, four_bit: true}", "not in four bits"),
    ],
)
def test_a_recipe_that_vllm_cannot_follow_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        read_recipe(text)


def test_an_engine_is_told_its_limits_and_its_share_of_a_gpu() -> None:
    settings = GenerationSettings(gpu_memory_share=0.4, kv_cache_gib=3)
    asked = PLAN.request(settings)
    assert (asked["max_lora_rank"], asked["max_loras"], asked["max_model_len"]) == (16, 3, 64)
    assert "gpu_memory_utilization" not in asked
    assert PLAN.environment(settings)["VLLM_CPU_KVCACHE_SPACE"] == "3"
    gpu = EnginePlan(base="base", dtype="bfloat16", rank=8, adapters=1, max_length=64, gpu=True)
    assert gpu.request(settings)["gpu_memory_utilization"] == 0.4
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu.environment(settings)


def test_many_prompts_are_asked_in_chunks_and_no_adapter_has_anothers_number(
    tmp_path: Path,
) -> None:
    noted: list[int] = []
    prompts = [[number] for number in range(CHUNK + 2)]
    with started(PLAN, GenerationSettings(), tmp_path, command=child(ECHO)) as engine:

        def numbers(adapter: str) -> set[int]:
            said = engine.write(
                prompts,
                adapter=adapter,
                seed="1",
                max_new_tokens=4,
                temperature=0,
                ends=(1,),
                note=noted.append,
            )
            assert [answer[1] for answer in said.ids] == list(range(CHUNK + 2))
            return {answer[0] for answer in said.ids}

        assert [numbers(one) for one in ("", "a", "b", "a")] == [{0}, {1}, {2}, {1}]
        engine.forget("a")
        assert numbers("a") == {3}
    assert noted[:2] == [CHUNK, 2]
    assert used(tmp_path) == {"vllm": "0"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "import sys; print('no such kernel', file=sys.stderr); sys.exit(3)",
            r"ended with status 3; give it less memory .* the end of its log: no such kernel",
        ),
        (
            """print('{"error": "ValueError: LoRA rank 64"}', flush=True); input()""",
            r"generation: vllm refuses: ValueError: LoRA rank 64; mend that, or set generation",
        ),
        ("import time; time.sleep(60)", r"did not start within 0\.2 s; raise start_s"),
    ],
    ids=["dies", "refuses", "hangs"],
)
def test_an_engine_that_does_not_come_up_ends_the_job_with_cause_and_remedy(
    tmp_path: Path, script: str, said: str
) -> None:
    waited: list[None] = []
    began = time.monotonic()
    settings = GenerationSettings(start_s=0.2)
    with (
        pytest.raises(CannotTrain, match=said),
        started(PLAN, settings, tmp_path, lambda: waited.append(None), child(script)),
    ):
        pytest.fail("it is not up")
    assert time.monotonic() - began < 30
    assert used(tmp_path) == {}


def test_an_engine_that_dies_while_it_writes_is_told_of_at_the_next_answer(tmp_path: Path) -> None:
    script = (
        """print('{"vllm": "0"}', flush=True); input(); input(); print("killed", file=sys.stderr)"""
    )
    with (
        started(
            PLAN, GenerationSettings(), tmp_path, command=child(f"import sys; {script}")
        ) as one,
        pytest.raises(CannotTrain, match=r"ended with status 0.* killed"),
    ):
        one.write([[1]], adapter="", seed="1", max_new_tokens=1, temperature=0, ends=())


def test_the_engine_has_the_adapter_of_each_step_and_draws_anew_at_each_call(
    tmp_path: Path,
) -> None:
    class Model:
        saved: list[str] = []  # noqa: RUF012

        def save_pretrained(self, folder: str, *, selected_adapters: list[str]) -> None:
            assert selected_adapters == ["default"]
            Path(folder).mkdir(parents=True)
            self.saved.append(Path(folder).name)

    asked: list[dict[str, object]] = []
    step = 0
    with started(PLAN, GenerationSettings(), tmp_path, command=child(ECHO)) as engine:
        policy = PresentPolicy(
            engine,
            Model(),
            tmp_path,
            step=lambda: step,
            seed=7,
            sampling={"max_new_tokens": 4, "temperature": 1, "ends": (1,)},
        )
        ask = engine.ask
        engine.ask = lambda request, **named: asked.append(dict(request)) or ask(request, **named)  # type: ignore[method-assign]
        policy.sync_weights()
        for _ in range(2):
            prompts, ids, logprobs, _ = policy.generate([[5], [6]], None, 2, profiler=None)
            assert (prompts, ids, logprobs) == ([[5], [6]], [[1, 5], [1, 6]], [[[0.0]], [[0.0]]])
        step = 1
        policy.write([[5]], "7")
        assert policy.generate([[5]])[1] == [[2, 5]]
    assert Model.saved == ["0", "1"], "once a step"
    assert [one.name for one in (tmp_path / "policy-0").iterdir()] == ["1"]
    assert [one.get("seed") for one in asked] == [
        "7/0/0/1/0",
        "7/0/0/2/0",
        None,
        "7/0",
        "7/0/1/1/0",
    ]


def test_the_rank_of_an_adapter_is_its_largest(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "rank_pattern": {"q_proj": 32}}')
    assert rank_of(str(tmp_path)) == 32
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "rank_pattern": null}')
    assert rank_of(str(tmp_path)) == 4
