"""What can go wrong in the aggregator."""

from __future__ import annotations

from pathlib import Path

from shared.contracts.events.dead_letters import DeadLetterReason


class AggregatorError(Exception):
    """Base of this service's errors."""


class EventRefused(AggregatorError):
    """An event that was read but cannot be folded; it goes to the dead letters."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


class UnknownFormat(AggregatorError):
    """A checkpoint of another generation of this service, whose figures must not be guessed at."""


class PartMissing(AggregatorError):
    """A checkpoint lacks a part that it names, so its figures are not whole."""


class DataDirUnusable(AggregatorError):
    """The directory that Faust needs cannot be made."""


class StateUnusable(AggregatorError):
    """The state on disk cannot be opened, read or written; the changelog has all of it."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"state in {path}: {reason}; make room or repair the volume and start again: nothing is "
            "lost, and whatever is missing there is restored from the changelog"
        )


class WriteFailed(AggregatorError):
    """The brokers did not confirm a write; whether it was stored is unknown."""


class CheckpointTooLarge(AggregatorError):
    """A checkpoint that the brokers would refuse; nothing of its batch was written."""


class TextSecretMissing(AggregatorError):
    """Events have encrypted texts, and this service has no secret for them."""
