"""An adapter -> one ONNX graph with what belongs to it, written only after onnxruntime answered as torch does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import torch

from lora_ft.adapters.export import EXPORT, check_output
from lora_ft.adapters.export_onnx import (
    OPSET,
    answers,
    compare_graph,
    graph_inputs,
    other_sizes,
    write_graph,
)
from lora_ft.adapters.folder import at_once, save_processor
from lora_ft.adapters.manifest import installed_versions
from lora_ft.adapters.merge import DROPPED
from lora_ft.adapters.probe import FP32_TOLERANCE, stored_tensors
from lora_ft.assemble.encode import encode_rows
from lora_ft.assemble.exported import refuse_another
from lora_ft.assemble.merged import fold, remember
from lora_ft.assemble.saved import OpenOptions, SavedAdapter
from lora_ft.models.precision import Precision
from lora_ft.models.processor import inner_tokenizer
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem

GRAPH = "model.onnx"
OUTPUTS = ("logits", "start_logits", "end_logits")
FORMAT_VERSION = 1


def export_onnx(
    adapter: SavedAdapter, output: Path, *, options: OpenOptions, command: str, overwrite: bool
) -> dict[str, Any]:
    """Writes the base with the adapter folded in as an ONNX graph in fp32, its processor, and `export.json`.

    Args:
        adapter: A verified adapter on its base.
        output: The folder to be.
        options: How the adapter was opened.
        command: How it was called.
        overwrite: Whether an earlier export may be replaced.

    Returns:
        The content of `export.json`.

    Raises:
        AdapterError: peft cannot merge this method, or the folder cannot be written.
        RunError: torch cannot trace the model, or onnxruntime answers otherwise; nothing is left on the disk.
    """
    check_output(output, overwrite=overwrite, adapter=adapter.folder)
    folded = fold(remember(adapter, None, why=None), replace(options, device="cpu"))
    merged = replace(
        folded.merged,
        model=folded.merged.model.float().eval(),
        precision=Precision(device="cpu", compute_dtype=torch.float32, autocast=False),
    )
    from_adapter = refuse_another(merged, folded)
    batches = _batches(merged)
    with torch.no_grad():
        found = merged.model(**batches[0], return_dict=True)
    outputs = [name for name in OUTPUTS if name in found]
    expected = [answers(merged.model, batch, outputs=outputs) for batch in batches]
    with at_once(output) as temporary:
        axes = write_graph(merged.model, batches[0], temporary / GRAPH, outputs=outputs)
        largest = compare_graph(temporary / GRAPH, batches, expected, outputs=outputs)
        save_processor(merged.processor, temporary)
        record = {
            **_facts(merged, command=command),
            "graph": GRAPH,
            "opset": OPSET,
            "inputs": {
                name: {"dtype": str(tensor.dtype).removeprefix("torch."), "axes": _shape(tensor, axes[name])}
                for name, tensor in batches[0].items()
            },
            "outputs": outputs,
            "padding": _may_be_padded(batches[0]),
            "parity": {
                "largest_difference": largest,
                "tolerance": FP32_TOLERANCE,
                "batches": [{name: list(tensor.shape) for name, tensor in batch.items()} for batch in batches],
                "from_adapter": asdict(from_adapter),
            },
            "bytes": (temporary / GRAPH).stat().st_size,
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / EXPORT).write_text(text + "\n", encoding="utf-8")
    return record


def _batches(adapter: SavedAdapter) -> list[dict[str, torch.Tensor]]:
    """The probe in several batch sizes and lengths, and each example row of the task alone."""
    task, problem, model = adapter.task, adapter.problem, adapter.model
    probe = graph_inputs(model, stored_tensors(adapter.manifest.probe.inputs))
    length = max(tensor.shape[1] for tensor in probe.values())
    longest = int(adapter.manifest.settings.get("max_length") or length)
    rows = [graph_inputs(model, row) for row in _example_rows(task, problem)]
    tokenizer = inner_tokenizer(adapter.processor)
    known = tokenizer.model_input_names if tokenizer is not None else ()
    unread = set(DROPPED.values()) - set(known)  # a graph has no wrapper of peft that would keep it from the base
    return [
        {name: value for name, value in batch.items() if name not in unread}
        for batch in (*other_sizes(probe, longest=longest), *rows)
    ]


def _example_rows(task: Task, problem: Problem) -> list[Mapping[str, Any]]:
    """Each example row as a batch of its own, without targets."""
    rows = datasets.Dataset.from_dict(task.example_rows(problem.problem_type))
    if problem.labels:
        rows = rows.remove_columns([c.name for c in task.columns if c.target and c.name in rows.column_names])
    features = encode_rows(rows, task=task, problem=problem)
    collate = task.collator(problem)
    return [collate([features[index]]) for index in range(len(features))]


def _may_be_padded(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether rows of other lengths may share a batch: not sounds without a mask."""
    waves = inputs.get("input_values")
    return waves is None or waves.dim() > 2 or "attention_mask" in inputs


def _shape(tensor: torch.Tensor, axes: Mapping[int, str]) -> list[str | int]:
    """`["batch", "sequence"]`, `["batch", 3, 224, 224]`."""
    return [axes.get(index, size) for index, size in enumerate(tensor.shape)]


def _facts(adapter: SavedAdapter, *, command: str) -> dict[str, Any]:
    """What an application needs beside the graph, and what it was made of."""
    import onnx
    import onnxruntime

    manifest = adapter.manifest
    return {
        "format": "onnx",
        "format_version": FORMAT_VERSION,
        "task": manifest.task,
        "problem_type": manifest.problem_type,
        "labels": list(manifest.labels),
        "settings": manifest.settings,
        "preparation": manifest.preparation,
        "base": asdict(manifest.base),
        "dtype": "float32",
        "versions": {**installed_versions(), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
