"""`ratchet versions export`: a version as a folder that PEFT, vLLM and a model hub take as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated, Any, Literal

import typer
import yaml

from services.cli.errors import CliError, Exit
from services.cli.version_compare import (
    VersionName,
    chain_of,
    erased_rows_of,
    trained_record_of,
)
from services.cli.version_merge import merge_adapter

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A base that a hub knows; any other is a path of this machine."""
CARD = "README.md"
MERGE_REPORT = "merge.json"
EVALUATION = ("evaluation.json", "report.html")


def export_version(
    version: VersionName,
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    *,
    chain: Annotated[
        bool,
        typer.Option(
            "--chain", help="Its parents too: sft/sft-lora, dpo/dpo-iter1-lora and so on."
        ),
    ] = False,
    merged: Annotated[
        bool,
        typer.Option("--merged", help="A whole model: the base with the adapter merged into it."),
    ] = False,
    dtype: Annotated[
        Literal["", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the merged weights.", show_default="the base's"),
    ] = "",
) -> None:
    """Write adapter, model card and evaluation; the registered checksum is checked first.

    The folder is what `PeftModel.from_pretrained`, vLLM's `--lora-modules` and the hub's
    `upload_folder` take. The base model is not in it, but with --merged, which runs where trainings
    do: it needs the ML environment and the base's files, and checks that the folder answers as on record.
    """
    if chain and merged:
        raise CliError("--merged: is of one version; leave --chain out", Exit.usage)
    if dtype and not merged:
        raise CliError("--dtype: is of merged weights; give --merged, too", Exit.usage)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CliError(f"{folder}: is there and not empty; name a new folder", Exit.usage)
    record = trained_record_of(version)
    if merged:
        _export_merged(record, folder, dtype)
        return
    if not chain:
        _export(record, folder)
        return
    for generation, one in enumerate(chain_of(record)):
        _export(one, folder / checkpoint_folder(one, generation))


def checkpoint_folder(record: Mapping[str, Any], generation: int) -> str:
    """Where a version lies in a folder of checkpoints: `dpo/dpo-iter2-lora` of generation 2."""
    method = record.get("algorithm") or record["method"]
    return f"{method}/{method}-iter{generation}-lora" if generation else f"{method}/{method}-lora"


def _export(record: Mapping[str, Any], folder: Path) -> None:
    with _fetched(record) as adapter:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
    _write_card(record, folder)
    _say(record, folder)


def _export_merged(record: Mapping[str, Any], folder: Path, dtype: str) -> None:
    """Write the merged model beside its place, and move it there when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _fetched(record) as adapter:
            report = merge_adapter(record, adapter, partial, dtype)
            for name in EVALUATION:
                if (adapter / name).exists():
                    shutil.copyfile(adapter / name, partial / name)
        (partial / MERGE_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _write_card(record, partial, merged=report)
        partial.chmod(0o755)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say(record, folder)


@contextmanager
def _fetched(record: Mapping[str, Any]) -> Iterator[Path]:
    """The adapter's folder, while it is looked at."""
    from shared.registry.adapters import AdapterError, fetch

    uri = str(record["adapter_uri"]).rstrip("/")
    with TemporaryDirectory() as cache:
        try:
            folder = fetch(
                uri, record["adapter_sha256"], Path(cache), roots=(uri.rpartition("/")[0],)
            )
        except AdapterError as error:
            raise CliError(f"{record['version']}: {error}", Exit.failed) from None
        yield folder


def _write_card(
    record: Mapping[str, Any], folder: Path, *, merged: Mapping[str, Any] | None = None
) -> None:
    card = model_card(record, erased_rows=erased_rows_of(record["version"]), merged=merged)
    (folder / CARD).write_text(card, encoding="utf-8")


def _say(record: Mapping[str, Any], folder: Path) -> None:
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    typer.echo(f"{folder}: {record['version']} ({names})")


def model_card(
    record: Mapping[str, Any], *, erased_rows: int = 0, merged: Mapping[str, Any] | None = None
) -> str:
    """The model card of a record: metadata that hubs read, and what a person asks, in Markdown.

    `erased_rows` of its training data were erased after it was trained; `merged` is what `merge_adapter`
    measured, of a folder with a whole model.
    """
    method = record.get("algorithm") or record["method"]
    metadata: dict[str, Any] = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["merged" if merged else "lora", method, "ratchet"],
    }
    if HUB_ID.fullmatch(record["base"]):
        metadata["base_model"] = record["base"]
        if merged:
            metadata["base_model_relation"] = "finetune"
    dataset, gate = record["dataset"], record["gate"]
    verdict = "passed" if gate["passed"] else f"overridden by {gate['overridden_by']}"
    figures = {name: f"{value:.4g}" for name, value in sorted(record["metrics"].items())}
    facts = {
        "base": record["base"],
        "parent": record.get("parent") or "none",
        "method": method,
        "made": record["created_at"],
        "data": f"{dataset['dataset_id']}, {dataset['rows']} rows, SHA-256 {dataset['sha256']}",
        "seed": record["seed"],
        "code": record["code_revision"],
        "release gate": verdict,
        **({"erased since": f"{erased_rows} rows of its data"} if erased_rows else {}),
        "base, SHA-256": record.get("base_sha256") or "not recorded",
        "adapter, SHA-256": record["adapter_sha256"],
        **(_merged_facts(merged) if merged else {}),
    }
    packages = dict(sorted(record.get("packages", {}).items()))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=True).strip(),
            "---",
            "",
            f"# {record['version']}",
            "",
            f"{'A model' if merged else 'A LoRA adapter'} of {record['model']}, trained on people's "
            "feedback by Ratchet.",
            "",
            *_table(("what", "value"), facts),
            "## Use",
            "",
            *(_USE_MERGED if merged else _use_of_adapter(record)),
            "",
            "## Evaluation",
            "",
            "Against the parent, on held-out prompts; `report.html` has all of it.",
            "",
            *_table(("figure", "value"), figures),
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(
                {
                    "method": method,
                    "seed": record["seed"],
                    "hyperparameters": record["hyperparameters"],
                },
                sort_keys=True,
            ).strip(),
            "```",
            "",
            *_table(("package", "version"), packages),
        ]
    )


def _merged_facts(merged: Mapping[str, Any]) -> dict[str, str]:
    difference = merged["difference"]
    return {
        "weights": f"{merged['parameters']:,} in {merged['dtype']}, base and adapter merged",
        "differs from base and adapter": f"{difference['written']:.2g} nats a token of the fingerprint",
        "the base alone differs": f"{difference['base']:.2g} nats a token",
    }


def _use_of_adapter(record: Mapping[str, Any]) -> list[str]:
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({record['base']!r})",
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
        f"vLLM: `--enable-lora --lora-modules {record['version']}=.`",
    ]


_USE_MERGED = [
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained(".")',
    'tokenizer = AutoTokenizer.from_pretrained(".")',
    "```",
    "",
    "vLLM: `vllm serve .`",
]


def _table(columns: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return [*lines, *(f"| {name} | {value} |" for name, value in rows.items()), ""]
