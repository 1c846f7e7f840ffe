"""Makes a tiny random Qwen2 and random LoRA adapters with their fingerprints. Runs in `.venv-ml`.

`python tests/integration/tiny_models.py <folder>` writes `base/`, one folder per adapter, and
`fingerprints.json` with each adapter's eight texts as tokens and log-probabilities.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.registry.adapters import FINGERPRINT_TEXTS

ADAPTERS = ("tiny-v1.0", "tiny-v1.1", "tiny-v1.2", "tiny-v1.3")
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|end|>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    made.chat_template = CHAT
    return made


def base() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=257,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            dtype="float32",
        )
    ).eval()


def adapter(folder: Path, name: str, seed: int) -> None:
    made = get_peft_model(base(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    torch.manual_seed(seed)
    for key, weights in made.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(weights, std=0.12)
    made.save_pretrained(folder / name)


@torch.no_grad()
def fingerprint(model: torch.nn.Module, tokens: list[list[int]]) -> list[dict[str, list[float]]]:
    texts = []
    for ids in tokens:
        row = torch.tensor([ids])
        scores = model(input_ids=row).logits.log_softmax(-1)[0, :-1]
        chosen = scores.gather(-1, row[0, 1:, None])[:, 0]
        texts.append({"tokens": ids, "logprobs": chosen.tolist()})
    return texts


def main(folder: Path) -> None:
    # Two threads that wait for each other crawl where every core is taken.
    torch.set_num_threads(1)
    made = tokenizer()
    base().save_pretrained(folder / "base")
    made.save_pretrained(folder / "base")
    tokens = [made.encode(text, add_special_tokens=False) for text in FINGERPRINT_TEXTS]
    fingerprints = {"base": fingerprint(base(), tokens)}
    for seed, name in enumerate(ADAPTERS, start=1):
        adapter(folder, name, seed)
        loaded = PeftModel.from_pretrained(base(), str(folder / name)).eval()
        fingerprints[name] = fingerprint(loaded, tokens)
    (folder / "fingerprints.json").write_text(json.dumps(fingerprints))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
