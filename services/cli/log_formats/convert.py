"""Submissions from a log, line by line: the feedback of the good rows, and why the others have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from pydantic import ValidationError

from services.cli.log_formats.chat_log import CHAT_LOG
from services.cli.log_formats.langfuse import LANGFUSE
from services.cli.log_formats.litellm import LITELLM
from services.cli.log_formats.logged import LogFormat, LoggedAnswer
from services.cli.log_formats.openai_completions import OPENAI_COMPLETIONS
from services.cli.pair_formats.convert import BadLine, form_among, json_object
from services.cli.pair_formats.pair import BadPair
from shared.contracts.events.feedback import (
    BAD_SCORE,
    GOOD_SCORE,
    RATINGS,
    FeedbackType,
    satisfaction,
)
from shared.contracts.events.intake import Submission

LOG_FORMATS = {one.name: one for one in (CHAT_LOG, LANGFUSE, LITELLM, OPENAI_COMPLETIONS)}
PAIRS_PER_ANSWER = 2
"""Pairs that a new answer makes with earlier ones to the same prompt, as the aggregator makes them."""
THUMBS = (FeedbackType.thumbs_up, FeedbackType.thumbs_down)
PAIRED = (FeedbackType.text_correction, FeedbackType.demonstration)


@dataclass(frozen=True, slots=True)
class LoggedFeedback:
    """The submissions of one line."""

    line: int
    submissions: tuple[Submission, ...]


def detected_log(line: bytes) -> LogFormat:
    """The form of a log; as `form_among`."""
    return form_among(LOG_FORMATS, line)


def feedback_of(
    lines: Iterable[bytes], form: LogFormat, *, source: str, model: str
) -> Iterator[LoggedFeedback | BadLine]:
    """Each line's feedback, or why it has none; empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answer = form.read(json_object(line))
            yield LoggedFeedback(number, tuple(_submissions(answer, source, model)))
        except BadPair as error:
            yield BadLine(number, str(error))
        except ValidationError as error:
            (first, *_) = error.errors(include_url=False)
            yield BadLine(number, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _submissions(answer: LoggedAnswer, source: str, model: str) -> Iterator[Submission]:
    for verdict in answer.verdicts:
        yield Submission(
            trace_id=answer.trace_id,
            type=verdict.kind,
            value=verdict.value,
            user_id=answer.user_id,
            source=source,
            model=model,
            version=answer.version,
            prompt=answer.prompt,
            completion=answer.completion,
            timestamp=answer.timestamp,
            metadata=dict(answer.metadata or {}),
        )


@dataclass(slots=True)
class ImportForecast:
    """What would become of an import, by the aggregator's rules; it keeps one digest an answer."""

    feedback: int = 0
    anonymous: int = 0
    """Of them without a user: they count, and teach nothing."""
    pairs: int = 0
    unpaired: int = 0
    _answers: defaultdict[bytes, tuple[list[bytes], list[bytes]]] = field(
        default_factory=lambda: defaultdict(lambda: ([], []))
    )
    """By prompt: the newest bad and good answers."""

    def take(self, found: LoggedFeedback) -> None:
        """Count a line's feedback."""
        for one in found.submissions:
            self.feedback += 1
            if not one.user_id:
                self.anonymous += 1
                continue
            self.unpaired += one.type in THUMBS
            self.pairs += one.type in PAIRED
            score = satisfaction(one.type, one.value) if one.type in RATINGS else None
            if score is not None and not BAD_SCORE < score < GOOD_SCORE:
                self._pair(one, good=score >= GOOD_SCORE)

    def _pair(self, one: Submission, *, good: bool) -> None:
        answer = _digest(one.completion)
        sides = self._answers[_digest(one.prompt)]
        self.pairs += sum(other != answer for other in sides[not good][-PAIRS_PER_ANSWER:])
        sides[good].append(answer)
        del sides[good][:-PAIRS_PER_ANSWER]


def _digest(text: str) -> bytes:
    return blake2b(text.strip().encode(), digest_size=8).digest()
