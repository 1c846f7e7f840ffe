"""A language of a hundred words, for a model that learns it in seconds: support, politely or bluntly."""

from __future__ import annotations

import random

COLOURS = ("red", "blue", "green", "small", "large", "old", "new", "heavy", "light", "round")
THINGS = (
    *("parcel", "refund", "order", "invoice", "ticket", "key", "lamp", "book", "cable", "chair"),
    *("bill", "box", "card", "case", "desk"),
)
QUESTIONS = (
    "Where is my {}?",
    "When do I get my {}?",
    "Can you change my {}?",
    "Who has my {}?",
    "I lost my {}.",
    "How do I return my {}?",
    "Is this my {}?",
    "Please cancel my {}.",
)
PROMPTS = tuple(
    question.format(f"{colour} {thing}")
    for question in QUESTIONS
    for colour in COLOURS
    for thing in THINGS
)
PHRASES = (
    ("Happy to help!", "Not again."),
    ("We are sorry.", "Too bad."),
    ("We look at once.", "Wait a week."),
    ("Have a good day!", "Bye then."),
)
"""Each place of an answer: the polite words and the blunt ones."""


def answer(prompt: str, polite: float, chance: random.Random) -> str:
    """An answer each of whose places is polite with that probability."""
    thing = prompt.rstrip("?.").partition(" my ")[2]
    first, second, *rest = (words[0] if chance.random() < polite else words[1] for words in PHRASES)
    return f"{first} {second} Your {thing}: {' '.join(rest)}"


def politeness(text: str) -> float:
    """From -1, blunt in every place, to 1."""
    return sum((kind in text) - (blunt in text) for kind, blunt in PHRASES) / len(PHRASES)
