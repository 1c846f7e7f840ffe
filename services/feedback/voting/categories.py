"""Question categories and their rule classifier (requirement P3). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

OTHER = "other"
"""Category of a question that no rule matches."""

CategoryName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
_Phrase = Annotated[str, Field(min_length=1, max_length=60)]


class QuestionCategory(BaseModel):
    """A category, and the words or phrases by which its questions are recognised."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: CategoryName
    words: Annotated[tuple[_Phrase, ...], Field(max_length=100)] = ()

    def matches(self, question: str) -> bool:
        """Whether one of its words stands in the question as a whole word, in any case."""
        return self._pattern is not None and self._pattern.search(question) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.words:
            return None
        words = "|".join(re.escape(word) for word in self.words)
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


DEFAULT_CATEGORIES = (
    QuestionCategory(
        name="comparison",
        words=("compare", "versus", "vs", "difference between", "better", "or rather"),
    ),
    QuestionCategory(
        name="creative",
        words=("write", "poem", "story", "slogan", "imagine", "invent", "draft", "joke"),
    ),
    QuestionCategory(
        name="problem_solving",
        words=(
            "fix",
            "solve",
            "error",
            "fails",
            "broken",
            "does not work",
            "how do i",
            "how can i",
        ),
    ),
    QuestionCategory(
        name="explanation", words=("explain", "why", "how does", "how do", "what does", "teach")
    ),
    QuestionCategory(
        name="factual_qa", words=("what", "who", "when", "where", "which", "how many", "how much")
    ),
)
"""The five of requirement P3. The first that matches counts, so the most general comes last."""


def classify(question: str, categories: Sequence[QuestionCategory]) -> str:
    """The name of the first category whose rule matches, or OTHER."""
    return next((one.name for one in categories if one.matches(question)), OTHER)
