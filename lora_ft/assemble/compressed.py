"""An adapter -> the same in fewer bits, with the measured change of its answers in the new manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import save_file

from lora_ft.adapters.compress import compress, expand, float_tensors
from lora_ft.adapters.export import INT8, check_output
from lora_ft.adapters.folder import at_once
from lora_ft.adapters.manifest import FORMAT_VERSION, Manifest
from lora_ft.adapters.probe import make_probe, stored_tensors
from lora_ft.adapters.tensors import LABELS_KEY, read_header
from lora_ft.adapters.verify import CONFIG, MANIFEST, WEIGHTS, WEIGHTS_INT8, hash_file, verify_files, weights_file
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.probe import probe_forward
from lora_ft.assemble.saved import SavedAdapter

CARD = "README.md"


@dataclass(frozen=True)
class Rows:
    """What the change is measured on.

    Attributes:
        split: Name of the split, or the file; None where nothing could be read.
        rows: Rows with canonical labels, or None.
        why: Why there are none.
    """

    split: str | None
    rows: datasets.Dataset | None
    why: str | None = None


def export_compressed(
    adapter: SavedAdapter,
    output: Path,
    *,
    dtype: str,
    quantization: str | None,
    measured_on: Rows,
    batch_size: int,
    command: str,
    overwrite: bool,
    advance: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes an adapter folder whose tensors are stored in bf16 or int8.

    Args:
        adapter: A verified adapter on its base; its tensors are rounded in place.
        output: The folder to be.
        dtype: `bf16` or `int8`.
        quantization: How the base was loaded: `nf4`, `fp4`, `int8`, or None.
        measured_on: Rows to measure the metrics on, before and after.
        batch_size: Features a batch.
        command: How it was called.
        overwrite: Whether an earlier export may be replaced.
        advance: Called with the number of features done, twice for each.

    Returns:
        The manifest as written; `run["compression"]` says what was measured.

    Raises:
        AdapterError: The folder cannot be written.
        RunError: The rounded adapter answers with numbers that are not finite.
    """
    check_output(output, overwrite=overwrite, adapter=adapter.folder)
    manifest = adapter.manifest
    source = weights_file(adapter.folder)
    stored = compress(float_tensors(adapter.folder), dtype=dtype)
    before = _measure(adapter, measured_on.rows, batch_size=batch_size, advance=advance)
    set_peft_model_state_dict(adapter.model, expand(stored))
    after = _measure(adapter, measured_on.rows, batch_size=batch_size, advance=advance)
    probe = make_probe(
        adapter.model,
        stored_tensors(manifest.probe.inputs),
        forward=probe_forward(adapter.task, adapter.problem),
        precision=adapter.precision.name,
        quantization=quantization,
    )
    then, now = torch.tensor(manifest.probe.logits), torch.tensor(probe.logits)
    compression = {
        "dtype": dtype,
        "made_of": manifest.files[source.name].sha256,
        "split": measured_on.split,
        "rows": 0 if measured_on.rows is None else len(measured_on.rows),
        "not_measured": measured_on.why,
        "metrics": {name: [value, after[name]] for name, value in before.items()},
        "probe": {"largest_difference": float((now - then).abs().max()), "largest_logit": float(then.abs().max())},
        "command": command,
    }
    with at_once(output) as temporary:
        weights = temporary / (WEIGHTS_INT8 if dtype == INT8 else WEIGHTS)
        for name in manifest.files:
            if name != source.name:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(adapter.folder / name, temporary / name)
        save_file(stored, weights, metadata={"format": "pt", LABELS_KEY: json.dumps(list(manifest.labels))})
        weights.chmod((temporary / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
        sizes = [source.stat().st_size, weights.stat().st_size]
        with (temporary / CARD).open("a", encoding="utf-8", newline="\n") as card:
            card.write(_card_section(compression, sizes))
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        written = replace(
            manifest,
            probe=probe,
            run={**manifest.run, "compression": {**compression, "bytes": sizes}},
            tensors=read_header(weights)[0],
            files={file.relative_to(temporary).as_posix(): hash_file(file) for file in files},
            format_version=FORMAT_VERSION,
        )
        (temporary / MANIFEST).write_text(written.to_json(), encoding="utf-8", newline="\n")
        verify_files(temporary)
    return written


def _measure(
    adapter: SavedAdapter,
    rows: datasets.Dataset | None,
    *,
    batch_size: int,
    advance: Callable[[int], None] | None,
) -> dict[str, float]:
    """Every metric of the task on some rows; none where there are no rows."""
    if rows is None:
        return {}
    task, problem = adapter.task, adapter.problem
    predictions = adapter.predict(rows, batch_size=batch_size, advance=advance)
    return task.score(predictions, references_of(rows, task=task, problem=problem), problem)


def _card_section(compression: Mapping[str, Any], sizes: list[int]) -> str:
    """What the model card says of it."""
    dtype = compression["dtype"]
    how = (
        "The matrices A and B are stored in int8 with a scale for each component of the rank, the head in bf16. "
        "lora_ft loads it; plain peft does not."
        if dtype == INT8
        else "All tensors are stored in bf16. lora_ft and plain peft load it."
    )
    lines = ["", "", f"## Stored in {dtype}", "", f"{how} {sizes[0]:,} bytes became {sizes[1]:,}.", ""]
    if compression["metrics"]:
        lines += [
            f"On {compression['rows']} rows ({compression['split']}):",
            "",
            "| metric | before | after |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {name} | {one:.4f} | {two:.4f} |" for name, (one, two) in compression["metrics"].items()]
    else:
        moved = compression["probe"]["largest_difference"]
        lines += [
            f"No metric was measured ({compression['not_measured']}); the probe's values moved by {moved:.3g} at most."
        ]
    return "\n".join(lines) + "\n"
