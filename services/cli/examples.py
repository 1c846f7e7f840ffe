"""One example for every command and group of `ratchet`; each `--help` ends with its own."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.main import get_command_name

EXAMPLES = {
    "status": "status --json",
    "top": "top --every 5",
    "doctor": "doctor",
    "train": "train --method dpo --wait",
    "train list": "train list --model assistant",
    "train show": "train show train-6f1c2a9b",
    "train logs": "train logs train-6f1c2a9b --follow",
    "train cancel": 'train cancel train-6f1c2a9b --reason "wrong dataset"',
    "train report": "train report assistant-v1.1 --to report.html",
    "versions": "versions diff assistant-v1.0 assistant-v1.1",
    "versions list": "versions list --model assistant",
    "versions show": "versions show assistant-v1.1",
    "versions gain": "versions gain --model assistant",
    "versions register": "versions register assistant-calm --adapter-of assistant-v1.0 --temperature 0.2 "
    '--reason "calmer answers"',
    "versions evaluate": 'versions evaluate assistant-calm --reason "before the first user"',
    "versions retire": 'versions retire assistant-v1.1 --reason "its data were withdrawn"',
    "versions trajectory": "versions trajectory --html trajectory.html",
    "versions diff": "versions diff assistant-v1.0 assistant-v1.1",
    "versions rebuild": "versions rebuild assistant-v1.1",
    "versions rebase": "versions rebase assistant-v1.1 --base Qwen/Qwen3-8B --yes",
    "versions export": "versions export assistant-v1.1 ./assistant-v1.1",
    "rollout": 'rollout start assistant-v1.1 --reason "the team liked it"',
    "rollout start": 'rollout start assistant-v1.1 --reason "the team liked it"',
    "rollout list": "rollout list --model assistant",
    "rollout status": "rollout status",
    "rollout decisions": "rollout decisions --limit 20",
    "rollout history": "rollout history assistant-v1.1",
    "rollout replay": "rollout replay",
    "rollout export": "rollout export --out evidence.csv",
    "rollout validate": "rollout validate strategy.yaml",
    "rollout explain": "rollout explain strategy.yaml --rate 20",
    "rollout pause": 'rollout pause --reason "a sale is on today"',
    "rollout resume": 'rollout resume --reason "the sale is over"',
    "rollout promote": 'rollout promote --reason "enough seen at this weight"',
    "rollout abort": 'rollout abort --reason "we want another look"',
    "rollout retry": 'rollout retry assistant-6f1c2a9b --reason "the engine was at fault"',
    "rollout holdout": 'rollout holdout set --share 2 --reason "measure a year\'s gain"',
    "rollout holdout set": 'rollout holdout set --share 2 --reason "measure a year\'s gain"',
    "rollout holdout clear": 'rollout holdout clear --reason "the year is over"',
    "rollout holdout show": "rollout holdout show",
    "adapters": "adapters list",
    "adapters list": "adapters list",
    "adapters accept": 'adapters accept assistant-v1.2 --reason "the change is meant to be small"',
    "cases": "cases list --model assistant",
    "cases list": "cases list --model assistant",
    "cases show": "cases show 4b1f0c77",
    "cases retire": 'cases retire 4b1f0c77 --reason "the policy changed"',
    "dataset": "dataset import pairs.jsonl --to dataset.jsonl",
    "dataset import": "dataset import pairs.jsonl --to dataset.jsonl",
    "dataset export": "dataset export train.jsonl --to trl.jsonl --format trl",
    "dataset build": 'dataset build --method dpo --reason "look before training"',
    "dataset show": "dataset show /data/datasets/train-6f1c2a9b --lineage",
    "dataset diff": "dataset diff /data/datasets/train-6f1c2a9b /data/datasets/train-8d02e5f3",
    "dataset label": "dataset label prompts.jsonl --votes votes.jsonl --to labelled.jsonl",
    "dataset augment": "dataset augment train.jsonl --to varied.jsonl --methods synonym,insertion",
    "feedback": "feedback import log.jsonl --dry-run",
    "feedback send": "feedback send 4bf92f3577b34da6a3ce929d0e0e4736 rating 4 --user user-4711",
    "feedback withdraw": "feedback withdraw f-81 4bf92f3577b34da6a3ce929d0e0e4736 --user user-4711",
    "feedback show": "feedback show f-81",
    "feedback examples": "feedback examples positive --version assistant-v1.1 --limit 5",
    "feedback export": "feedback export pair --to pairs.jsonl",
    "feedback import": "feedback import log.jsonl --dry-run",
    "feedback invite": "feedback invite anna --hours 48",
    "feedback ranking": "feedback ranking --leave-out-fast",
    "feedback agreement": "feedback agreement",
    "feedback prioritise": "feedback prioritise plan.yaml assistant-v1.0 assistant-v1.1 --to next.yaml",
    "feedback reindex": "feedback reindex",
    "annotations": "annotations sample --count 50",
    "annotations add": "annotations add items.jsonl --raters 3",
    "annotations sample": "annotations sample --count 50",
    "annotations list": "annotations list --state disputed",
    "annotations push": "annotations push label-studio --url http://localhost:8080 --project 1",
    "annotations pull": "annotations pull label-studio --url http://localhost:8080 --project 1",
    "annotations labelling-config": "annotations labelling-config preference",
    "annotations status": "annotations status",
    "annotations coverage": "annotations coverage",
    "users": 'users erase user-4711 --reason "asked for it"',
    "users erase": 'users erase user-4711 --reason "asked for it" --wait 600',
    "users status": "users status user-4711",
    "users export": "users export user-4711 --to user-4711.jsonl",
    "users rewrap-keys": "users rewrap-keys",
    "dead-letters": "dead-letters list --limit 20",
    "dead-letters list": "dead-letters list --limit 20",
    "dead-letters replay": 'dead-letters replay --topic ratchet.feedback.v1 --reason "mended"',
    "topics": "topics diff",
    "topics apply": "topics apply",
    "topics diff": "topics diff",
    "topics wait": "topics wait --timeout 300",
    "kafka": "kafka acls",
    "kafka acls": "kafka acls --arguments",
    "state": "state rebuild",
    "state rebuild": "state rebuild",
    "keys": "keys create --scope infer --scope feedback --name shop --days 90",
    "keys create": "keys create --scope infer --scope feedback --name shop --days 90",
    "keys list": "keys list",
    "keys rotate": "keys rotate k-2f8a --overlap-hours 48",
    "keys revoke": 'keys revoke k-2f8a --reason "leaked"',
    "keys audit": "keys audit",
    "report": "report weekly --out reports",
    "report weekly": "report weekly --out reports",
    "redteam": "redteam run assistant-v1.1 --out probes.json",
    "redteam run": "redteam run assistant-v1.1 --out probes.json",
    "audit": "audit bias assistant-v1.1",
    "audit log": "audit log --actor ada",
    "audit bias": "audit bias assistant-v1.1",
    "backup": "backup take /backup/monday",
    "backup take": "backup take /backup/monday",
    "backup restore": "backup restore /backup/monday",
}
"""By the words of the command; what to type after `ratchet`."""


def end_helps_with_examples(app: typer.Typer, words: tuple[str, ...] = ()) -> None:
    """Give every command and group below `app` its example as the last line of its help."""
    for name, described in _described(app):
        path = (*words, name)
        described.epilog = f"Example: ratchet {EXAMPLES[' '.join(path)]}"
        if isinstance(described, typer.models.TyperInfo) and described.typer_instance is not None:
            end_helps_with_examples(described.typer_instance, path)


def _described(
    app: typer.Typer,
) -> Iterator[tuple[str, typer.models.CommandInfo | typer.models.TyperInfo]]:
    for command in app.registered_commands:
        if command.callback is not None:
            yield command.name or get_command_name(command.callback.__name__), command
    for group in app.registered_groups:
        yield str(group.name), group
