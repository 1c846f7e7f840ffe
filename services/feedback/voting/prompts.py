"""Choice of the next prompt: least covered category, not seen, most informative. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from services.feedback.voting.plan import QueuedPrompt, VotingPlan
from shared.contracts.events.base import prompt_text

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
        self._informed_by: tuple[str, ...] = ()
        self._information: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._by_category)

    def inform(self, versions: tuple[str, ...], information: Mapping[str, float]) -> None:
        """Rank prompts anew, by their text; what other versions told of the others is forgotten."""
        if versions != self._informed_by:
            self._informed_by, self._information = versions, {}
        self._information.update(information)

    def choose(
        self,
        coverage: Mapping[str, int],
        seen: AbstractSet[str],
        rng: random.Random,
        *,
        ranked: bool = True,
    ) -> tuple[QueuedPrompt, str] | None:
        """A prompt and its category, or None where the queue is empty.

        `coverage` are today's votes by category, `seen` the beginnings (`snippet`) of what the rater
        has met today. In a category the most informative prompt comes first, or any where it is not
        to be `ranked`. Where everything was seen, prompts come again in any order: another pair of
        answers is another comparison.
        """
        if not self._by_category:
            return None
        unseen = {
            category: left
            for category, prompts in self._by_category.items()
            if (left := [one for one in prompts if snippet(prompt_text(one.turns)) not in seen])
        }
        fresh = unseen or self._by_category
        least = min(coverage.get(category, 0) for category in fresh)
        category = rng.choice(sorted(name for name in fresh if coverage.get(name, 0) == least))
        offered = fresh[category]
        if unseen and ranked:
            most = max(map(self._informative, offered))
            offered = [prompt for prompt in offered if self._informative(prompt) == most]
        return rng.choice(offered), category

    def _informative(self, prompt: QueuedPrompt) -> float:
        return self._information.get(prompt_text(prompt.turns), prompt.information)
