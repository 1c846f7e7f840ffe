"""Personal data and secrets are taken out before anything is stored (requirement P9)."""

from shared.redaction.redactor import Redacted, Redactor

__all__ = ["Redacted", "Redactor"]
