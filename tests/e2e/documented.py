"""Shell and Python commands of docs/*.md: where `make verify` runs them, and why not the others."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(r"^( *)```(bash|sh|python)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_CONFIRM = re.compile(r"^- \*\*Confirm[:,]\*\*(.*?)^- \*\*", re.DOTALL | re.MULTILINE)
_PROGRAM = re.compile(r"(?:ratchet|kubectl|timedatectl|chronyc|kafka-configs\.sh|curl)(?: |$)")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page, several lines where it goes over several; or a whole block of Python."""

    page: str
    language: str
    text: str


RUN = (
    *("ratchet status", "ratchet doctor", "ratchet versions list", "ratchet versions register"),
    *("ratchet versions trajectory", "ratchet versions diff", "ratchet versions export"),
    *("ratchet rollout start", "ratchet rollout status", "ratchet rollout history"),
    *("ratchet rollout decisions", "ratchet rollout replay", "ratchet rollout export"),
    *("ratchet adapters list", "ratchet dead-letters list", "ratchet report weekly"),
    *("ratchet topics apply", "ratchet kafka acls", "ratchet audit log", "ratchet cases list"),
    *("ratchet train list", "ratchet train logs", "ratchet train show", "ratchet train report"),
    *("ratchet dataset import", "ratchet dataset export", "ratchet dataset show"),
    *("ratchet feedback import", "ratchet feedback examples", "ratchet feedback show"),
    *("ratchet feedback export", "ratchet feedback invite"),
    *("ratchet feedback agreement", "ratchet annotations", "ratchet keys create"),
    *("ratchet users export", "ratchet users status", "curl", "printf", "echo", "openssl rand"),
)
"""How the commands begin that run on a local stack, in test_documented_commands.py."""

ON_CLUSTER = (
    *("helm install", "helm upgrade", "helm rollback", "helm uninstall", "helm template"),
    *("kubectl create secret", "kubectl rollout", "kubectl get", "kubectl describe"),
    *("kubectl scale", "kubectl wait", "kubectl delete", "for claim in $(kubectl"),
    "cp deploy/k8s",
)
"""How the commands begin that run on Kubernetes' API server, in tests/integration/test_kubernetes.py."""

NOT_RUN = {
    "RATCHET_TEXT_KEY_FILE=": "starts a stack; tests/integration/test_text_erasure.py encrypts and erases",
    "kubectl exec": "needs a node with pods; the command behind -- runs on a local stack",
    "kubectl logs": "needs a node with pods",
    "for image in": "needs a Docker engine; tests/integration/test_images.py builds by buildah",
    "sql-client.sh": "needs a Flink cluster; tests/integration/test_flink_twin.py runs both files",
    "timedatectl": "asks systemd on a broker's host",
    "chronyc": "asks chrony on a broker's host",
    "kafka-configs.sh": "is a script of Kafka's own distribution",
    "python benchmarks/check_slices.py": "needs a package under AGPL in an environment of its own",
    "npx openapi-typescript": "needs packages of npm; test_generated_clients.py runs it",
    "openapi-python-client": "needs .venv-clients; test_generated_clients.py runs it",
    "ratchet backup": "wants the aggregator stopped; tests/integration/test_backup.py runs both",
    "ratchet users erase": "waits for a sweep; tests/integration/test_text_erasure.py erases",
    "export LABEL_STUDIO_API_KEY": "names a token of a server of yours",
    "ratchet annotations push": "needs a server; tests/integration/test_label_studio.py hands over",
    "ratchet annotations pull": "needs labels; tests/integration/test_label_studio.py takes some",
    "ratchet redteam run": "asks every shipped prompt; tests/e2e/test_probes.py runs it on two",
    "ratchet audit bias": "asks every shipped prompt; tests/e2e/test_probes.py runs it on six",
    "ratchet versions evaluate": "asks both versions; test_rollout_and_router.py evaluates",
    "ratchet rollout start assistant-v1.3": "needs data of one tenant; test_one_tenant.py accepts some",
    "ratchet dataset label": "needs a judge's endpoint and votes; tests/unit/cli/test_label.py labels",
    "ratchet dataset build": "needs thumbs to train on; test_stored_dataset.py builds one",
    "ratchet feedback ranking": "needs votes; tests/integration/test_cli.py ranks some",
    "ratchet feedback prioritise": "needs a reward model; test_prioritise.py ranks by one",
    "ratchet train": "trains for minutes; tests/e2e/test_readme.py and test_learning.py train",
    "ratchet train cancel": "needs a job under way; test_training_log.py cancels one",
    "ratchet versions retire": "needs a version that waits; test_retire.py retires some",
    "ratchet versions rebuild": "trains for minutes; tests/integration/test_training.py rebuilds",
    "ratchet versions export --merged": "needs a trained version; test_merged_export.py merges one",
    "ratchet versions rebase": "needs a trained chain; test_version_rebase.py asks for one",
    "ratchet cases retire": "needs an answer that failed; test_training_log.py retires one",
}
"""How the commands begin that do not, with the reason."""


def runs(command: Command, where: Collection[str] = RUN) -> bool:
    """Whether the command runs there (`RUN`, `ON_CLUSTER`): by the longest beginning that it has.

    Raises:
        KeyError: neither these nor `NOT_RUN` have it.

    """
    if command.language == "python":
        return where is RUN
    every = (*RUN, *ON_CLUSTER, *NOT_RUN)
    known = [beginning for beginning in every if command.text.startswith(beginning)]
    if not known:
        raise KeyError(
            f"docs/{command.page}: none of RUN, ON_CLUSTER and NOT_RUN has: {command.text}"
        )
    return max(known, key=len) in where


def commands(page: Path) -> list[Command]:
    """The commands of a page's fences, and of the runbooks' confirming sentences, in their order."""
    text, found = page.read_text(), []
    for fence in _FENCE.finditer(text):
        language, block = fence[2], textwrap.dedent(fence[3])
        parts = [block] if language == "python" else _split(block)
        found += [Command(page.name, language, part) for part in parts]
    for confirm in _CONFIRM.findall(text):
        spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", confirm))
        found += [Command(page.name, "sh", span) for span in spans if _PROGRAM.match(span)]
    return found


def _split(block: str) -> list[str]:
    """The block's commands: a line, or lines up to the closing quote, `done`, or no backslash."""
    found, pending = [], ""
    for line in block.splitlines():
        pending += f"{line}\n"
        if not line.endswith("\\") and _is_whole(pending):
            found += [pending.strip()] if shlex.split(pending, comments=True) else []
            pending = ""
    return [*found, pending.strip()] if pending.strip() else found


def _is_whole(text: str) -> bool:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return False
    return words[:1] != ["for"] or words[-1] == "done"
