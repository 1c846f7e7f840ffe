"""`python training_methods.py <folder>` in the ML environment: every method on the tiny model.

Prints, by run, what moved: the quantity that the method is to raise before and after, and which
parameters changed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook
from training_tiny_model import main as make_model
from transformers import Trainer

from services.inference.scoring import CPU_BATCH_TOKENS, RewardModel
from services.inference.scoring_passes import passes
from services.training.evaluation import EvaluationSettings
from services.training.trainers import (
    arguments,
    dpo,
    drift,
    grpo,
    job,
    kto,
    online,
    online_dpo,
    ppo,
    proxy,
    reward,
    rloo,
    run,
    sft,
)
from services.training.trainers.models import (
    conversation_ids,
    load_adapter,
    load_base,
    load_tokenizer,
    lora,
    prompt_ids,
    set_seeds,
    start_of,
)
from shared.contracts.recipes import ONLINE, LoraHyperparameters, RewardHyperparameters

PAIRS = 24
EMBEDDING_SCALE = 8.0
GOOD, BAD = "oooo oooo", "xyxy zyzy"
DPO_LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "robust": {"loss": ["robust"], "loss_weights": [1.0], "label_smoothing": 0.1},
    "ipo": {"loss": ["ipo"], "loss_weights": [1.0]},
    "hinge": {"loss": ["hinge", "sft"], "loss_weights": [1.0, 0.3]},
}
DDP = Path(__file__).resolve().parents[2] / "services/training/accelerate/ddp.yaml"
SHORT = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3}
SFT = {"epochs": 2, "batch_size": 2, "max_length": 128, "learning_rate": 1e-3}
TRAINED = (".default.", "value_head.")
"""In the names of what is trained: adapters, the head of a reward model, PPO's value head."""
RL = {
    "epochs": 3,
    "batch_size": 24,
    "generations": 6,
    "max_new_tokens": 8,
    "learning_rate": 5e-3,
    "beta": 0.1,
}
RL_OWN: dict[str, dict[str, Any]] = {
    "rloo": {"learning_rate": 1e-2, "beta": 0.02},
    "ppo": {"epochs": 10, "learning_rate": 4e-3, "beta": 0.05},
    "online_dpo": {"learning_rate": 3e-3},
}
"""What moves a method about as far as the others: its steps differ in size."""


def main(folder: Path) -> None:
    """Train with each method and print what moved."""
    torch.set_num_threads(1)
    base, data = folder / "base", folder / "data"
    make_base(base)
    data.mkdir()
    rng = random.Random(3)
    pairs = [
        {
            "messages": [{"role": "user", "content": "".join(rng.choices("abcd", k=4))}],
            "chosen": f"{GOOD} {number % 7}",
            "rejected": f"{BAD} {number % 7}",
        }
        for number in range(PAIRS)
    ]
    labelled = [
        {"messages": pair["messages"], "answer": pair[side], "label": side == "chosen"}
        for number, pair in enumerate(pairs)
        for side in (("chosen", "rejected") if number % 3 else ("rejected",))
    ]
    labelled[0]["answer_cut"] = True
    parent = make_parent(base, folder / "parent")
    found: dict[str, Any] = {"revision": at_revision(folder)}
    for name, parameters in DPO_LOSSES.items():
        job.write_rows(data / "train.jsonl", pairs)
        found[name] = trained(folder, name, dpo, "dpo", SHORT | parameters, parent, pairs)
    fresh = made_fresh(folder)
    answered = [{"messages": pair["messages"], "answer": pair["chosen"]} for pair in pairs]
    job.write_rows(data / "train.jsonl", answered)
    found["sft"] = trained(folder, "sft", sft, "sft", SHORT, fresh, pairs, over_base=True)
    job.write_rows(data / "train.jsonl", pairs)
    found["dpo_base"] = trained(folder, "dpo_base", dpo, "dpo", SHORT, fresh, pairs, over_base=True)
    job.write_rows(data / "train.jsonl", labelled)
    found["kto_base"] = trained(folder, "kto_base", kto, "kto", SHORT, fresh, pairs, over_base=True)
    found["kto"] = trained(folder, "kto", kto, "kto", SHORT, parent, pairs, seen := [])
    found["kto_ends"] = ends(seen[0])
    job.write_rows(data / "train.jsonl", pairs)
    job.write_rows(data / "heldout.jsonl", pairs[:6])
    rl = (("grpo", grpo), ("rloo", rloo), ("ppo", ppo), ("online_dpo", online_dpo))
    for name, module in rl:
        found[name] = trained(folder, name, module, name, RL | RL_OWN.get(name, {}), parent, pairs)
    found["grpo_base"] = trained(
        folder, "grpo_base", grpo, "grpo", RL, fresh, pairs, over_base=True
    )
    asked = asked_of(folder, "dpo", SHORT, parent)
    answers_for(folder, "dpo_base", fresh, pairs)
    alone = asked.model_copy(update={"parent_adapter": ""})
    found["drift_base"] = drift.run(alone, folder / "dpo_base", job.Progress(folder))
    asked = asked.model_copy(update={"first_adapter": str(folder / "sigmoid/adapter")})
    found["drift"] = {
        name: drift.run(asked, folder / name, job.Progress(folder))
        for name in ("unmoved", "sigmoid")
        if answers_for(folder, name, parent, pairs)
    }
    found["advantages"] = advantages()
    found["monitor"] = {
        "gamed": monitored(
            folder,
            "gamed",
            RL | {"epochs": 6, "learning_rate": 1e-2},
            parent,
            pairs,
            swapped(pairs),
        ),
        "honest": monitored(folder, "honest", RL, parent, pairs, pairs),
    }
    found["heads"] = several_heads(folder, parent, pairs)
    found["few_prompts"] = few_prompts(folder, parent, pairs)
    smaller = SHORT | {"gradient_checkpointing": True}
    found["checkpointed"] = trained(folder, "checkpointed", dpo, "dpo", smaller, parent, pairs)
    found["packed"] = packed(folder, parent, pairs)
    found["four_bit"] = in_four_bits(folder, parent, pairs)
    found["resumed"] = resumed(folder, parent)
    found["memory"] = out_of_memory(folder, parent)
    found["processes"] = several_processes(folder, parent)
    found["profiles"] = {
        path.stem: load_config_from_file(str(path)).to_dict() for path in DDP.parent.iterdir()
    }
    found["diverged"] = diverged(folder, parent, pairs)
    print(json.dumps(found))


def make_base(folder: Path) -> None:
    """The tiny model with larger embeddings: with its own, all answers are about as likely."""
    make_model(folder)
    model = load_base(str(folder))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    model.save_pretrained(str(folder))


def make_parent(base: Path, folder: Path) -> Path:
    """An adapter that differs from the base, as a parent's does."""
    set_seeds(5)
    model = get_peft_model(
        load_base(str(base)), lora(LoraHyperparameters(rank=4), task="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    model.save_pretrained(str(folder))
    return folder


def made_fresh(folder: Path) -> Path:
    """The adapter that a job without a parent begins with, which changes nothing of the base."""
    asked = asked_of(folder, "dpo", SHORT, folder).model_copy(update={"parent_adapter": ""})
    set_seeds(asked.seed)
    start_of(asked, asked.trained).save_pretrained(str(folder / "fresh"))
    return folder / "fresh"


def trained(
    folder: Path,
    name: str,
    module: ModuleType,
    method: Any,
    parameters: dict[str, Any],
    parent: Path,
    pairs: Sequence[dict[str, Any]],
    trainers: list[Any] | None = None,
    *,
    over_base: bool = False,
) -> dict[str, Any]:
    """Run one method; the quantity it raises, before and after, and what changed."""
    trainers = [] if trainers is None else trainers
    attempt = folder / name
    attempt.mkdir()
    asked = asked_of(folder, method, parameters, parent)
    if over_base:
        asked = asked.model_copy(update={"parent_adapter": ""})
    held: Any = online if method in ONLINE else module
    report: dict[str, Any] = {}
    if held is online:
        report["proxy"] = proxy.run(asked, attempt, job.Progress(attempt))
    started = time.monotonic()
    with watched(held, trainers) as weights:
        report["figures"] = module.run(asked, attempt, job.Progress(attempt))
    report |= weights
    report["seconds"] = time.monotonic() - started
    measure = mean_reward if held is online else mean_margin
    report["before"] = measure(asked, attempt, parent, pairs)
    report["after"] = measure(asked, attempt, attempt / "adapter", pairs)
    if held is online:
        report["kl_answer"] = kl_answer(asked, attempt)
    return report | changed(arguments.adapted(trainers[0]), asked, parent, attempt)


@contextmanager
def watched(held: Any, trainers: list[Any]) -> Iterator[dict[str, list[str]]]:
    """Notes the trainer of a module, and which of all its weights stood still and moved."""
    usual, found, before = held.train, dict[str, list[str]](), dict[str, Any]()

    def train(trainer: Any, checkpoints: Path) -> None:
        trainers.append(trainer)
        before.update(
            (name, one.detach().clone()) for name, one in trainer.model.named_parameters()
        )
        usual(trainer, checkpoints)

    held.train = train
    try:
        yield found
    finally:
        held.train = usual
    moved = {
        name
        for name, one in trainers[-1].model.named_parameters()
        if not torch.equal(one.detach(), before[name])
    }
    meant = {name for name in before if any(mark in name for mark in TRAINED)}
    found |= {"meant": sorted(meant), "missed": sorted(meant - moved), "hit": sorted(moved - meant)}


def ends(trainer: Any) -> dict[str, list[bool]]:
    """Whether cut and whole answers are read with their end-of-turn token."""
    end = trainer.processing_class.eos_token_id
    found: dict[str, list[bool]] = {}
    for row in trainer.train_dataset:
        ended = row["completion_ids"][-1] == end
        found.setdefault("cut" if row["answer_cut"] else "whole", []).append(ended)
    return {name: sorted(set(values)) for name, values in found.items()}


def diverged(folder: Path, parent: Path, pairs: Sequence[dict[str, Any]]) -> str:
    """What a training says whose loss is no number."""
    broken = folder / "broken"
    model = load_adapter(load_base(str(folder / "base")), parent, trainable=True)
    with torch.no_grad():
        next(one for name, one in model.named_parameters() if "lora_B" in name).fill_(math.nan)
    model.save_pretrained(str(broken))
    try:
        trained(folder, "diverged", dpo, "dpo", SHORT, broken, pairs)
    except job.TrainingDiverged as error:
        return str(error)
    return "nothing"


def several_heads(folder: Path, parent: Path, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A reward model of three heads, as the evaluation and as the scorer read it."""
    asked = asked_of(folder, "dpo", SHORT, parent)
    three = asked.reward.model_copy(update={"heads": 3})
    asked = asked.model_copy(update={"reward": three})
    with watched(reward, []) as weights:
        figures = reward.fit(asked, pairs, pairs, folder / "heads", "reward", job.Progress(folder))
    adapter = folder / "heads/adapter"
    tokenizer = load_tokenizer(asked.base)
    rows: list[dict[str, Any]] = [
        {"messages": one["messages"], "completion": one["chosen"]} for one in pairs
    ]
    before = [
        turn
        for row in rows[:4]
        for turn in (*row["messages"], {"role": "assistant", "content": row["completion"]})
    ]
    after: list[dict[str, Any]] = [row | {"messages": [*before, *row["messages"]]} for row in rows]
    read = [reward.judged_ids(asked, tokenizer, row, row["completion"]) for row in (*rows, *after)]
    evaluated = reward.score(
        reward.load_scorer(asked, tokenizer, adapter), tokenizer, read, lambda _: None
    )
    scorer = RewardModel(asked.base, "main", str(adapter))
    served, uncertainties = scorer.score(rows, three.max_length)
    conversation, _ = scorer.score(after, three.max_length)
    return weights | {
        "figures": figures,
        "heads": reward.heads_of(adapter),
        "passes": {
            "batch": forward_passes(scorer, [rows], three.max_length),
            "single": forward_passes(scorer, [[row] for row in rows], three.max_length),
        },
        "shared": [one.prefix for one in passes(read[len(rows) :], CPU_BATCH_TOKENS)],
        "shares": scorer.shares,
        "apart": max(
            abs(one - other) for one, other in zip(evaluated, (*served, *conversation), strict=True)
        ),
        "least_uncertainty": min(uncertainties),
    }


def forward_passes(
    scorer: RewardModel, requests: Sequence[Sequence[dict[str, Any]]], max_length: int
) -> int:
    """Forward passes of the reward model for some requests to score answers."""
    passed: list[str] = []
    counting = register_module_forward_hook(
        lambda module, *_: passed.append("") if module is scorer.model else None
    )
    try:
        for rows in requests:
            scorer.score(rows, max_length)
    finally:
        counting.remove()
    return len(passed)


def swapped(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of raters who like what the others dislike."""
    return [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]


def monitored(
    folder: Path,
    name: str,
    parameters: dict[str, Any],
    parent: Path,
    pairs: Sequence[dict[str, Any]],
    judged: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What the monitor does of a training whose judge learnt from other pairs."""
    judge = folder / f"{name}-judge"
    asked = asked_of(folder, "grpo", parameters, parent).model_copy(update={"judge": str(judge)})
    reward.fit(asked, judged, pairs, judge, "reward", job.Progress(folder))
    attempt = folder / name
    attempt.mkdir()
    proxy.run(asked, attempt, job.Progress(attempt))
    figures = grpo.run(asked, attempt, job.Progress(attempt))
    kept = load_file(attempt / "adapter/adapter_model.safetensors")
    again = grpo.run(asked, attempt, job.Progress(attempt))
    same = load_file(attempt / "adapter/adapter_model.safetensors")
    checks = job.read_rows(attempt / "monitor.jsonl")
    first = load_adapter(load_base(asked.base), parent, trainable=False).state_dict()
    last = load_adapter(load_base(asked.base), attempt / "adapter", trainable=False).state_dict()
    return {
        "figures": figures,
        "steps": [check["step"] for check in checks],
        "judge": [sum(check["judge"]) for check in checks],
        "moved": sum(float((last[key] - first[key]).abs().sum()) for key in first if "lora" in key),
        "again": {name: again[name] for name in figures if name.startswith("monitor_")},
        "apart": max(float((kept[key] - same[key]).abs().max()) for key in kept),
    }


def packed(folder: Path, parent: Path, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """SFT on rows of their own and on packed ones: figures and steps."""
    found: dict[str, Any] = {}
    rows = [{"messages": pair["messages"], "answer": pair["chosen"]} for pair in pairs]
    job.write_rows(folder / "data/train.jsonl", rows)
    for name, packing in (("alone", False), ("packed", True)):
        attempt = folder / f"sft-{name}"
        attempt.mkdir()
        asked = asked_of(folder, "sft", SFT | {"packing": packing}, parent)
        found[name] = sft.run(asked, attempt, job.Progress(attempt)) | {"steps": steps(attempt)}
    job.write_rows(folder / "data/train.jsonl", pairs)
    return found


def in_four_bits(folder: Path, parent: Path, pairs: Sequence[dict[str, Any]]) -> str:
    """What a training in four bits says where bitsandbytes is not installed; else that it is."""
    if importlib.util.find_spec("bitsandbytes"):
        return "installed"
    try:
        trained(folder, "four", dpo, "dpo", SHORT | {"four_bit": True}, parent, pairs)
    except job.CannotTrain as error:
        return str(error)
    return "nothing"


def resumed(folder: Path, parent: Path) -> float:
    """How far PPO's weights are apart after a kill in its second epoch and without one."""
    asked = asked_of(folder, "ppo", RL | {"epochs": 2}, parent)
    step, calls = Trainer.training_step, [0]

    def killed(trainer: Any, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 27:
            raise KeyboardInterrupt
        return step(trainer, *given)

    for name in ("whole", "killed"):
        attempt = folder / f"ppo-{name}"
        attempt.mkdir()
        proxy.run(asked, attempt, job.Progress(attempt))
        if name == "killed":
            Trainer.training_step = killed
            try:
                run.do("ppo", asked, attempt)
            except KeyboardInterrupt:
                Trainer.training_step = step
        run.do("ppo", asked, attempt)
    return apart(folder / "ppo-whole", folder / "ppo-killed")


def apart(*attempts: Path) -> float:
    """The largest difference between two attempts' adapters."""
    one, other = (load_file(place / "adapter/adapter_model.safetensors") for place in attempts)
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def out_of_memory(folder: Path, parent: Path) -> dict[str, Any]:
    """A training that runs out of memory at its fifth step, and one that had the smaller batch."""
    found: dict[str, Any] = {}
    step, calls = Trainer.training_step, [0]

    def short(trainer: Any, *given: Any) -> Any:
        calls[0] += 1
        if trainer.args.per_device_train_batch_size > 4 and calls[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(trainer, *given)

    for name, size in (("short", 8), ("smaller", 4)):
        parameters = SHORT | {"batch_size": size, "accumulation": 8 // size}
        asked = asked_of(folder, "dpo", parameters, parent)
        attempt = folder / f"memory-{name}"
        attempt.mkdir()
        Trainer.training_step = short if name == "short" else step
        try:
            run.do("dpo", asked, attempt)
        finally:
            Trainer.training_step = step
        found[name] = json.loads((attempt / "dpo.json").read_bytes()) | {"steps": steps(attempt)}
    found["apart"] = apart(folder / "memory-short", folder / "memory-smaller")
    return found


def several_processes(folder: Path, parent: Path) -> dict[str, Any]:
    """The same training by one process and by two, which have half the rows a step each."""
    found: dict[str, Any] = {}
    configuration = yaml.safe_load(DDP.read_text(encoding="utf-8"))
    configuration |= {"num_processes": 2, "mixed_precision": "no", "main_process_port": 0}
    (folder / "two.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    for name, size, extra in (("run", 8, []), ("launch", 4, [str(folder / "two.yaml")])):
        attempt = folder / f"processes-{name}"
        attempt.mkdir()
        asked = asked_of(folder, "dpo", SHORT | {"batch_size": size}, parent)
        (attempt / "job.json").write_text(asked.model_dump_json(), encoding="utf-8")
        module = f"services.training.trainers.{name}"
        command = [sys.executable, "-m", module, str(attempt), str(os.getpid()), *extra]
        with (folder / f"{name}.log").open("wb") as log:
            subprocess.run(
                command,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=240,
            )
        found[name] = json.loads((attempt / "dpo.json").read_bytes()) | {"steps": steps(attempt)}
    return found


def steps(attempt: Path) -> list[int]:
    """Steps that were noted last, and how many there were to be."""
    last = job.read_rows(attempt / "progress.jsonl")[-1]
    return [last["done"], last["total"]]


def few_prompts(folder: Path, parent: Path, pairs: Sequence[dict[str, Any]]) -> list[str]:
    """What PPO says whose prompts do not fill a step, of one process and of two."""
    data, found = folder / "data/train.jsonl", list[str]()
    asked = asked_of(folder, "ppo", RL, parent)
    for count, processes in ((3, "1"), (7, "2")):
        job.write_rows(data, pairs[:count])
        os.environ["WORLD_SIZE"] = processes
        try:
            ppo.run(asked, folder / "few", job.Progress(folder))
        except job.CannotTrain as error:
            found.append(str(error))
        finally:
            del os.environ["WORLD_SIZE"]
    job.write_rows(data, pairs)
    return found


def at_revision(folder: Path) -> list[str]:
    """Snapshots that a job of a hub's base is trained on, by the branch and the commit it asks for."""
    repository = Path(os.environ["HF_HUB_CACHE"]) / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    for at, commit in {"main": "a" * 40, "v2": "b" * 40}.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"w")
        (repository / "refs" / at).write_text(commit)
    asked = asked_of(folder, "dpo", {}, folder).model_copy(update={"base": "org/base"})
    jobs = (asked.model_copy(update={"base_revision": one}) for one in ("", "v2", "a" * 40))
    return [Path(run.at_revision(one).base).name for one in jobs]


def asked_of(folder: Path, method: Any, parameters: dict[str, Any], parent: Path) -> job.TrainerJob:
    """The job of one method."""
    return job.TrainerJob(
        stages=(method,),
        base=str(folder / "base"),
        parent_adapter=str(parent),
        data=str(folder / "data"),
        judge="",
        cases=str(folder / "cases.jsonl"),
        method=method,
        hyperparameters=parameters,
        reward=RewardHyperparameters(epochs=6, batch_size=8, learning_rate=3e-3),
        evaluation=EvaluationSettings(),
        seed=1,
    )


def answers_for(folder: Path, name: str, parent: Path, pairs: Sequence[dict[str, Any]]) -> bool:
    """Lay out what drift is measured on: answers, and cases that DPO has just learnt."""
    (folder / name).mkdir(exist_ok=True)
    if not (folder / name / "adapter").exists():
        shutil.copytree(parent, folder / name / "adapter")
    rows = [{"messages": pair["messages"], "candidate": pair["chosen"]} for pair in pairs]
    job.write_rows(folder / name / "answers.jsonl", rows)
    cases = [
        {
            "case_id": f"pair-{number}",
            "name": "correction",
            "messages": pair["messages"],
            "good": pair["chosen"],
            "bad": pair["rejected"],
        }
        for number, pair in enumerate(pairs)
    ]
    job.write_rows(folder / "cases.jsonl", cases)
    return True


@torch.no_grad()
def mean_margin(
    asked: job.TrainerJob, _: Path, adapter: Path, pairs: Sequence[dict[str, Any]]
) -> float:
    """Mean log-probability of the good answer above the bad one's, in nats."""
    tokenizer = load_tokenizer(asked.base)
    model = load_adapter(load_base(asked.base), adapter, trainable=False).eval()
    margins: list[float] = []
    for pair in pairs:
        first = len(prompt_ids(tokenizer, pair["messages"]))
        sums: list[float] = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([conversation_ids(tokenizer, pair["messages"], pair[side])])
            values = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
            sums.append(float(values.gather(-1, ids[0, 1:, None])[first - 1 :].sum()))
        margins.append(sums[0] - sums[1])
    return sum(margins) / len(margins)


@torch.no_grad()
def mean_reward(
    asked: job.TrainerJob, attempt: Path, adapter: Path, pairs: Sequence[dict[str, Any]]
) -> float:
    """Mean score of sampled answers by the reward model."""
    tokenizer = load_tokenizer(asked.base)
    model = load_adapter(load_base(asked.base), adapter, trainable=False).eval()
    scored = online.scorer(asked, tokenizer, attempt / "proxy" / "adapter")
    set_seeds(9)
    prompts, completions = [], []
    for pair in pairs:
        ids = torch.tensor([prompt_ids(tokenizer, pair["messages"])] * 4)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=True,
            top_k=0,
            pad_token_id=tokenizer.pad_token_id,
        )
        for row in out[:, ids.shape[1] :]:
            prompts.append(pair["messages"])
            text = tokenizer.decode(row, skip_special_tokens=True)
            completions.append([{"role": "assistant", "content": text}])
    scores = scored(prompts, completions)
    sampled = [
        {"messages": messages, "candidate": turn["content"]}
        for messages, (turn,) in zip(prompts, completions, strict=True)
    ]
    job.write_rows(attempt / "answers.jsonl", sampled)
    return sum(scores) / len(scores)


def kl_answer(asked: job.TrainerJob, attempt: Path) -> float:
    """Nats of KL(candidate ‖ parent) over an answer, on the candidate's samples of `mean_reward`."""
    return drift.run(asked, attempt, job.Progress(attempt))["kl_answer"]


def advantages() -> dict[str, list[float]]:
    """PPO's advantages of an answer of three tokens that is padded to five."""
    rewards = torch.tensor([[0.1, 0.2, 1.0, 9.0, 9.0]], dtype=torch.float64)
    values = torch.tensor([[0.3, 0.5, 0.7, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    return {
        str(lam): ppo.estimated_advantages(rewards, values, mask, lam=lam)[0].tolist()
        for lam in (0.0, 0.5, 1.0)
    }


def changed(model: Any, asked: job.TrainerJob, parent: Path, attempt: Path) -> dict[str, Any]:
    """Names of adapter weights that stood still, of other weights that moved, and of files.

    A reference that is the base has B = 0, and whatever A began with.
    """
    fresh = load_adapter(load_base(asked.base), parent, trainable=False)
    before = {name: weight.detach() for name, weight in fresh.named_parameters()}
    still: list[str] = []
    moved: list[str] = []
    for name, weight in model.named_parameters():
        known = before[name.replace(".ref.", ".default.")]
        same = torch.equal(weight.detach(), known)
        if not asked.parent_adapter and "lora_A.ref." in name:
            continue
        if "lora_" in name and ".default." in name:
            still += [name] if same else []
        elif not same:
            moved.append(name)
    return {
        "still": still,
        "moved": moved,
        "files": sorted(path.name for path in (attempt / "adapter").iterdir()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
