"""`python training_generation.py <folder>` in the ML environment: answers by vLLM, on a tiny model.

Prints what transformers and the engine answer to the same prompts, what the engine says to adapters
that it cannot serve, and what two steps of each method with samples of its own moved.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from training_tiny_model import in_turns
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from services.training.evaluation import EvaluationSettings
from services.training.generation import GenerationSettings
from services.training.trainers import (
    arguments,
    evaluate,
    generation,
    grpo,
    job,
    memory,
    online_dpo,
    ppo,
    quality,
    rloo,
    run,
)
from services.training.trainers.models import (
    end_tokens,
    generation_config,
    load_adapter,
    load_base,
    load_tokenizer,
    prompt_ids,
    sampled,
)
from shared.contracts.recipes import RewardHyperparameters

WORDS = ("ab", "a cat", "hello there", "why is it so", "q", "please help me today", "no", "yes")
PROMPTS = 24
TOKENS = 24
SETTINGS = GenerationSettings(engine="vllm", start_s=300)
METHODS = {"grpo": grpo, "rloo": rloo, "ppo": ppo, "online_dpo": online_dpo}
STEP = {
    "generation": "vllm",
    "epochs": 1,
    "batch_size": 8,
    "generations": 4,
    "max_new_tokens": 8,
    "learning_rate": 5e-3,
    "max_length": 64,
}


def main(folder: Path, part: str) -> None:
    """Make the model and its adapters, then do one part."""
    torch.set_num_threads(1)
    make_base(folder / "base")
    for seed, name in enumerate(("one", "two"), start=1):
        make_adapter(folder, name, seed)
    parts = {"models": lambda _: {}, "written": written, "trained": trained, "evaluated": evaluated}
    print(json.dumps(parts[part](folder)))


def make_base(folder: Path) -> None:
    """A random Qwen2 whose heads are 48 wide: vLLM's CPU attention ends at narrower ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from training_tiny_model import SPECIAL

    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = in_turns(Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [])))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        dtype="float32",
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    GenerationConfig(eos_token_id=1, pad_token_id=0, repetition_penalty=1.1).save_pretrained(folder)


def make_adapter(folder: Path, name: str, seed: int, **own: Any) -> None:
    """A random LoRA that changes every answer."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(load_base(str(folder / "base")), LoraConfig(**settings | own))
    torch.manual_seed(seed)
    for key, weights in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weights, std=0.1)
    model.save_pretrained(str(folder / name))


def asked_of(folder: Path, method: Any = "dpo", **hyperparameters: Any) -> job.TrainerJob:
    """A job on the tiny base, whose answers vLLM writes."""
    return job.TrainerJob(
        stages=(),
        base=str(folder / "base"),
        parent_adapter=str(folder / "one"),
        data=str(folder / "data"),
        judge=str(folder / "judge"),
        method=method,
        hyperparameters=hyperparameters,
        reward=RewardHyperparameters(epochs=1, max_length=64),
        evaluation=EvaluationSettings(temperature=0.0, max_new_tokens=TOKENS),
        generation=SETTINGS,
        seed=3,
        threads=1,
    )


def prompts() -> list[list[dict[str, str]]]:
    """Prompts of several lengths."""
    return [
        [{"role": "user", "content": f"{WORDS[number % len(WORDS)]} {number}"}]
        for number in range(PROMPTS)
    ]


def written(folder: Path) -> dict[str, Any]:
    """Answers by both, and what the engine says to an adapter that is too wide for it."""
    asked = asked_of(folder)
    tokenizer = load_tokenizer(asked.base)
    encoded = [prompt_ids(tokenizer, turns) for turns in prompts()]
    arms = {"base": "", "one": str(folder / "one"), "two": str(folder / "two")}
    configured = generation_config(asked.base)
    ends = end_tokens(configured, tokenizer)
    penalty = configured.repetition_penalty
    plan = generation.EnginePlan(asked.base, "float32", 8, 2, 96, gpu=False)
    make_adapter(folder, "wide", 4, r=16)
    found: dict[str, Any] = {"ours": {arm: alone(asked, encoded, arms[arm]) for arm in arms}}
    with generation.started(plan, SETTINGS, folder) as engine:
        greedy: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 0.0, "ends": ends}
        found["theirs"] = {
            arm: engine.write(
                encoded, adapter=arms[arm], seed="", repetition_penalty=penalty, **greedy
            ).ids
            for arm in arms
        }
        chance: dict[str, Any] = greedy | {"adapter": arms["one"], "temperature": 1.0}
        wide: dict[str, Any] = {**chance, "adapter": str(folder / "wide")}
        drawn = engine.write(encoded, seed="a", **chance)
        found["drawn"] = [
            said.ids for said in (drawn, *(engine.write(encoded, seed=s, **chance) for s in "ab"))
        ]
        found["apart"] = logprobs_apart(folder, encoded, drawn)
        try:
            engine.write(encoded[:1], seed="a", **wide)
        except job.CannotTrain as error:
            found["refused"] = str(error)
    found["packages"] = generation.used(folder)
    return found


def alone(asked: job.TrainerJob, encoded: Sequence[Sequence[int]], adapter: str) -> list[list[int]]:
    """What this process answers to each prompt without others beside it: padding changes answers."""
    tokenizer = load_tokenizer(asked.base)
    model = load_base(asked.base)
    if adapter:
        model = load_adapter(model, adapter, trainable=False).merge_and_unload()
    settings = {"max_new_tokens": TOKENS, "temperature": 0.0}
    return [
        sampled(model.eval(), tokenizer, [prompt], **settings)[0][0, len(prompt) :].tolist()
        for prompt in encoded
    ]


def logprobs_apart(
    folder: Path, encoded: Sequence[Sequence[int]], said: generation.WrittenAnswers
) -> float:
    """How far the engine's log-probabilities of its tokens are from this process's, at most."""
    model = load_base(str(folder / "base"))
    model = load_adapter(model, folder / "one", trainable=False).merge_and_unload().eval()
    apart = 0.0
    for prompt, answer, theirs in zip(encoded, said.ids, said.logprobs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        scores = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        ours = scores.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        apart = max(apart, float((ours - torch.tensor(theirs)).abs().max()))
    return apart


def trained(folder: Path) -> dict[str, Any]:
    """Two steps of each method on answers that vLLM wrote, and one method that was killed."""
    (folder / "data").mkdir()
    pairs = [
        {"messages": turns, "chosen": "oooo oooo", "rejected": "xyxy zyzy"} for turns in prompts()
    ]
    job.write_rows(folder / "data/train.jsonl", pairs)
    found: dict[str, Any] = {}
    for method, module in METHODS.items():
        attempt = folder / method
        attempt.mkdir()
        asked = asked_of(folder, method, **STEP)
        run.do("proxy", asked, attempt)
        figures = module.run(asked, attempt, job.Progress(attempt))
        memory.release()
        found[method] = {
            "figures": figures,
            "moved": moved(folder / "one", attempt / "adapter"),
            "files": sorted(path.name for path in attempt.iterdir()),
            "apart": policy_apart(attempt),
        }
    return found


def evaluated(folder: Path) -> dict[str, Any]:
    """An evaluation and its questions at temperature 0, by either: answers and figures."""
    rows = [{"messages": turns, "chosen": "yes it is"} for turns in prompts()[:8]]
    found: dict[str, Any] = {}
    for engine in ("transformers", "vllm"):
        attempt = folder / engine
        (attempt / "data").mkdir(parents=True)
        for name in ("heldout", "prompts"):
            job.write_rows(attempt / f"data/{name}.jsonl", rows)
        shutil.copytree(folder / "two", attempt / "adapter")
        # Without padding: transformers' answers change with it.
        alone = {"question_tokens": 4, "batch_size": 1}
        asked = asked_of(folder)
        asked = asked.model_copy(
            update={
                "data": str(attempt / "data"),
                "generation": GenerationSettings.model_validate({"engine": engine}),
                "evaluation": asked.evaluation.model_copy(update=alone),
            }
        )
        figures = evaluate.run(asked, attempt, job.Progress(attempt))
        figures |= quality.run(asked, attempt, job.Progress(attempt))
        found[engine] = {
            "figures": figures,
            "answers": job.read_rows(attempt / "answers.jsonl"),
            "questions": job.read_rows(attempt / "questions.jsonl"),
        }
    return found


def policy_apart(attempt: Path) -> list[float]:
    """By step, how far GRPO finds the engine's log-probabilities from the policy's, at most, in nats."""
    last = arguments.last_checkpoint(attempt / "checkpoints")
    logged = json.loads((Path(str(last)) / "trainer_state.json").read_bytes())["log_history"]
    name = "sampling/sampling_logp_difference/max"
    return [line[name] for line in logged if name in line]


def moved(parent: Path, child: Path) -> float:
    """How far the furthest weight of the adapter is from the parent's."""
    from safetensors.torch import load_file

    before, after = (load_file(place / "adapter_model.safetensors") for place in (parent, child))
    return max(float((before[name] - after[name]).abs().max()) for name in before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
