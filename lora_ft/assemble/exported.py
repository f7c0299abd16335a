"""An adapter -> the folder that a server loads; what is folded in or rewritten answers as the adapter did."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lora_ft.adapters.export import EXPORT, VLLM, check_output
from lora_ft.adapters.export_rules import SERVERS, check_servable, smallest_setting
from lora_ft.adapters.export_served import served_adapter
from lora_ft.adapters.folder import at_once, save_processor
from lora_ft.adapters.manifest import installed_versions
from lora_ft.adapters.probe import FP32_TOLERANCE, HALF_TOLERANCE
from lora_ft.adapters.verify import CONFIG, WEIGHTS
from lora_ft.assemble.merged import Drift, Folded, drift, probe_answers
from lora_ft.assemble.saved import SavedAdapter
from lora_ft.errors import RunError

EXACT = 1e-6
"""Largest change of the product of A and B, relative to its largest element: fp32 rounds a product by 6e-8."""

FORMAT_VERSION = 1


def export_served(adapter: SavedAdapter, output: Path, *, server: str, command: str, overwrite: bool) -> dict[str, Any]:
    """Writes an adapter in the layout that vLLM or LoRAX loads.

    Args:
        adapter: A verified adapter on its base.
        output: The folder to be.
        server: `vllm` or `lorax`.
        command: How it was called.
        overwrite: Whether an earlier export may be replaced.

    Returns:
        The content of `export.json`.

    Raises:
        AdapterError: The server cannot load it, with all reasons; or the folder cannot be written.
        RunError: The products of A and B would change by more than rounding.
    """
    check_output(output, overwrite=overwrite, adapter=adapter.folder)
    manifest = adapter.manifest
    config = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
    model_type = str(adapter.model.get_base_model().config.model_type)
    check_servable(server, manifest, config, model_type=model_type, where=adapter.folder)
    served = served_adapter(adapter.model, server=server, base_name=manifest.base.name)
    if not served.difference <= EXACT:
        raise RunError(
            f"{server}: the products of A and B would change by {served.difference:.3g} of the largest element, "
            f"allowed {EXACT:.3g}. Nothing was written. Use --format safetensors."
        )
    record = {
        "format": server,
        "format_version": FORMAT_VERSION,
        "task": manifest.task,
        "base": asdict(manifest.base),
        "trained_on": manifest.quantization or manifest.precision,
        "preparation": manifest.preparation,
        "rank": served.rank,
        "changes": list(served.changes),
        "largest_relative_change": served.difference,
        "tensors": len(served.tensors),
        "bytes": sum(tensor.nbytes for tensor in served.tensors.values()),
        "next": next_step(server, manifest.base.name, rank=served.rank, folder=output.name),
        "versions": installed_versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    with at_once(output) as temporary:
        save_processor(adapter.processor, temporary)
        save_file(served.tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        _write_json(temporary / CONFIG, served.config)
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
        _write_json(temporary / EXPORT, record)
    return record


def refuse_another(merged: SavedAdapter, folded: Folded) -> Drift:
    """Makes sure that a base with the adapter folded in answers the probe as the adapter beside its base does.

    Args:
        merged: The merged model.
        folded: What `fold` made, with the answers of the adapter.

    Returns:
        How far the answers are from each other.

    Raises:
        RunError: Further than the precisions explain; nothing was written.
    """
    found = drift(probe_answers(merged), folded.unmerged_probe)
    allowed = (FP32_TOLERANCE if folded.dtype == "float32" else HALF_TOLERANCE) * max(1.0, found.scale)
    if found.max > allowed:
        raise RunError(
            f"export: with the adapter folded in, answers to the probe differ by {found.max:.3g}, allowed "
            f"{allowed:.3g}. Nothing was written. Keep the adapter beside its base."
        )
    return found


def next_step(server: str, base: str, *, rank: int, folder: str) -> str:
    """How the server is started with an exported adapter.

    Args:
        server: `vllm` or `lorax`.
        base: Name of the base.
        rank: Rank of the adapter.
        folder: Name of the exported folder.
    """
    if server == VLLM:
        largest = smallest_setting(VLLM, rank)
        return f"vllm serve {base} --enable-lora --max-lora-rank {largest} --lora-modules NAME={folder}"
    return (
        f"start {SERVERS[server].name} with --model-id {base}, then send adapter_id = the path of {folder} and "
        "adapter_source = local with a request"
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=file.name == CONFIG, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
