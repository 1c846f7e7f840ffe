"""Every event class that travels, by its CloudEvents type, and by the topic it travels on."""

from __future__ import annotations

from shared.contracts import events
from shared.contracts.events import Event
from shared.kafka.topics import Topic, load_topics
from shared.keys import ApiKeyIssued
from shared.registry.rollouts import Decision, LeaderElected
from shared.registry.versions import VersionMarks, VersionRecord, VersionState

EVENTS: tuple[type[Event], ...] = (
    events.InteractionRecorded,
    events.FeedbackSubmitted,
    events.FeedbackWithdrawn,
    events.VoteCast,
    events.RatedAnswer,
    events.RatedScore,
    events.PreferencePair,
    events.UnpairedExample,
    events.PreferenceRetracted,
    events.ExampleJoined,
    events.QualityWindow,
    events.Tick,
    events.GenerationRequested,
    events.GenerationFinished,
    events.TrainingRequested,
    events.TrainingProgress,
    events.DeadLetter,
    VersionRecord,
    VersionState,
    VersionMarks,
    LeaderElected,
    Decision,
    ApiKeyIssued,
)

BY_NAME = {event.__name__: event for event in EVENTS}
BY_TYPE = {event.ce_type: event for event in EVENTS}


def events_of(topic: Topic) -> tuple[type[Event], ...]:
    """The classes on a topic.

    Raises:
        KeyError: the topic's file names a class that does not exist.

    """
    return tuple(BY_NAME[name] for name in topic.events)


def topics_of(event: type[Event]) -> tuple[str, ...]:
    """The names of the topics an event travels on."""
    return tuple(topic.name for topic in load_topics() if event.__name__ in topic.events)
