"""Choice of the next prompt: the least covered category first, then what a rater has not seen. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from services.feedback.voting.plan import QueuedPrompt, VotingPlan

MAX_SNIPPET = 200
"""Characters of a question in a rater's history."""


def snippet(text: str) -> str:
    """The beginning of a question, by which it is shown and recognised."""
    return text[:MAX_SNIPPET]


class PromptQueue:
    """The prompts of a plan by category."""

    def __init__(self, plan: VotingPlan) -> None:
        by_category: defaultdict[str, list[QueuedPrompt]] = defaultdict(list)
        for prompt in plan.prompts:
            by_category[prompt.category or plan.category_of(prompt.text)].append(prompt)
        self._by_category = dict(by_category)

    def __bool__(self) -> bool:
        return bool(self._by_category)

    def choose(
        self, coverage: Mapping[str, int], seen: AbstractSet[str], rng: random.Random
    ) -> tuple[str, str] | None:
        """A prompt's text and category, or None where the queue is empty.

        `coverage` are today's votes by category, `seen` the beginnings (`snippet`) of what the rater
        has met today. Where everything was seen, prompts come again: another pair of answers is
        another comparison.
        """
        if not self._by_category:
            return None
        fresh = {
            category: unseen
            for category, prompts in self._by_category.items()
            if (unseen := [one for one in prompts if snippet(one.text) not in seen])
        } or self._by_category
        least = min(coverage.get(category, 0) for category in fresh)
        category = rng.choice(sorted(name for name in fresh if coverage.get(name, 0) == least))
        return rng.choice(fresh[category]).text, category
