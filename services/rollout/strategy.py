"""A rollout's strategy: steps, limits and the judge's settings."""

# pyright: strict
from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from services.rollout.freeze import FreezeWindow
from services.rollout.units import Seconds, Share, Weight
from shared.contracts.events.base import WEIGHT_SCALE

MAX_STEPS = 64
MAX_FREEZES = 32


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Minimum(_Part):
    """How much of the candidate's evidence a step needs, counted since the weight was set."""

    requests: int = Field(default=0, ge=0, description="judged attempts of the candidate")
    feedback: int = Field(default=0, ge=0, description="scored feedback of the candidate")


class ShadowOf(_Part):
    """How many live requests the candidate answers unseen, and how many answers there must be."""

    share: Weight = Field(description="percent of the live requests")
    minimum: int = Field(default=100, ge=1, description="answers that were compared")
    duration: Seconds = 0.0
    error_limit: Share = Field(
        default=0.05, alias="errorLimit", description="share of failed answers that is kept"
    )
    deadline: Seconds | None = Field(default=None, description="people are called after it")

    @model_validator(mode="after")
    def _mirrors_something(self) -> ShadowOf:
        if self.share == 0:
            raise ValueError("share: must be above 0, or no answer would ever be compared")
        return self


class Shadow(_Part):
    """Has the candidate answer live requests that stable answers, seen by nobody."""

    shadow: ShadowOf

    @property
    def name(self) -> str:
        """The step in an operator's words."""
        share = self.shadow.share * 100 / WEIGHT_SCALE
        return f"shadow {share:g} % ({self.shadow.minimum} answers)"


class SetWeight(_Part):
    """Gives the candidate a share of the users."""

    set_weight: Weight = Field(alias="setWeight")
    error_limit: Share | None = Field(default=None, alias="errorLimit")

    @property
    def name(self) -> str:
        """The step in an operator's words."""
        return f"setWeight {self.set_weight * 100 / WEIGHT_SCALE:g} %"


class PauseFor(_Part):
    """How long to wait. Without a duration a person has to let the rollout on."""

    duration: Seconds | None = None
    deadline: Seconds | None = Field(default=None, description="people are called after it")
    four_eyes: bool = Field(
        default=False,
        alias="fourEyes",
        description="of a gate: the key that started the rollout may not let it on",
    )
    approval: bool = Field(
        default=False, description="of a gate: only a key issued as approver's lets it on"
    )

    until_proven: bool = Field(
        default=False,
        alias="untilProven",
        description="ends early once satisfaction is shown to be above stable's",
    )

    @model_validator(mode="after")
    def _a_gate_has_no_end(self) -> PauseFor:
        for name, given in (("fourEyes", self.four_eyes), ("approval", self.approval)):
            if given and self.duration is not None:
                raise ValueError(f"{name}: holds for a gate, so leave the duration out")
        if self.until_proven and self.duration is None:
            raise ValueError("untilProven: ends a duration early, so give one")
        return self


class Pause(_Part):
    """Waits; the judge looks on."""

    pause: PauseFor

    @property
    def name(self) -> str:
        """The step in an operator's words."""
        if self.pause.duration is None:
            article, who = ("an", "approver") if self.pause.approval else ("a", "person")
            return f"pause until {'another' if self.pause.four_eyes else article} {who} lets it on"
        return f"pause {self.pause.duration:g} s"


class AnalysisOf(_Part):
    """What must be in before the step ends."""

    minimum: Minimum = Minimum()
    deadline: Seconds | None = Field(default=None, description="people are called after it")


class Analysis(_Part):
    """Waits until the judge has seen enough and found nothing."""

    analysis: AnalysisOf

    @property
    def name(self) -> str:
        """The step in an operator's words."""
        needed = self.analysis.minimum
        return f"analysis ({needed.requests} requests, {needed.feedback} feedback)"


KINDS = {
    "shadow": "Shadow",
    "setWeight": "SetWeight",
    "pause": "Pause",
    "analysis": "Analysis",
}
"""Kinds of steps: the key in a file, and the class."""


def _kind(step: object) -> str | None:
    if isinstance(step, Shadow | SetWeight | Pause | Analysis):
        return type(step).__name__
    if isinstance(step, dict):
        return next((KINDS[key] for key in KINDS if key in step), None)
    return None


Step = Annotated[
    Annotated[Shadow, Tag("Shadow")]
    | Annotated[SetWeight, Tag("SetWeight")]
    | Annotated[Pause, Tag("Pause")]
    | Annotated[Analysis, Tag("Analysis")],
    Discriminator(_kind),
]


class BehaviourRule(_Part):
    """One behaviour criterion."""

    margin: Annotated[float, Field(ge=1, le=100)] = Field(
        default=2.0, description="times stable's figure that are still kept"
    )
    guard: bool = Field(
        default=False, description="a breach fails the candidate; else it is advice"
    )


class BehaviourSettings(_Part):
    """What answers do, by rule, against stable."""

    refusals: BehaviourRule = BehaviourRule()
    cuts: BehaviourRule = BehaviourRule()
    tool_failures: BehaviourRule = Field(default=BehaviourRule(), alias="toolFailures")
    questions: BehaviourRule = Field(
        default=BehaviourRule(), description="share of short answers that ask back"
    )
    language_switches: BehaviourRule = Field(
        default=BehaviourRule(),
        alias="languageSwitches",
        description="share of answers in another language than the user's",
    )
    length: BehaviourRule = BehaviourRule(margin=1.5)
    latency: BehaviourRule = Field(
        default=BehaviourRule(), description="share of answers later than 250, 500, 1,000 ms"
    )


class JudgeSettings(_Part):
    """Margins and limits of design section 7."""

    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.01
    error_margin: Annotated[float, Field(ge=1, le=100)] = Field(default=1.5, alias="errorMargin")
    satisfaction_margin: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9, alias="satisfactionMargin"
    )
    below_baseline: bool = Field(
        default=True, alias="belowBaseline", description="satisfaction below the stable arm's"
    )
    slow_share: Share = Field(default=0.01, alias="slowShare")
    slow_margin: Annotated[float, Field(ge=1, le=100)] = Field(default=2.0, alias="slowMargin")
    stall_margin: Annotated[float, Field(ge=1, le=100)] = Field(
        default=2.0,
        alias="stallMargin",
        description="times stable's share of streams with a gap over 2,000 ms between tokens",
    )
    crash_share: Share = Field(default=0.01, alias="crashShare")
    consecutive_failures: int = Field(default=20, ge=3, le=10_000, alias="consecutiveFailures")
    segment_alpha: Annotated[float, Field(gt=0, le=0.2)] = Field(
        default=0.005, alias="segmentAlpha", description="for the guards of the segments"
    )
    behaviour: BehaviourSettings = BehaviourSettings()
    sample_ratio_alpha: Annotated[float, Field(gt=0, le=0.05)] = Field(
        default=0.001, alias="sampleRatioAlpha"
    )


class Strategy(_Part):
    """All settings of one rollout. Its canonical hash is in every decision."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")
    steps: tuple[Step, ...] = Field(min_length=2, max_length=MAX_STEPS)
    judge: JudgeSettings = JudgeSettings()
    deadline: Seconds = Field(default=7 * 86400.0, description="for steps that name none")
    no_data_after: Seconds | None = Field(
        default=None, alias="noDataAfter", description="None: the controller's setting"
    )
    evaluation: Literal["advice", "required"] = Field(
        default="advice",
        description="whether a version of settings must have passed its evaluation before it starts",
    )
    freeze: tuple[FreezeWindow, ...] = Field(
        default=(), max_length=MAX_FREEZES, description="times in which no weight rises"
    )
    engine_lost: Literal["resume", "wait"] = Field(
        default="resume",
        alias="engineLost",
        description="what follows a first lost engine once it serves the candidate again",
    )

    @model_validator(mode="after")
    def _leads_to_full_traffic(self) -> Strategy:
        weights = [step.set_weight for step in self.steps if isinstance(step, SetWeight)]
        shadows = [index for index, step in enumerate(self.steps) if isinstance(step, Shadow)]
        if shadows not in ([], [0]) or not isinstance(self.steps[len(shadows)], SetWeight):
            raise ValueError(
                "steps: the first one must be a setWeight; one shadow step may come before it"
            )
        if weights != sorted(set(weights)) or weights[0] == 0:
            raise ValueError("steps: the weights must rise, from above 0")
        if weights[-1] != WEIGHT_SCALE:
            raise ValueError("steps: the last setWeight must be 100, as a promotion follows it")
        full = self.weight_step(len(self.steps) - 1)
        if any(isinstance(one, Pause) and one.pause.until_proven for one in self.steps[full:]):
            raise ValueError(
                "steps: untilProven is not for the bake time, when stable has no users"
            )
        analysed = True
        for step in self.steps:
            if isinstance(step, SetWeight):
                if not analysed:
                    raise ValueError(
                        "steps: an analysis must stand between two setWeight steps, "
                        "or the weight would rise on no evidence"
                    )
                analysed = False
            elif isinstance(step, Analysis):
                analysed = True
        if isinstance(self.steps[-1], SetWeight):
            raise ValueError(  # noqa: TRY004
                "steps: a pause or an analysis must follow 100, the bake time"
            )
        return self

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON: sorted keys, every default written out."""
        return hashlib.sha256(orjson.dumps(self.to_dict(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As in the file, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def error_limits(self) -> tuple[float, ...]:
        """The distinct error limits of the steps, falling."""
        limits = {
            step.error_limit
            for step in self.steps
            if isinstance(step, SetWeight) and step.error_limit is not None
        }
        return tuple(sorted(limits, reverse=True))

    def gates(self, first: int, until: int) -> tuple[PauseFor, ...]:
        """The gates among the steps from `first` to before `until`."""
        return tuple(
            step.pause
            for step in self.steps[first:until]
            if isinstance(step, Pause) and step.pause.duration is None
        )

    def weight_step(self, index: int) -> int:
        """Index of the setWeight that rules at a step; 0, the shadow step's, before the first."""
        return max(
            (
                number
                for number, step in enumerate(self.steps[: index + 1])
                if isinstance(step, SetWeight)
            ),
            default=0,
        )

    def error_limit(self, index: int) -> float | None:
        """The error limit of users' requests that holds at a step."""
        step = self.steps[self.weight_step(index)]
        return step.error_limit if isinstance(step, SetWeight) else None
