"""The corpus: splits that never meet, styles that follow their mix."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from demo import tastes
from deploy.starter import corpus
from deploy.starter.topics import CATEGORIES, CONCRETE, TOPICS

PROMPTS = corpus.all_prompts()


def test_there_are_thousands_of_distinct_prompts_in_every_category() -> None:
    assert len({prompt.text.lower() for prompt in PROMPTS}) == len(PROMPTS) > 4000
    counts = Counter(prompt.category for prompt in PROMPTS)
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) > 500


def test_each_prompt_is_in_one_split_and_the_checks_have_enough() -> None:
    splits = {name: {p.text for p in corpus.prompts_of(name)} for name in corpus.SPLITS}
    assert sum(map(len, splits.values())) == len(PROMPTS)
    assert len(set[str]().union(*splits.values())) == len(PROMPTS)
    assert len(splits["eval"]) >= 400


def test_no_two_topics_share_a_noun_and_every_sentence_names_its_topic() -> None:
    nouns = [topic.noun for topic in TOPICS]
    assert len(set(nouns)) == len(nouns)
    for topic in TOPICS:
        for form in CONCRETE.values():
            text = form.format(**asdict(topic))
            asked = tastes.notice(f"The {topic.noun}?", text)
            assert asked.relevance > 0, (topic.noun, text)
            assert asked.concreteness > 0, (topic.noun, text)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mix_decides_each_style(share: float) -> None:
    mix = corpus.Mix(share, 0.0, share, share, share, 1 - share)
    rng = random.Random(1)
    for prompt in rng.sample(PROMPTS, 50):
        seen = tastes.notice(prompt.text, corpus.answer(prompt, mix, rng))
        assert (seen.tone > 0) == bool(share)
        assert (seen.relevance > 0) == bool(share)
        assert (seen.concreteness > 0) == bool(share)
        assert (seen.stopping > 0) == bool(share)


def test_conversations_are_the_same_for_the_same_seed() -> None:
    once, again = (corpus.conversations(20, corpus.SFT_MIX, 7) for _ in range(2))
    assert once == again
    assert once != corpus.conversations(20, corpus.SFT_MIX, 8)
    assert {prompt.split for prompt, _ in once} == {"train"}


def test_demonstrations_are_written_in_conversational_form(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    rows = corpus.conversations(5, corpus.SFT_MIX, 0)
    corpus.write_sft(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in lines] == [prompt.text for prompt, _ in rows]
    assert [row["completion"][0]["content"] for row in lines] == [text for _, text in rows]
