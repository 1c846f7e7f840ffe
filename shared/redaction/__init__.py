"""Redaction: removes personal data and secrets before anything is stored (requirement P9)."""

from shared.redaction.redactor import Redacted, Redactor

__all__ = ["Redacted", "Redactor"]
