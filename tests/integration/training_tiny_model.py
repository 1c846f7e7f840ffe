"""`python training_tiny_model.py <folder>` in the ML environment: a random Qwen2 of 2 layers × 32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def main(folder: Path) -> None:
    """Write tokenizer and model in Hugging Face form."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = in_turns(Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [])))
    tokenizer.save_pretrained(folder)
    tiny_qwen2(len(tokenizer)).save_pretrained(folder)


def in_turns(core: Any) -> Any:
    """A tokenizer of bytes, or of what is learnt from them, with the chat template."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
    )


def tiny_qwen2(vocabulary: int, width: int = 32) -> Any:
    """The random model, the same one each time."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            dtype="float32",
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
