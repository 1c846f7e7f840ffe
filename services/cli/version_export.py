"""`ratchet versions export`: a version as a folder that PEFT, vLLM and a model hub take as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml

from services.cli.errors import CliError, Exit
from services.cli.version_compare import (
    VersionName,
    chain_of,
    erased_rows_of,
    trained_record_of,
)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A base that a hub knows; any other is a path of this machine."""
CARD = "README.md"


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
) -> None:
    """Write adapter, model card and evaluation; the registered checksum is checked first.

    The folder is what `PeftModel.from_pretrained`, vLLM's `--lora-modules` and the hub's
    `upload_folder` take. The base model is not in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CliError(f"{folder}: is there and not empty; name a new folder", Exit.usage)
    record = trained_record_of(version)
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
    from shared.registry.adapters import AdapterError, fetch

    version, uri = record["version"], str(record["adapter_uri"]).rstrip("/")
    try:
        with TemporaryDirectory() as cache:
            fetched = fetch(
                uri, record["adapter_sha256"], Path(cache), roots=(uri.rpartition("/")[0],)
            )
            shutil.copytree(fetched, folder, dirs_exist_ok=True)
    except AdapterError as error:
        raise CliError(f"{version}: {error}", Exit.failed) from None
    (folder / CARD).write_text(
        model_card(record, erased_rows=erased_rows_of(version)), encoding="utf-8"
    )
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    typer.echo(f"{folder}: {version} ({names})")


def model_card(record: Mapping[str, Any], *, erased_rows: int = 0) -> str:
    """The model card of a record: metadata that hubs read, and what a person asks, in Markdown.

    `erased_rows` of its training data were erased after it was trained.
    """
    method = record.get("algorithm") or record["method"]
    metadata: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", method, "ratchet"],
    }
    if HUB_ID.fullmatch(record["base"]):
        metadata["base_model"] = record["base"]
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
            f"A LoRA adapter of {record['model']}, trained on people's feedback by Ratchet.",
            "",
            *_table(("what", "value"), facts),
            "## Use",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({record['base']!r})",
            'model = PeftModel.from_pretrained(base, ".")',
            "```",
            "",
            f"vLLM: `--enable-lora --lora-modules {record['version']}=.`",
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


def _table(columns: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return [*lines, *(f"| {name} | {value} |" for name, value in rows.items()), ""]
