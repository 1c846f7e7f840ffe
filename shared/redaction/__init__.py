"""Redaction: removes personal data and secrets before anything is stored (requirement P9)."""

from shared.redaction.detection import Redact, Redaction, TextDetector, redacted
from shared.redaction.redactor import Redacted, Redactor

__all__ = ["Redact", "Redacted", "Redaction", "Redactor", "TextDetector", "redacted"]
