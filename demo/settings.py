"""What the demo does, in numbers. All times are seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.starter.model import REPLY_TOKENS, TEMPERATURE

DEMO_SEED = 3
PROXY, PROXY_ADMIN = "faultproxy", "faultproxy-admin"
ROOT = Path(__file__).resolve().parents[1]

PLAY_DIR = ROOT / ".run" / "play"
"""Where `make play` keeps its stack."""

ENGINE_START_S = 600

DPO: dict[str, Any] = {
    "learning_rate": 1.4e-3,
    "epochs": 3.0,
    "batch_size": 16,
    "beta": 0.1,
    "loss": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.5],
}
SFT: dict[str, Any] = {"learning_rate": 5e-4, "epochs": 1.0, "batch_size": 16}
# One batch: the cores are busy, and each batch costs as many steps as its longest answer has tokens.
EVALUATION = {
    "prompts": 200,
    "max_new_tokens": REPLY_TOKENS,
    "temperature": TEMPERATURE,
    "batch_size": 200,
}
REWARD: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3.0, "batch_size": 16}


@dataclass(frozen=True)
class StepDeadlines:
    """Longest waits of each step; generous, as other work may share the two cores."""

    first_version_s: float = 300.0
    collecting_s: float = 420.0
    training_s: float = 600.0
    adapter_s: float = 60.0
    rollout_s: float = 360.0
    rollback_s: float = 300.0
    settling_s: float = 60.0
    counting_s: float = 60.0


@dataclass(frozen=True)
class DrillTraining:
    """How much a version is trained that will be rolled back: enough to differ, no more."""

    pairs: int
    epochs: int


@dataclass(frozen=True)
class DemoSettings:
    """One run of the demo."""

    seed: int = DEMO_SEED
    run_dir: Path = ROOT / ".run" / "demo"
    summary: Path = ROOT / ".run" / "demo-summary.json"
    keep: bool = False
    play: bool = False
    """Keep the stack, and what the demo made for the next start."""
    free_ports: bool = False
    feedback_share: float = 0.40
    pairs: int = 320
    judge_pairs: int = 120
    inverted: DrillTraining = DrillTraining(pairs=240, epochs=2)
    failing: DrillTraining = DrillTraining(pairs=128, epochs=1)
    fresh_prompts: int = 450
    fault_share: float = 0.30
    deadlines: StepDeadlines = StepDeadlines()

    @property
    def complete(self) -> Path:
        """The mark of data that a whole demo left."""
        return self.run_dir / "data" / "complete"

    def environment(self) -> dict[str, str]:
        """What the stack's processes are told beside their defaults."""
        return {
            "RATCHET_TRAINING_MIN_PAIRS": str(self.pairs),
            "RATCHET_TRAINING_SFT": json.dumps(SFT),
            "RATCHET_TRAINING_DPO": json.dumps(DPO),
            "RATCHET_TRAINING_REWARD": json.dumps(REWARD),
            "RATCHET_TRAINING_EVALUATION": json.dumps(EVALUATION),
            "RATCHET_TRAINING_GATE": json.dumps({"min_judge_pairs": self.judge_pairs}),
            # The crowd likes an answer to be short, so a short correction is no slip.
            "RATCHET_TRAINING_RULES": json.dumps({"length_ratio": 0.0}),
            # Where others use the cores too, vLLM warms up for minutes.
            "RATCHET_INFERENCE_ENGINE_START_TIMEOUT_S": str(ENGINE_START_S),
            # Its steps take a second or two.
            "RATCHET_TRAINING_STALL_S": "90",
            "RATCHET_ROLLOUT_STRATEGY": str(ROOT / "demo/strategies/demo.yaml"),
        }

    def processes(self) -> dict[str, dict[str, object]]:
        """The fault proxy between router and engine, and the router told so."""
        return {
            PROXY: {
                "about": "the demo's proxy that can fail a share of one version's requests",
                "module": "demo.faultproxy",
                "arguments": [
                    "--port",
                    f"${{port.{PROXY}}}",
                    "--admin-port",
                    f"${{port.{PROXY_ADMIN}}}",
                    "--upstream",
                    "${url.vllm}",
                ],
                "ports": {PROXY: 8100, PROXY_ADMIN: 8101},
                "ready": {"http": f"${{url.{PROXY_ADMIN}}}/fault"},
            },
            "inference": {"ready": {"timeout_s": ENGINE_START_S}},
            "router": {"env": {"RATCHET_ROUTER_ENGINES": f"${{url.{PROXY}}}"}},
        }
