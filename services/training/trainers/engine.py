"""`python -m services.training.trainers.engine`: vLLM, asked by lines of JSON on standard input.

`generation.AnswerEngine` is the other side. Answers go to standard output, a line each; whatever the
libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Iterator
from typing import Any

MAX_CAUSE = 500
"""Characters of vLLM's own words that are kept."""


def main() -> None:
    """Start the engine that the first line describes, then do what each further one asks."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines = (json.loads(line) for line in sys.stdin.buffer)
    try:
        for answer in _answers(lines):
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        cause = f"{type(error).__name__}: {error}"[:MAX_CAUSE]
        answers.write(json.dumps({"error": cause}).encode() + b"\n")
        answers.flush()


def _answers(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    plan = next(lines)
    import vllm

    llm = vllm.LLM(
        **plan,
        enable_lora=True,
        distributed_executor_backend="uni",
        # What a method compares with its own probabilities is what was drawn from.
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        seed=0,
    )
    yield {"vllm": vllm.__version__}
    for asked in lines:
        if "forget" in asked:
            llm.llm_engine.remove_lora(asked["forget"])
            yield {}
        else:
            yield _written(llm, asked)


def _written(llm: Any, asked: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    chance = random.Random(asked["seed"])
    settings = [
        SamplingParams(
            temperature=asked["temperature"],
            max_tokens=asked["max_tokens"],
            repetition_penalty=asked["repetition_penalty"],
            stop_token_ids=asked["ends"],
            seed=chance.getrandbits(48),
            logprobs=0,
            detokenize=False,
        )
        for _ in asked["prompts"]
    ]
    adapter = None
    if asked["adapter"]:
        adapter = LoRARequest(str(asked["number"]), asked["number"], asked["adapter"])
    found = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in asked["prompts"]],
        settings,
        lora_request=adapter,
        use_tqdm=False,
    )
    said = [one.outputs[0] for one in found]
    return {
        "ids": [list(one.token_ids) for one in said],
        "logprobs": [
            [at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)]
            for one in said
        ],
    }


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    # The orderly end of torch's interpreter takes seconds, and the other side waits for none.
    os._exit(0)
