"""Fingerprint check: is the loaded adapter the registered one (design invariant 8)? Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from shared.contracts.events.versions import Fingerprint
from shared.registry.adapters import DISTINCTION, mean_absolute_difference


class FingerprintFault(StrEnum):
    """Why a fingerprint is refused. Only `too_close` can be overruled by a person."""

    none = ""
    mismatch = "mismatch"
    too_close = "too_close"


@dataclass(frozen=True)
class FingerprintCheck:
    """Result of one fingerprint check. Differences are in nats."""

    fault: FingerprintFault
    reason: str
    difference: float
    distances: Mapping[str, float]


def check_fingerprint(
    recorded: Fingerprint,
    answered: Fingerprint,
    others: Mapping[str, Fingerprint],
    tolerance: float,
    accepted: Collection[str] = (),
) -> FingerprintCheck:
    """Compare an adapter's answers with its record, and with all it could be mistaken for.

    It must lie within one tolerance of its record and farther than five from every other.

    Args:
        recorded: What training recorded.
        answered: What the engine answers under the adapter's name.
        others: What base, parent and the other loaded adapters answer to the same tokens.
        tolerance: Mean absolute difference, in nats, still taken for the same.
        accepted: Those of the others that people said it may be close to.

    """
    difference = mean_absolute_difference(recorded, answered)
    distances = {name: mean_absolute_difference(answered, other) for name, other in others.items()}
    nearest = min(distances, key=lambda name: distances[name], default="")
    if not difference < tolerance:
        alike = nearest and distances[nearest] < tolerance
        return FingerprintCheck(
            FingerprintFault.mismatch,
            f"its answers differ by {difference:.4g} nats from those recorded at training; "
            f"less than {tolerance:g} is right" + (f"; it answers like {nearest}" if alike else ""),
            difference,
            distances,
        )
    close = [name for name in too_close(distances, tolerance) if name not in accepted]
    if close:
        return FingerprintCheck(
            FingerprintFault.too_close,
            "its answers differ by only "
            + ", ".join(f"{distances[name]:.4g} nats from those of {name}" for name in close)
            + f"; more than {DISTINCTION * tolerance:g} tells two apart; "
            "somebody must accept it (POST /v1/adapters/<version>/accept)",
            difference,
            distances,
        )
    return FingerprintCheck(FingerprintFault.none, "", difference, distances)


def too_close(distances: Mapping[str, float], tolerance: float) -> list[str]:
    """Names no farther than five tolerances, the nearest first."""
    limit = DISTINCTION * tolerance
    return sorted(
        (name for name, distance in distances.items() if not distance > limit),
        key=lambda name: distances[name],
    )
