"""A base with random weights in the shape of a published one, for benchmarks of large bases.

    .venv-ml/bin/python -m benchmarks.random_base FOLDER SIZE TOKENIZER

Runs in the ML environment. What a step takes in time and memory does not depend on what the weights say.
"""

from __future__ import annotations

import sys
from pathlib import Path

SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "layers": 24, "heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "layers": 28, "heads": 12},
}
"""Qwen2-0.5B and Qwen2-1.5B (arXiv 2407.10671, table 1); both have two heads of keys."""
VOCABULARY = 151_936


def main(folder: Path, size: str, tokenizer: str) -> None:
    """Write tokenizer and model in Hugging Face form; prints the number of weights."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = SHAPES[size]
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=shape["hidden_size"],
            intermediate_size=shape["intermediate_size"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=2,
            tie_word_embeddings=True,
            pad_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
            bos_token_id=None,
        )
    ).to(torch.bfloat16)
    tokens.save_pretrained(folder)
    model.save_pretrained(folder)
    print(sum(weight.numel() for weight in model.parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
