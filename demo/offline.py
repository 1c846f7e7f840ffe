"""The learning proof without the stack: users' votes, a new version, and whether users like it.

Runs in the ML environment: `python -m demo.offline --seed 3`. It trains v1.0 by SFT, samples two
answers a prompt, lets simulated users vote, trains v1.1 on the votes by DPO, a reward model on
other raters' votes, and a candidate on inverted votes; then fresh prompts decide. Prints one table
line a seed and a JSON line; exits 1 where v1.1's win rate misses 65 % (lower bound 55 %).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demo import corpus, tastes
from demo.settings import DPO, REPLY_TOKENS, REWARD, SFT, TEMPERATURE
from demo.starter import CACHE, Starter, StarterConfig, prepare

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": "all-linear",
    "lora_dropout": 0.0,
}


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one proof; the defaults are what the demo's training jobs use."""

    sft_rows: int = 1200
    sft_epochs: float = SFT["epochs"]
    sft_rate: float = SFT["learning_rate"]
    pairs: int = 400
    dpo_epochs: float = DPO["epochs"]
    dpo_rate: float = DPO["learning_rate"]
    beta: float = DPO["beta"]
    sft_weight: float = DPO["loss_weights"][1]
    batch: int = DPO["batch_size"]
    reward_pairs: int = 300
    reward_epochs: float = REWARD["epochs"]
    reward_rate: float = REWARD["learning_rate"]
    prompts: int = 450


@dataclass
class Proof:
    """What one seed showed."""

    seed: int
    weights: tuple[float, ...]
    recipe: Recipe
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """The figures the demo promises."""
        low, _ = self.figures["win_rate_interval"]
        return self.figures["win_rate"] >= 0.65 and low >= 0.55


class Sampler:
    """Generates answers with a base model and, where given, an adapter, in batches."""

    def __init__(self, base: str, adapter: Path | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter))
        self.model.eval()

    def answers(self, prompts: list[str], seed: int, batch: int = 64) -> list[str]:
        """One sampled answer a prompt, cut at `REPLY_TOKENS` as the demo's clients do."""
        self._torch.manual_seed(seed)
        said: list[str] = []
        for start in range(0, len(prompts), batch):
            turns = [[{"role": "user", "content": text}] for text in prompts[start : start + batch]]
            encoded = self.tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            )
            with self._torch.no_grad():
                tokens = self.model.generate(
                    **encoded, max_new_tokens=REPLY_TOKENS, do_sample=True, temperature=TEMPERATURE
                )
            fresh = tokens[:, encoded["input_ids"].shape[1] :]
            said += self.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return [text.strip() for text in said]


def vote_pairs(
    prompts: list[str], left: list[str], right: list[str], crowd: tastes.Population, seed: int
) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) for every pair a user decided; ties and both-bad make none."""
    rng = random.Random(seed)
    pairs: list[tuple[str, str, str]] = []
    for prompt, a, b in zip(prompts, left, right, strict=True):
        verdict = rng.choice(crowd.people).compare(prompt, a, b, rng)
        if verdict in ("left", "right"):
            pairs.append((prompt, a, b) if verdict == "left" else (prompt, b, a))
    return pairs


def train_sft(starter: Starter, recipe: Recipe, folder: Path) -> None:
    """v1.0: the shop's demonstrations on top of the base, as a LoRA adapter."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    with starter.demonstrations.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: recipe.sft_rows]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(starter.model),
        args=SFTConfig(**_common(folder, recipe.sft_epochs, recipe.sft_rate, 16), max_length=192),
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
        ),
        processing_class=AutoTokenizer.from_pretrained(starter.model),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(folder))


def train_dpo(
    base: str, parent: Path, pairs: list[tuple[str, str, str]], recipe: Recipe, folder: Path
) -> None:
    """A candidate: DPO (Rafailov et al. 2023, eq. 7) with an SFT term, continuing the parent."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(parent), is_trainable=True
    )
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **_common(folder, recipe.dpo_epochs, recipe.dpo_rate, recipe.batch),
            max_length=192,
            beta=recipe.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, recipe.sft_weight],
        ),
        train_dataset=Dataset.from_list([_pair_row(pair) for pair in pairs]),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    trainer.model.save_pretrained(str(folder), selected_adapters=["default"])


def train_reward(
    base: str, pairs: list[tuple[str, str, str]], recipe: Recipe, folder: Path
) -> tuple[Any, float]:
    """A Bradley-Terry reward model on a sequence-classification head, and held-out accuracy."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    held = max(1, len(pairs) // 5)
    rows = [_pair_row(pair) for pair in pairs]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **_common(folder, recipe.reward_epochs, recipe.reward_rate, 16),
            max_length=192,
            eval_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows[held:]),
        eval_dataset=Dataset.from_list(rows[:held]),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA, task_type="SEQ_CLS", modules_to_save=["score"]),
    )
    trainer.train()
    return trainer, float(trainer.evaluate()["eval_accuracy"])


def judge_win_rate(trainer: Any, prompts: list[str], new: list[str], old: list[str]) -> float:
    """Share of prompts where the reward model scores the new answer above the old one."""
    import torch

    tokenizer, model = trainer.processing_class, trainer.model
    model.eval()

    def scores(answers: list[str]) -> list[float]:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
                tokenize=False,
            )
            for q, a in zip(prompts, answers, strict=True)
        ]
        values: list[float] = []
        for start in range(0, len(texts), 64):
            encoded = tokenizer(
                texts[start : start + 64], padding=True, padding_side="right", return_tensors="pt"
            )
            with torch.no_grad():
                values += model(**encoded).logits[:, 0].tolist()
        return values

    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in zip(scores(new), scores(old), strict=True)
    ]
    return sum(wins) / len(wins)


def users_figures(
    prompts: list[str], new: list[str], old: list[str], crowd: tastes.Population, seed: int
) -> dict[str, Any]:
    """Win rate of the new answers among users with its 95 % interval, and both satisfactions."""
    rng = random.Random(seed)
    wins = liked_new = liked_old = 0
    for prompt, a, b in zip(prompts, new, old, strict=True):
        wins += rng.choice(crowd.people).prefers(prompt, a, b, rng)
        liked_new += rng.choice(crowd.people).likes(prompt, a, rng)
        liked_old += rng.choice(crowd.people).likes(prompt, b, rng)
    count = len(prompts)
    return {
        "win_rate": wins / count,
        "win_rate_interval": tastes.wilson(wins, count),
        "satisfaction_new": liked_new / count,
        "satisfaction_old": liked_old / count,
    }


def prove(seed: int, recipe: Recipe, starter: Starter, v1: Path, work: Path) -> Proof:
    """Runs the whole circle for one seed and returns its figures."""
    crowd = tastes.population(seed)
    proof = Proof(seed, crowd.crowd.weights, recipe)
    sampler = Sampler(starter.model, v1)

    def collect(split: str, count: int, salt: int) -> list[tuple[str, str, str]]:
        pool = [prompt.text for prompt in corpus.prompts_of(split)]
        chosen = random.Random(seed + salt).choices(pool, k=2 * count)
        left = sampler.answers(chosen, seed + salt)
        right = sampler.answers(chosen, seed + salt + 1)
        return vote_pairs(chosen, left, right, crowd, seed + salt)[:count]

    pairs = collect("serve", recipe.pairs, 100)
    figures: dict[str, Any] = {"pairs": len(pairs)}
    started = time.monotonic()
    train_dpo(starter.model, v1, pairs, recipe, work / "v1.1")
    figures["dpo_seconds"] = round(time.monotonic() - started, 1)
    inverted = [(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]
    train_dpo(starter.model, v1, inverted, recipe, work / "inverted")
    judge_pairs = collect("judge", recipe.reward_pairs, 200)
    started = time.monotonic()
    judge, figures["reward_accuracy"] = train_reward(
        starter.model, judge_pairs, recipe, work / "reward"
    )
    figures["reward_seconds"] = round(time.monotonic() - started, 1)

    pool = [prompt.text for prompt in corpus.prompts_of("eval")]
    fresh = random.Random(seed).sample(pool, recipe.prompts)
    old = sampler.answers(fresh, seed + 300)
    new = Sampler(starter.model, work / "v1.1").answers(fresh, seed + 301)
    worse = Sampler(starter.model, work / "inverted").answers(fresh, seed + 302)
    figures |= users_figures(fresh, new, old, crowd, seed + 400)
    bad = users_figures(fresh, worse, old, crowd, seed + 500)
    figures["inverted_win_rate"] = bad["win_rate"]
    figures["inverted_satisfaction"] = bad["satisfaction_new"]
    figures["judge_win_rate"] = judge_win_rate(judge, fresh, new, old)
    figures["judge_inverted_win_rate"] = judge_win_rate(judge, fresh, worse, old)
    for name, texts in (("old", old), ("new", new), ("inverted", worse)):
        means = [0.0] * 5
        for prompt, text in zip(fresh, texts, strict=True):
            values = tastes.notice(prompt, text).values()
            means = [m + v / len(fresh) for m, v in zip(means, values, strict=True)]
        figures[f"features_{name}"] = [round(mean, 2) for mean in means]
    figures["examples"] = new[:4]
    proof.figures = figures
    return proof


def _pair_row(pair: tuple[str, str, str]) -> dict[str, Any]:
    prompt, chosen, rejected = pair
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _common(folder: Path, epochs: float, rate: float, batch: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "num_train_epochs": epochs,
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }


def main() -> int:
    """Proves every seed asked for; 0 if all hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments[name] for name in asdict(Recipe())})
    starter = prepare(StarterConfig(), arguments["cache"], os.environ.get("MODEL") or None)
    failed = 0
    work = Path(tempfile.mkdtemp(prefix="ratchet-proof-"))
    try:
        started = time.monotonic()
        train_sft(starter, recipe, work / "v1.0")
        print(f"v1.0 by SFT: {time.monotonic() - started:.0f} s", flush=True)
        for seed in arguments["seed"]:
            proof = prove(seed, recipe, starter, work / "v1.0", work / str(seed))
            failed += not proof.holds
            print(json.dumps(asdict(proof) | {"holds": proof.holds}), flush=True)
    finally:
        shutil.rmtree(work)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
