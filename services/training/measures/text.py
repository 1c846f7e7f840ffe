"""Sentiment and coherence of one answer, from its words alone. Pure; English lexicon.

They compare two models on the same prompts: what the rule gets wrong, it gets wrong for both.
"""

# pyright: strict
from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

LEXICON = Path(__file__).with_name("sentiment.txt")
"""Own list: a word and 1 or -1 a line."""
NEGATIONS = frozenset(
    [
        "not",
        "no",
        "never",
        "cannot",
        "can't",
        "don't",
        "doesn't",
        "didn't",
        "isn't",
        "aren't",
        "wasn't",
        "won't",
        "without",
    ]
)
NEGATED_WITHIN = 3
"""Words after a negation whose sentiment it turns."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "have",
        "he",
        "her",
        "his",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "may",
        "me",
        "my",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "when",
        "which",
        "who",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def sentiment(text: str) -> float:
    """Positive against negative words, in [0, 1]; one half where there are none or as many.

    A negation turns the words that follow it (Pang, Lee and Vaithyanathan 2002).
    """
    known, total, found, negated = _lexicon(), 0, 0, 0
    for word in _words(text):
        if word in NEGATIONS:
            negated = NEGATED_WITHIN
            continue
        value = known.get(word, 0)
        total += -value if negated else value
        found += value != 0
        negated = max(0, negated - 1)
    return (1 + total / found) / 2 if found else 0.5


def coherence(prompt: str, answer: str) -> float:
    """Mean cosine of neighbouring sentences' content words, in [0, 1]; the prompt comes first.

    Foltz, Kintsch and Landauer (1998) on word counts, which need no model.
    """
    sentences = [prompt, *(one for one in _SENTENCE.split(answer) if _content(one))]
    counts = [_content(one) for one in sentences]
    cosines = [_cosine(one, other) for one, other in pairwise(counts)]
    return sum(cosines) / len(cosines) if cosines else 0.0


def _words(text: str) -> list[str]:
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


def _content(text: str) -> Counter[str]:
    return Counter(word for word in _words(text) if word not in FUNCTION_WORDS)


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    dot = sum(count * other[word] for word, count in one.items())
    norm = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return dot / norm if norm else 0.0


@cache
def _lexicon() -> dict[str, int]:
    lines = LEXICON.read_text("utf-8").splitlines()
    return {word: int(value) for word, value in (line.split() for line in lines)}
