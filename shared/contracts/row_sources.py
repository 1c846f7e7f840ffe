"""Sources of dataset rows that no person stands behind, and what only people may label."""

# pyright: strict
from __future__ import annotations

from shared.contracts.events.preferences import PairSource

AI, AUGMENTED = "ai", "augmented"
"""Sources of imported rows that an AI judge labelled, or whose prompt was varied."""
IMPORT = "import"
"""Source of other imported rows: what somebody preferred, where the file does not say otherwise."""
MACHINE_MADE = frozenset({PairSource.synthetic.value, AI, AUGMENTED})
HIGH_STAKES = ("medical", "legal", "financial")
"""Categories that no machine labels by default."""
MAX_AUGMENTED_SHARE = 0.2
"""Of rows whose prompt was varied, in a file and in a dataset."""
