"""What can go wrong in the demo, in words for the person who watches it."""

from __future__ import annotations


class StepFailed(Exception):
    """A step of the demo did not come to what it promises; the message says what and where to look."""
