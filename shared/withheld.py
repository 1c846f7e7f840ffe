"""What stands for a text that is withheld. The trainer's environment, which has no redactor, knows it too."""

from __future__ import annotations

UNCHECKED = "[UNCHECKED]"
"""Stands for a text that the detector of personal data could not check."""
