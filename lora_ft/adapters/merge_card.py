"""The README of a base with an adapter folded in: what it is, how far it is from the adapter, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.adapters.card import HUB_ID, PROCESSORS, preparation_notes
from lora_ft.adapters.manifest import Manifest


def merged_card(manifest: Manifest, record: Mapping[str, Any], *, auto_class: str) -> str:
    """The text of `README.md`.

    Args:
        manifest: Of the adapter.
        record: Content of `merged.json`.
        auto_class: The transformers auto class of the task.

    Returns:
        Markdown with YAML front matter; no licence is claimed.
    """
    name = manifest.base.name.rstrip("/").rpartition("/")[2] or manifest.base.name
    front = [
        "---",
        *([f"base_model: {json.dumps(manifest.base.name)}"] if HUB_ID.fullmatch(manifest.base.name) else []),
    ]
    front += ["library_name: transformers", f"pipeline_tag: {manifest.task}", "tags:", "- lora_ft", "- merged", "---"]
    reader = PROCESSORS.get(auto_class, "AutoTokenizer")
    on = f", trained on the base in {manifest.quantization}," if manifest.quantization else ""
    parts = [
        "\n".join(front),
        f"# {name} with a {manifest.task} adapter folded in",
        f"`{manifest.base.name}` with one {manifest.peft_type} adapter{on} added to its weights; {record['dtype']}. It "
        "needs neither peft nor lora_ft, and the adapter can no longer be taken off.",
        *([f"Labels: {', '.join(f'`{one}`' for one in manifest.labels)}."] if manifest.labels else []),
        "## How far it is from the adapter",
        _drift_table(record["drift"]),
        *_metrics(record),
        *preparation_notes(manifest),
        "## How to load it",
        "```python\n"
        f"from transformers import {auto_class}, {reader}\n\n"
        f'model = {auto_class}.from_pretrained("path/to/this/folder", dtype="auto").eval()\n'
        f'processor = {reader}.from_pretrained("path/to/this/folder")\n'
        "```",
        *_stops(record.get("stop_strings", ())),
        "Where it came from, with checksums, is in `merged.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _stops(texts: Sequence[str]) -> list[str]:
    """The texts that ended an answer of the adapter: `generate` looks for them only beside a tokenizer."""
    if not texts:
        return []
    shown = json.dumps(list(texts), ensure_ascii=False)
    return [
        "The adapter's answers ended at texts that `generation_config.json` does not hold; give them at each call:\n\n"
        f"```python\nmodel.generate(**inputs, stop_strings={shown}, tokenizer=processor)\n```"
    ]


def _drift_table(found: Mapping[str, Any]) -> str:
    """Largest and mean difference of the answers, against each thing they were compared with."""
    words = {
        "as_trained": "the adapter as it was trained",
        "unmerged": "the adapter on the base in this precision, not folded in",
        "read_back": "the merged model in memory, before it was written",
    }
    rows = ["| compared with | rows | largest difference | mean | largest answer |", "| --- | --- | --- | --- | --- |"]
    for key, one in found.items():
        for what, values in one.items() if key != "read_back" else (("probe", one),):
            rows.append(
                f"| {words[key]} | {what} | {values['max']:.3g} | {values['mean']:.3g} | {values['scale']:.3g} |"
            )
    return "\n".join(rows)


def _metrics(record: Mapping[str, Any]) -> list[str]:
    """The metrics before and after, where there are any."""
    before, after = record["metrics"].get("before", {}), record["metrics"].get("after", {})
    if not after:
        return []
    rows = ["| metric | adapter | merged |", "| --- | --- | --- |"]
    rows += [f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in after]
    return ["On the validation rows of its recipe:", "\n".join(rows)]
