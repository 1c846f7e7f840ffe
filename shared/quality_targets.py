"""Targets of live quality figures (requirement F7)."""

from __future__ import annotations

TARGETS = {
    "feedback_rate": ("Feedback rate", ">", 0.05),
    "positive_ratio": ("Positive ratio", ">", 0.70),
    "correction_rate": ("Correction rate", "<", 0.10),
    "satisfaction": ("Satisfaction (0 to 1)", ">", 0.75),
}
"""Title, direction and target by figure; 4.0 of 5 is 0.75 between 0 and 1."""
