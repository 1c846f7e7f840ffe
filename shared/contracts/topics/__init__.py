"""The topics: their names, and their declarations in the YAML files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

INTERACTIONS = "ratchet.interactions.v1"
FEEDBACK = "ratchet.feedback.v1"
RATED = "ratchet.rated.v1"
PREFERENCES = "ratchet.preferences.v1"
EXAMPLES = "ratchet.examples.v1"
ANNOTATIONS = "ratchet.annotations.v1"
CASES = "ratchet.cases.v1"
QUALITY = "ratchet.quality.v1"
TICKS = "ratchet.ticks.v1"
AGGREGATOR_CHANGELOG = "ratchet.aggregator-joins-changelog"
GENERATION_REQUESTS = "ratchet.generations.requests.v1"
GENERATION_RESULTS = "ratchet.generations.results.v1"
TRAINING_JOBS = "ratchet.training.jobs.v1"
TRAINING_RUNS = "ratchet.training.runs.v1"
REMINDERS = "ratchet.reminders.v1"
VERSIONS = "ratchet.versions.v1"
ROLLOUTS = "ratchet.rollouts.v1"
ROLLOUT_HOLDS = "ratchet.rollout-holds.v1"
API_KEYS = "ratchet.api-keys.v1"
AUDIT = "ratchet.audit.v1"
DEAD_LETTERS = "ratchet.dead-letters.v1"
ERASURES = "ratchet.erasures.v1"
USER_KEYS = "ratchet.user-keys.v1"

TOPICS_DIR = Path(__file__).parent


def intake_topic(tenant: str) -> str:
    """The topic that a tenant's products publish feedback to."""
    return f"ratchet.feedback-intake.{tenant}.v1"


class Topic(BaseModel):
    """One file of `contracts/topics`. `{tenant}` in the name makes a topic for each tenant."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^ratchet\.[a-z0-9.{}-]+$")
    description: str = Field(min_length=20)
    key: str
    partitions: Literal["join"] | int = Field(
        description="join: as many as the interactions topic, so that keys meet"
    )
    writers: tuple[str, ...] = Field(description="services that write it, as their code says")
    readers: tuple[str, ...] = Field(description="services that read it, as their code says")
    events: tuple[str, ...] = Field(description="class names in shared.contracts.events")
    config: dict[str, str]

    def for_tenants(self, tenants: tuple[str, ...]) -> tuple[Topic, ...]:
        """The topic itself, or one for each tenant where the name has `{tenant}`."""
        if "{tenant}" not in self.name:
            return (self,)
        return tuple(
            self.model_copy(update={"name": self.name.replace("{tenant}", tenant)})
            for tenant in tenants
        )


def load_topics(directory: Path = TOPICS_DIR) -> tuple[Topic, ...]:
    """All declared topics, by name."""
    topics = [
        Topic.model_validate(yaml.safe_load(path.read_text()))
        for path in sorted(directory.glob("*.yaml"))
    ]
    return tuple(sorted(topics, key=lambda topic: topic.name))
