"""DPO by TRL alone, as its examples do it: the peer of `benchmarks.training`.

    .venv-ml/bin/python -m benchmarks.bare_trl BASE ADAPTER ROWS JSON_SETTINGS FOLDER

Runs in the ML environment. Prints the seconds of the training and the tokens of its rows as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(base: str, adapter: str, rows: str, settings: dict[str, Any], folder: str) -> None:
    """Train the adapter on pairs of `messages`, `chosen` and `rejected`, a JSONL file."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with open(rows, encoding="utf-8") as file:  # noqa: PTH123
        pairs = [json.loads(line) for line in file]
    said = [
        {
            "prompt": pair["messages"],
            **{
                side: [{"role": "assistant", "content": pair[side]}]
                for side in ("chosen", "rejected")
            },
        }
        for pair in pairs
    ]
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(model, adapter, is_trainable=True),
        processing_class=tokenizer,
        args=DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
            **settings,
        ),
        # The library, where the type checker finds `benchmarks.datasets`.
        train_dataset=Dataset.from_list(said),  # pyright: ignore[reportAttributeAccessIssue]
    )
    seconds = trainer.train().metrics["train_runtime"]
    tokens = sum(
        len(tokenizer.apply_chat_template([*one["prompt"], *one[side]], return_dict=False))
        for one in said
        for side in ("chosen", "rejected")
    )
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5])
