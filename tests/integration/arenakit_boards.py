"""arenakit's boards with planted defects, and what its audit says; run where it is found.

    python tests/integration/arenakit_boards.py RESAMPLES

Prints a JSON array: of each board its key, the probes that arenakit says fire, those that fired, the
strengths that it fitted, and the votes as first, second, winner and voter.
"""

from __future__ import annotations

import json
import sys

from arenakit.demo import DEMOS
from arenakit.probes import run_audit

RESAMPLES = int(sys.argv[1])

boards = []
for demo in DEMOS:
    arena = demo.build()
    found = run_audit(arena, n_resamples=RESAMPLES)
    names = arena.models
    votes = zip(
        arena.a.tolist(), arena.b.tolist(), arena.y.tolist(), arena.voter.tolist(), strict=True
    )
    boards.append(
        {
            "key": demo.key,
            "expect": sorted(demo.expect),
            "fired": sorted(found.flags),
            "strengths": {row["model"]: row["score"] for row in found.leaderboard},
            "votes": [
                [names[first], names[second], ("left", "right", "tie")[won], f"voter-{voter}"]
                for first, second, won, voter in votes
            ],
        }
    )
json.dump(boards, sys.stdout)
