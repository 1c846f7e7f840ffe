"""`python training_measuring.py <folder>` in the ML environment: perplexity and judge on a tiny model.

Prints one JSON object. `reference_…` is the same figure computed plainly: all rows in one batch, all
logits at once, nothing cut but at `max_length`.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file
from training_tiny_model import main as make_model
from transformers import AutoConfig, AutoTokenizer

from services.training.evaluation import EvaluationSettings
from services.training.thumbs import paired_thumbs
from services.training.trainers import dpo, evaluate, fit, job, loads, quality, reward
from services.training.trainers.models import (
    conversation_ids,
    conversations,
    load_base,
    load_tokenizer,
    lora,
    padded,
    prompt_ids,
    set_seeds,
)
from services.training.trainers.rows import row_files
from services.training.trainers.run import do
from shared.contracts.recipes import LoraHyperparameters, RewardHyperparameters

MAX_LENGTH = 64
END = "<|end|>"
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '</call>' }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SMALL_LOGITS = 2**12
"""Fifteen positions of the tiny vocabulary of 261."""
Held = list[evaluate.HeldOut]


def main(folder: Path) -> dict[str, Any]:
    """All figures by name."""
    base = folder / "base"
    make_model(base)
    model, tokenizer = load_base(str(base)).eval(), load_tokenizer(str(base))
    with torch.no_grad():  # a random model finds all tokens alike, whichever it is asked for
        model.lm_head.weight.mul_(20)
    short, long = held_out(random.Random(1), 1), held_out(random.Random(2), 40)
    return (
        perplexities(model, tokenizer, short, long)
        | judging(folder, str(base), random.Random(3))
        | {"trained_on": trained_on(folder, str(base))}
        | {"left_out": left_out(folder / "fitting", str(base))}
        | {"loaded": loaded(folder, str(base))}
        | {"unusable_bases": unusable_bases(folder / "bases", str(base))}
        | {"tools": tool_training(folder / "tools", str(base))}
        | {"thinking": thinking(folder / "thinking", str(base))}
        | {"quality": qualities(folder / "quality", str(base))}
        | {"thumbs": judging_by_thumbs(folder / "thumbs", str(base), random.Random(4))}
        | {
            "beside_a_predecessor": judging_beside_a_predecessor(
                folder / "judges", str(base), random.Random(5)
            )
        }
        | {
            "long_longest": max(len(conversation_ids(tokenizer, *row[:2])) for row in long),
            "max_length": MAX_LENGTH,
            "small_logits": SMALL_LOGITS,
        }
    )


def loaded(folder: Path, base: str) -> list[tuple[int, int]]:
    """Tensors in place, of all, at the end of each load of the base: tokenizer and model."""
    made: list[loads.ModelLoad] = []

    class Seen(loads.ModelLoad):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            made.append(self)

    usual, loads.ModelLoad = loads.ModelLoad, Seen  # type: ignore[misc]
    with loads.telling("dpo", job.Progress(folder)):
        load_tokenizer(base)
        load_base(base)
    loads.ModelLoad = usual  # type: ignore[misc]
    return [(one.done, one.total) for one in made]


def held_out(rng: random.Random, longer: int) -> Held:
    """Forty prompts with answers, every fourth so many times as long, every seventh cut."""
    return [
        evaluate.HeldOut(
            turn(words(rng, 2)),
            words(rng, rng.randint(1, 6) * (longer if number % 4 == 0 else 1)),
            number % 7 == 0,
        )
        for number in range(40)
    ]


def perplexities(model: Any, tokenizer: Any, short: Held, long: Held) -> dict[str, Any]:
    """Perplexity by the reference, with the usual bound of logits and with a small one."""
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda *call: seen.append(call[2].numel()))
    noted: list[int] = []
    usual = evaluate.LOGITS
    found: dict[str, Any] = {}
    for name, rows in {"short": short, "long": long}.items():
        found[f"{name}_reference"] = reference(model, tokenizer, rows, MAX_LENGTH)
        for bound, logits in {"usual": usual, "small": SMALL_LOGITS}.items():
            evaluate.LOGITS = logits
            seen.clear()
            noted.clear()
            found[f"{name}_{bound}"] = evaluate.perplexity(
                model, tokenizer, rows, max_length=MAX_LENGTH, note=noted.append
            )
            found[f"{name}_{bound}_most_logits"] = max(seen)
            found[f"{name}_{bound}_noted"] = sum(noted)
    evaluate.LOGITS = usual
    prompts_alone = [evaluate.HeldOut(turn("a prompt that fills the row " * 4), "yes")]
    found["nothing_left"] = evaluate.perplexity(
        model, tokenizer, prompts_alone, max_length=MAX_LENGTH, note=noted.append
    )
    return found


def left_out(folder: Path, base: str) -> list[dict[str, Any]]:
    """What does not fit, of a good pair, one that the template refuses, and a long one."""
    folder.mkdir()
    strict = AutoTokenizer.from_pretrained(base)
    strict.chat_template = (
        "{% for message in messages if message['role'] == 'tool' %}"
        "{{ raise_exception('a tool turn without calls') }}{% endfor %}"
    ) + strict.chat_template
    strict.save_pretrained(folder / "base")
    AutoConfig.from_pretrained(base).save_pretrained(folder / "base")
    called = [*turn("a"), {"role": "assistant", "content": ""}, {"role": "tool", "content": "b"}]
    good = {"messages": turn("a"), "chosen": "b", "rejected": "c"}
    rows = [good, {**good, "messages": called}, {**good, "rejected": "c" * MAX_LENGTH}]
    job.write_rows(folder / "train.jsonl", rows)
    job.write_rows(folder / "prompts.jsonl", [{"messages": turn("a" * MAX_LENGTH)}])
    asked = job.TrainerJob(
        stages=("fit",),
        base=str(folder / "base"),
        data=str(folder),
        judge=str(folder / "judge"),
        hyperparameters={"max_length": MAX_LENGTH},
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=1,
    )
    return fit.run(asked, folder, job.Progress(folder))["left_out"]


def unusable_bases(folder: Path, base: str) -> list[str]:
    """What is said of a base that is nowhere, one without weights, one without a chat template."""
    silent = AutoTokenizer.from_pretrained(base)
    silent.chat_template = None
    silent.save_pretrained(folder / "silent")
    AutoConfig.from_pretrained(base).save_pretrained(folder / "empty")
    found = list[str]()
    for load, place in (
        (load_tokenizer, folder / "nowhere"),
        (load_base, folder / "empty"),
        (load_tokenizer, folder / "silent"),
    ):
        try:
            load(str(place))
        except job.CannotTrain as error:
            found.append(str(error))
    return found


def thinking(folder: Path, base: str) -> dict[str, Any]:
    """Rows with reasoning: what is left out under templates with and without it, what is read."""
    folder.mkdir()
    knowing = AutoTokenizer.from_pretrained(base)
    knowing.chat_template = THINKING_TEMPLATE
    knowing.save_pretrained(folder / "base")
    AutoConfig.from_pretrained(base).save_pretrained(folder / "base")
    turns = {
        f"{side}_turn": {"role": "assistant", "content": side, "reasoning_content": f"{side}?"}
        for side in ("chosen", "rejected")
    }
    pair = {"messages": turn("a"), "chosen": "chosen", "rejected": "rejected"}
    both, corrected = {**pair, **turns}, {**pair, "rejected_turn": turns["rejected_turn"]}
    job.write_rows(folder / "train.jsonl", [both, corrected, pair])
    found: dict[str, Any] = {}
    for kept in (True, False):
        for template in (str(folder / "base"), base):
            asked = job.TrainerJob(
                stages=("fit",),
                base=template,
                data=str(folder),
                judge=str(folder / "judge"),
                hyperparameters={"max_length": MAX_LENGTH, "reasoning": kept},
                reward=RewardHyperparameters(),
                evaluation=EvaluationSettings(),
                seed=1,
            )
            left = fit.run(asked, folder, job.Progress(folder))["left_out"]
            name = f"{'kept' if kept else 'dropped'}_{'plain' if template == base else 'thinking'}"
            found[name] = [(one["line"], one["reason"]) for one in left]
        with row_files(folder, "sft", job.Progress(folder)) as files:
            rows = conversations([both], {"chosen": "chosen"}, files, reasoning=kept)
            read = knowing.apply_chat_template(rows[0]["chosen"], tokenize=False)
        found[f"read_{kept}"] = read
    return found


def tool_training(folder: Path, base: str) -> dict[str, Any]:
    """A DPO step on `tools.jsonl` of the folder: what is left out, what is read, what moves."""
    knowing = AutoTokenizer.from_pretrained(base)
    knowing.chat_template = TOOL_TEMPLATE
    load_base(base).save_pretrained(folder / "base")
    knowing.save_pretrained(folder / "base")
    parent = folder / "parent"
    get_peft_model(
        load_base(str(folder / "base")), lora(LoraHyperparameters(), task="CAUSAL_LM")
    ).save_pretrained(parent)
    asked = job.TrainerJob(
        stages=("fit", "dpo"),
        base=str(folder / "base"),
        data=str(folder),
        judge=str(folder / "judge"),
        parent_adapter=str(parent),
        hyperparameters={"epochs": 4, "max_length": 512},
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=1,
    )
    left = fit.run(asked, folder, job.Progress(folder))["left_out"]
    unknowing = asked.model_copy(update={"base": base})
    refused = fit.run(unknowing, folder, job.Progress(folder))["left_out"]
    read: list[dict[str, str]] = []
    usual = dpo.train

    def look(trainer: Any, checkpoints: Path) -> None:
        read.extend(
            {
                side: trainer.processing_class.decode(row[f"{side}_ids"])
                for side in ("prompt", "chosen", "rejected")
            }
            for row in trainer.train_dataset
        )
        usual(trainer, checkpoints)

    dpo.train = look
    figures = dpo.run(asked, folder, job.Progress(folder))
    dpo.train = usual
    before, after = (
        load_file(path / "adapter_model.safetensors") for path in (parent, folder / "adapter")
    )
    moved = sum(not torch.equal(before[name], after[name]) for name in before)
    return {"left_out": left, "refused": refused, "read": read, "moved": moved, **figures}


def qualities(folder: Path, base: str) -> dict[str, Any]:
    """Both arms' quality: the parent wrote what people preferred, the candidate did not."""
    data = folder / "data"
    data.mkdir(parents=True)
    get_peft_model(load_base(base), lora(LoraHyperparameters(), task="CAUSAL_LM")).save_pretrained(
        folder / "adapter"
    )
    wanted = "we gladly refund the order within two days"
    rows = [{"messages": turn(f"{number}"), "chosen": wanted} for number in range(3)]
    job.write_rows(data / "heldout.jsonl", rows)
    answers = [
        {"messages": row["messages"], "parent": wanted, "candidate": "it is broken and bad"}
        for row in [*rows, {"messages": turn("without a reference")}]
    ]
    job.write_rows(folder / "answers.jsonl", answers)
    asked = job.TrainerJob(
        stages=("quality",),
        base=base,
        data=str(data),
        judge=str(folder),
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(question_tokens=2),
        seed=1,
    )
    figures = quality.run(asked, folder, job.Progress(folder))
    return {**figures, "asked": len(job.read_rows(folder / "questions.jsonl"))}


@torch.no_grad()
def reference(model: Any, tokenizer: Any, rows: Held, limit: int) -> float:
    """Perplexity with one batch and all logits."""
    read = [conversation_ids(tokenizer, row.messages, row.answer) for row in rows]
    assert {tokenizer.decode(row[-1:]) for row in read} == {END}
    kept = [ids[:-1] if row.cut else ids for ids, row in zip(read, rows, strict=True)]
    ids, mask = padded([row[:limit] for row in kept], 0, left=False)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    taken = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    answers = mask[:, 1:].clone()
    for number, row in enumerate(rows):
        answers[number, : len(prompt_ids(tokenizer, row.messages)) - 1] = 0
    return math.exp(-float((taken * answers).sum() / answers.sum()))


def judging(folder: Path, base: str, rng: random.Random) -> dict[str, Any]:
    """Trains a judge, with every batch's width and every line of progress kept."""
    data, judge, attempt = folder / "data", folder / "judge", folder / "attempt"
    for path in (data, judge, attempt):
        path.mkdir()
    files = {
        "judge": [voted(rng, 4) for _ in range(16)],
        "train": [voted(rng, 4) for _ in range(60)] + [voted(rng, 400) for _ in range(6)],
        "heldout": [voted(rng, 4, prompt=100) for _ in range(5)],
    }
    for name, rows in files.items():
        job.write_rows(data / f"{name}.jsonl", rows)
    asked = job.TrainerJob(
        stages=("reward",),
        base=base,
        data=str(data),
        judge=str(judge),
        reward=RewardHyperparameters(epochs=1, max_length=MAX_LENGTH),
        evaluation=EvaluationSettings(),
        seed=1,
    )
    widths: list[int] = []
    head_scores, job.PROGRESS_INTERVAL_S = reward.head_scores, 0.0

    def watched(model: Any, tokenizer: Any, rows: list[list[int]], note: evaluate.Note) -> Any:
        widths.extend(map(len, rows))
        return head_scores(model, tokenizer, rows, note)

    reward.head_scores = watched
    figures = reward.run(asked, attempt, job.Progress(attempt))
    reward.head_scores = head_scores
    lines = job.read_rows(attempt / "progress.jsonl")
    tokenizer = load_tokenizer(base)
    read = [conversation_ids(tokenizer, row["messages"], row["chosen"]) for row in files["judge"]]
    trained = reward.load_scorer(asked, tokenizer, judge / "adapter")
    with torch.no_grad():
        ids, mask = padded(read, tokenizer.pad_token_id, left=False)
        plain = trained(input_ids=ids, attention_mask=mask).logits.squeeze(-1).tolist()
    rows = [
        {"messages": row["messages"], "parent": row["rejected"], "candidate": row["chosen"]}
        for row in [*files["judge"], *files["heldout"]]
    ]
    verdict = evaluate._verdict(asked, tokenizer, judge / "adapter", rows, lambda _: None)
    first = over_the_first(folder / "chain", asked)
    evaluate.score = lambda *_: [math.nan] * len(rows)
    diverged = evaluate._verdict(asked, tokenizer, judge / "adapter", rows, lambda _: None)
    return {
        "judge_figures": figures,
        "judge_widest": max(widths),
        "judge_progress": [
            (line["done"], line["total"]) for line in lines if not line["preparing"]
        ],
        "judge_prepared": {
            line["preparing"]: (line["done"], line["total"]) for line in lines if line["preparing"]
        },
        "judge_scores": reward.score(trained, tokenizer, read, lambda _: None),
        "judge_scores_reference": plain,
        "verdict": verdict,
        "over_the_first": first,
        "diverged": {name: str(value) for name, value in diverged.items()},
    }


def over_the_first(folder: Path, judged: job.TrainerJob) -> dict[str, Any]:
    """The evaluation of a candidate that is its chain's first version again, by what is known of that."""
    adapters = {
        name: an_adapter(folder / name, judged.base, seed) for seed, name in enumerate("ab")
    }
    attempt = folder / "attempt"
    an_adapter(attempt / "adapter", judged.base, 0)
    asked = judged.model_copy(
        update={
            "parent_adapter": str(adapters["b"]),
            "evaluation": EvaluationSettings(max_new_tokens=8),
        }
    )
    prompts = [{"messages": turn(f"prompt {number}")} for number in range(12)]
    job.write_rows(Path(asked.data) / "prompts.jsonl", prompts)
    found: dict[str, Any] = {}
    for name, first in {"known": adapters["a"], "parent": adapters["b"], "gone": ""}.items():
        chain = asked.model_copy(update={"first_adapter": str(first)})
        figures = evaluate.run(chain, attempt, job.Progress(attempt))
        rows = job.read_rows(attempt / "answers.jsonl")
        found[name] = figures | {"arms": sorted({*rows[0]} - {"messages"})}
        last = job.read_rows(attempt / "progress.jsonl")[-1]
        found[name]["steps"] = (last["done"], last["total"])
    (Path(asked.data) / "prompts.jsonl").unlink()
    return found


def an_adapter(folder: Path, base: str, seed: int) -> Path:
    """An adapter that answers otherwise than the base and than one of another seed."""
    set_seeds(seed)
    model = get_peft_model(load_base(base), lora(LoraHyperparameters(rank=4), task="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(str(folder))
    return folder


def judging_beside_a_predecessor(folder: Path, base: str, rng: random.Random) -> dict[str, Any]:
    """Two judges of which one learned from votes turned round; each is the other's predecessor."""
    right = [voted(rng, 4, prompt=8) for _ in range(32)]
    wrong = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in right]
    known = [{**voted(rng, 4, prompt=8), "messages": row["messages"]} for row in right[:5]]
    learned, tested = (
        folder / "learned.jsonl",
        [*known, *(voted(rng, 4, prompt=8) for _ in range(20))],
    )
    judges, found = {"right": right, "wrong": wrong}, dict[str, Any]()
    for number, (name, before) in enumerate(
        [("right", ""), ("wrong", "right"), ("again", "wrong")]
    ):
        place, data = folder / name, folder / f"data of {name}"
        data.mkdir(parents=True)
        job.write_rows(data / "judge.jsonl", judges.get(name, right))
        job.write_rows(data / "train.jsonl", tested)
        job.write_rows(learned, right if number else [])
        asked = job.TrainerJob(
            stages=("reward",),
            base=base,
            data=str(data),
            judge=str(place),
            predecessor=str(folder / before / "adapter") if before else "",
            predecessor_pairs=str(learned) if before else "",
            reward=RewardHyperparameters(epochs=6, max_length=2 * MAX_LENGTH),
            evaluation=EvaluationSettings(),
            seed=1,
        )
        do("reward", asked, place)
        chosen = reward.judge_adapter(asked)
        found[name] = {
            **json.loads((place / "reward.json").read_bytes()),
            "judge": chosen and chosen.parent.name,
        }
    return found


def judging_by_thumbs(folder: Path, base: str, rng: random.Random) -> dict[str, Any]:
    """A judge that has nothing but thumbs, on thumbs of others."""
    folder.mkdir()
    thumbs = [
        {
            "messages": turn(words(rng, 3)),
            "answer": f"{'thanks' if number % 2 else 'no'} {words(rng, 2)}",
            "label": bool(number % 2),
            "meta": {"row_id": f"t{number}", "source": "thumb"},
        }
        for number in range(96)
    ]
    job.write_rows(folder / "judge.jsonl", paired_thumbs(thumbs[:64]))
    job.write_rows(folder / "train.jsonl", thumbs[64:])
    asked = job.TrainerJob(
        stages=("reward",),
        base=base,
        data=str(folder),
        judge=str(folder / "judge"),
        method="kto",
        reward=RewardHyperparameters(epochs=6, max_length=MAX_LENGTH),
        evaluation=EvaluationSettings(),
        seed=1,
    )
    left = fit.run(asked, folder, job.Progress(folder))["left_out"]
    return {"left_out": left, **reward.run(asked, folder, job.Progress(folder))}


def trained_on(folder: Path, base: str) -> list[list[str]]:
    """Chosen and rejected answers of the rows that DPO reads, as text with special tokens."""
    data, attempt, parent = folder / "cut", folder / "cut attempt", folder / "parent"
    for path in (data, attempt):
        path.mkdir()
    pair = {"messages": turn("red"), "chosen": "blue door", "rejected": "a ship"}
    flags = ({}, {"chosen_cut": True}, {"rejected_cut": True})
    job.write_rows(data / "train.jsonl", [{**pair, **flag} for flag in flags])
    get_peft_model(load_base(base), lora(LoraHyperparameters(), task="CAUSAL_LM")).save_pretrained(
        parent
    )
    asked = job.TrainerJob(
        stages=("dpo",),
        base=base,
        data=str(data),
        judge="",
        parent_adapter=str(parent),
        hyperparameters={"epochs": 1},
        reward=RewardHyperparameters(),
        evaluation=EvaluationSettings(),
        seed=1,
    )
    texts: list[list[str]] = []

    def look(trainer: Any, _: Path) -> None:
        tokenizer = trainer.processing_class
        texts.extend(
            [tokenizer.decode(row[f"{side}_ids"]) for side in ("chosen", "rejected")]
            for row in trainer.train_dataset
        )
        (batch,) = trainer.get_train_dataloader()
        ends = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, 0) == 1
        assert ends.sum() == 4, "what was cut reaches the loss without an end"

    dpo.train, usual = look, dpo.train
    dpo.run(asked, attempt, job.Progress(attempt))
    dpo.train = usual
    return texts


def voted(rng: random.Random, count: int, prompt: int = 3) -> dict[str, Any]:
    """A pair whose texts have so many words."""
    return {
        "messages": turn(words(rng, prompt)),
        "chosen": f"thanks {words(rng, count)}",
        "rejected": f"no {words(rng, count)}",
    }


def turn(text: str) -> list[dict[str, str]]:
    """A prompt of one turn."""
    return [{"role": "user", "content": text}]


def words(rng: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(rng.choice(("red", "blue", "door", "ship", "order")) for _ in range(count))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
