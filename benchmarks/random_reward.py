"""A reward model with random weights on a base, for benchmarks of scoring.

    .venv-ml/bin/python -m benchmarks.random_reward FOLDER BASE

Runs in the ML environment, and has the recipe's LoRA and heads. What a pass takes does not depend on what the
weights say.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path, base: str) -> None:
    """Write the adapter as a training does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from shared.contracts.recipes import RewardHyperparameters

    torch.manual_seed(0)
    asked = RewardHyperparameters()
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=asked.heads)
    config = LoraConfig(
        r=asked.lora.rank,
        lora_alpha=asked.lora.alpha,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    get_peft_model(model, config).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
