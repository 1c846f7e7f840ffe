"""Foreign answers: feedback of old logs and other gateways that brings its own prompt and answer. Pure.

Such a submission names its `source` and is stored under the trace id `<source>:<trace_id>`, which
no router gives. The aggregator makes the interaction of it.
"""

from __future__ import annotations

from services.feedback.errors import invalid
from shared.contracts.events.intake import SignalSubmission, Submission
from shared.errors import FieldError

_RECORDED = ("prompt", "completion", "version", "model")
_NEEDED = ("prompt", "completion", "model")


def check_source(submission: Submission) -> None:
    """Check that a submission has what its source asks for, or nothing that the router recorded.

    Raises:
        Invalid: a text that nothing would read, or one that is missing.

    """
    brought = submission.prompt or submission.completion or submission.version or submission.model
    if not (submission.source or brought):
        return
    if submission.source:
        rule = "is required where source is named"
        remedy = (
            "send prompt and completion of the log, and the model whose datasets they may enter"
        )
        wrong = [name for name in _NEEDED if not getattr(submission, name).strip()]
    else:
        rule = "is recorded with the interaction of the trace_id"
        remedy = "leave it out, or name in source where the answer is from if no router gave it"
        wrong = [name for name in _RECORDED if getattr(submission, name)]
    if wrong:
        raise invalid([FieldError(name, rule, remedy) for name in wrong])


def stored_trace_id(submission: Submission | SignalSubmission) -> str:
    """The trace id under which a submission is stored."""
    source = submission.source if isinstance(submission, Submission) else ""
    return f"{source}:{submission.trace_id}" if source else submission.trace_id
