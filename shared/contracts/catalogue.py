"""Every event class that travels, by its schema's name, and by the topic it travels on."""

from __future__ import annotations

from shared.contracts.events.annotations import AnnotationGiven, AnnotationItemAdded
from shared.contracts.events.api_keys import ApiKeyIssued
from shared.contracts.events.audit import ActionAudited
from shared.contracts.events.base import Event
from shared.contracts.events.cases import CaseFound, CaseRetired
from shared.contracts.events.dead_letters import DeadLetter, DeadLetterReplayed
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested, TraceErased
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.events.intake import SignalSubmission, Submission, Withdrawal
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted, UnpairedExample
from shared.contracts.events.quality import ExampleJoined, QualityWindow, Tick
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.reminders import ReminderClaimed
from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.training import (
    TrainingCancelled,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.user_keys import UserKeyIssued
from shared.contracts.events.versions import (
    RewardRecord,
    SettingsEvaluation,
    SettingsRecord,
    VersionMarks,
    VersionRecord,
    VersionState,
)
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import Topic

EVENTS: tuple[type[Event], ...] = (
    InteractionRecorded,
    FeedbackSubmitted,
    FeedbackWithdrawn,
    SignalObserved,
    VoteCast,
    TraceErased,
    RatedAnswer,
    RatedScore,
    PreferencePair,
    UnpairedExample,
    PreferenceRetracted,
    AnnotationItemAdded,
    AnnotationGiven,
    CaseFound,
    CaseRetired,
    ExampleJoined,
    QualityWindow,
    Tick,
    GenerationRequested,
    GenerationFinished,
    TrainingRequested,
    TrainingCancelled,
    TrainingProgress,
    ReminderClaimed,
    DeadLetter,
    DeadLetterReplayed,
    VersionRecord,
    SettingsEvaluation,
    SettingsRecord,
    VersionState,
    VersionMarks,
    RewardRecord,
    LeaderElected,
    Decision,
    ApiKeyIssued,
    ActionAudited,
    ErasureRequested,
    ErasureCompleted,
    UserKeyIssued,
)

INTAKE: dict[str, type[Event]] = {
    "ratchet.feedback-intake.submitted.v1": Submission,
    "ratchet.feedback-intake.signal.v1": SignalSubmission,
    "ratchet.feedback-intake.withdrawn.v1": Withdrawal,
}
"""What products send. The CloudEvents types are those of the stored events, the bodies are not."""

BY_SCHEMA: dict[str, type[Event]] = {**{event.ce_type: event for event in EVENTS}, **INTAKE}
_BY_NAME = {event.__name__: event for event in BY_SCHEMA.values()}


def events_of(topic: Topic) -> tuple[type[Event], ...]:
    """The classes on a topic.

    Raises:
        KeyError: the topic's file names a class that does not exist.

    """
    return tuple(_BY_NAME[name] for name in topic.events)
