"""One adapter and its base -> a plain checkpoint of transformers that answers as the adapter does, with a record."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from lora_ft.adapters.folder import at_once, attach_saved, save_processor
from lora_ft.adapters.manifest import Manifest, installed_versions
from lora_ft.adapters.merge import DROPPED, merge_into
from lora_ft.adapters.merge_card import merged_card
from lora_ft.adapters.merge_plan import MERGED, Source, check_checkpoint_target, checkpoint_bytes
from lora_ft.adapters.probe import check_probe, stored_tensors
from lora_ft.assemble.answer import on_device
from lora_ft.assemble.encode import EncodedRows
from lora_ft.assemble.probe import probe_forward
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, find_base
from lora_ft.errors import RunError
from lora_ft.models.load import load_base
from lora_ft.models.precision import DTYPES, Precision, autocast_context, plan_precision
from lora_ft.models.processor import inner_tokenizer
from lora_ft.models.weights import stored_dtype
from lora_ft.models.weights import stored_tensors as tensors_of_base

FORMAT_VERSION = 1
DRIFT_ROWS = 64
"""Features of a split that drift is measured on; metrics are measured on all of them."""

EXACT = 1e-5
"""Largest difference of fp32 answers, in units of the largest answer (at least 1), up to which they count as equal."""

STORED = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Drift:
    """How far answers are from those that they should be.

    Attributes:
        max: Largest difference of one value.
        mean: Mean difference.
        scale: Largest value, for comparison.
        values: How many values were compared.
    """

    max: float
    mean: float
    scale: float
    values: int


def drift(now: torch.Tensor, then: torch.Tensor) -> Drift:
    """Compares answers.

    Args:
        now: Values of the model that is to be judged, any shape.
        then: What they should be, of the same shape.

    Raises:
        RunError: They are not finite.
    """
    if not torch.isfinite(now).all():
        raise RunError("merge: the merged model answers with numbers that are not finite. Nothing was written.")
    difference = (now - then).abs()
    return Drift(float(difference.max()), float(difference.mean()), float(then.abs().max()), then.numel())


def probe_answers(adapter: SavedAdapter) -> torch.Tensor:
    """What a model answers to the adapter's stored probe, `(rows, values)` in fp32 on the CPU."""
    return _answers(adapter, stored_tensors(adapter.manifest.probe.inputs))


def row_answers(adapter: SavedAdapter, features: EncodedRows, *, batch_size: int = 32) -> torch.Tensor:
    """What a model answers to the first features of a split, all values in one row, in fp32 on the CPU."""
    collate = adapter.task.collator(adapter.problem)
    count = min(len(features), DRIFT_ROWS)
    order = np.argsort(-np.asarray(features["length"][:count], dtype=np.int64), kind="stable").tolist()
    found = []
    for start in range(0, count, batch_size):
        batch = collate([features[index] for index in order[start : start + batch_size]])
        found.append(_answers(adapter, batch).flatten())
    return torch.cat(found)


def _answers(adapter: SavedAdapter, batch: Mapping[str, Any]) -> torch.Tensor:
    forward = probe_forward(adapter.task, adapter.problem)
    model = adapter.model.eval()
    tokenizer = inner_tokenizer(adapter.processor)
    if tokenizer is not None:
        unread = set(DROPPED.values()) - set(tokenizer.model_input_names)
        batch = {name: value for name, value in batch.items() if name not in unread}
    with torch.no_grad(), autocast_context(adapter.precision):
        values = forward(model, on_device(batch, next(model.parameters()).device))
    return values.float().cpu()


@dataclass(frozen=True)
class Unmerged:
    """What the adapter answered as it was trained, and what it was measured to be worth.

    Attributes:
        adapter: The adapter on its base, quantised as it was trained.
        probe: Its answers to the probe.
        features: Validation rows, or None where they cannot be read.
        rows: Its answers to the first of them.
        why: Why there are none.
    """

    adapter: SavedAdapter
    probe: torch.Tensor
    features: EncodedRows | None
    rows: torch.Tensor | None
    why: str | None


def remember(adapter: SavedAdapter, rows: datasets.Dataset | None, *, why: str | None) -> Unmerged:
    """Asks an adapter before it is merged.

    Args:
        adapter: A verified adapter on its base, as it was trained.
        rows: Validation rows under our column names, or None.
        why: Why there are none.
    """
    features = None if rows is None else adapter.encode(rows)
    answers = None if features is None else row_answers(adapter, features)
    return Unmerged(adapter, probe_answers(adapter), features, answers, why)


@dataclass(frozen=True)
class Folded:
    """A base with the adapter folded in, in memory.

    Attributes:
        merged: It answers as an adapter does.
        unmerged_probe: Answers of the adapter on the same base, not yet folded in, to the probe.
        unmerged_rows: The same for the validation rows, or None.
        dtype: Type of its weights.
        auto_class: Its auto class in transformers.
    """

    merged: SavedAdapter
    unmerged_probe: torch.Tensor
    unmerged_rows: torch.Tensor | None
    dtype: str
    auto_class: str


def fold(before: Unmerged, options: OpenOptions) -> Folded:
    """Loads the base again, without quantisation and as it is stored, and folds the adapter into it.

    Args:
        before: The adapter as it was trained, already asked.
        options: Where the base is; `quantization` is not read.

    Raises:
        AdapterError: peft cannot merge this method.
        AdapterRefused: The adapter does not fit the base as it is stored.
    """
    adapter, manifest, task = before.adapter, before.adapter.manifest, before.adapter.task
    base_folder = find_base(manifest, options)
    dtype = STORED.get(stored_dtype(tensors_of_base(base_folder.folder)), "float32")
    device = plan_precision(device=options.device, dtype="float32").device
    precision = Precision(device=device, compute_dtype=DTYPES[dtype], autocast=dtype != "float32")
    transformers.set_seed(manifest.seed)
    auto_class = task.model_class(manifest.problem_type)
    base = load_base(
        base_folder,
        auto_class=auto_class,
        head=manifest.head,
        config=task.model_config(adapter.problem),
        precision=precision,
        quantization_config=None,
        dropout="keep",  # it goes into the new config.json as it was
        attn_implementation=manifest.run["attn_implementation"],
        dtype=dtype,
        trust_remote_code=options.trust_remote_code,
    )
    model = attach_saved(base.model, adapter.folder, manifest)
    check_probe(
        model,
        manifest.probe,
        forward=probe_forward(task, adapter.problem),
        precision=precision.name,
        quantization=None,
    )
    loaded = replace(adapter, model=model, precision=precision)
    probe = probe_answers(loaded)
    rows = None if before.features is None else row_answers(loaded, before.features)
    merged = merge_into(model)
    for parameter in merged.parameters():  # heads were trained in fp32; buffers stay as transformers made them
        parameter.data = parameter.data.to(DTYPES[dtype])
    processor = _without_dropped(adapter.processor, task_type=adapter.model.peft_config["default"].task_type)
    return Folded(replace(loaded, model=merged, processor=processor), probe, rows, dtype, auto_class)


def _without_dropped(processor: Any, *, task_type: str | None) -> Any:
    """The processor of a merged base: it makes no input that peft's wrapper kept from the base in training."""
    known = inner_tokenizer(processor)
    if known is None or DROPPED.get(task_type or "") not in known.model_input_names:
        return processor
    processor = copy.deepcopy(processor)
    tokenizer: Any = inner_tokenizer(processor)
    names = [name for name in tokenizer.model_input_names if name != DROPPED[task_type or ""]]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return processor


def write_merged(
    target: Path,
    *,
    source: Source,
    before: Unmerged,
    folded: Folded,
    metrics: Mapping[str, Any],
    command: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Writes the checkpoint at once or not at all; before that it is read back by plain transformers and asked again.

    Args:
        target: The folder to be.
        source: The adapter.
        before: What it answered as it was trained.
        folded: The merged model.
        metrics: `{"before": {...}, "after": {...}}` on the validation rows, or empty.
        command: How it was called.
        overwrite: Whether a merged base at `target` may be replaced.

    Returns:
        The record as written in `merged.json`.

    Raises:
        AdapterError: The folder may not or cannot be written; what was there is untouched.
        RunError: The files answer otherwise than the model in memory; nothing was written.
    """
    manifest = source.manifest
    check_checkpoint_target(target, overwrite=overwrite, needed_bytes=checkpoint_bytes(manifest))
    model = folded.merged.model
    record = _record(source, before=before, folded=folded, metrics=metrics, command=command)
    generation = folded.merged.task.generation(model, folded.merged.problem)
    if generation is not None:
        model.generation_config = generation.config
        record["stop_strings"] = list(generation.stop_strings)
    with at_once(target) as temporary:
        save_processor(folded.merged.processor, temporary)
        model.save_pretrained(temporary)
        record["drift"]["read_back"] = asdict(_read_back(temporary, folded))
        (temporary / "README.md").write_text(
            merged_card(manifest, record, auto_class=folded.auto_class), encoding="utf-8"
        )
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / MERGED).write_text(text + "\n", encoding="utf-8")
    return record


def _record(
    source: Source, *, before: Unmerged, folded: Folded, metrics: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The content of `merged.json`."""
    manifest: Manifest = source.manifest
    answers = probe_answers(folded.merged)
    exact = drift(answers, folded.unmerged_probe)
    if folded.dtype == "float32" and exact.max > 10 * EXACT * max(1.0, exact.scale):
        raise RunError(
            f"merge: folded in, the adapter answers otherwise than beside its base (by {exact.max:.3g}). Nothing was "
            "written; keep the adapter beside its base."
        )
    found: dict[str, Any] = {
        "as_trained": {"probe": asdict(drift(answers, before.probe))},
        "unmerged": {"probe": asdict(exact)},
    }
    if before.features is not None and before.rows is not None and folded.unmerged_rows is not None:
        answers = row_answers(folded.merged, before.features)
        found["as_trained"]["validation"] = asdict(drift(answers, before.rows))
        found["unmerged"]["validation"] = asdict(drift(answers, folded.unmerged_rows))
    return {
        "format_version": FORMAT_VERSION,
        "task": manifest.task,
        "problem_type": manifest.problem_type,
        "labels": list(manifest.labels),
        "settings": manifest.settings,
        "preparation": manifest.preparation,
        "base": asdict(manifest.base),
        "sources": [source.to_mapping()],
        "peft_type": manifest.peft_type,
        "dtype": folded.dtype,
        "quantization_of_the_adapter": manifest.quantization,
        "drift": found,
        "metrics": dict(metrics),
        "not_measured": before.why,
        "versions": installed_versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }


def _read_back(folder: Path, folded: Folded) -> Drift:
    """Loads the files as any user would, without lora_ft and peft, and compares the answers."""
    wanted = probe_answers(folded.merged)
    model = getattr(transformers, folded.auto_class).from_pretrained(folder, dtype="auto", local_files_only=True)
    found = drift(probe_answers(replace(folded.merged, model=model.to(folded.merged.precision.device))), wanted)
    if found.max > EXACT * max(1.0, found.scale):
        raise RunError(
            f"merge: {folded.auto_class}.from_pretrained reads the files otherwise than they were meant: answers "
            f"differ by {found.max:.3g}. Nothing was written; keep the adapter beside its base."
        )
    return found
