"""Adapter folder -> verified model that answers: files, base, tensors and probe are checked before it is handed out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.verify import refuse_other_base, resolve_adapter, verify_files
from lora_ft.assemble.answer import logits_of
from lora_ft.assemble.prepare import encode_rows
from lora_ft.errors import ModelError
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import Precision, cast_frozen_linears, plan_precision
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.tasks.base import Task, load_task

logger = logging.getLogger(__name__)

Quantization = Literal["as-trained", "none", "nf4", "fp4", "int8"]

QUANTIZATION_CONFIGS: Mapping[str, dict[str, Any] | None] = {
    "none": None,
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@dataclass(frozen=True)
class OpenOptions:
    """How an adapter is opened.

    Attributes:
        base: Where the base is now, if not where the manifest says.
        quantization: `as-trained`, or another way to load the base.
        device: `cpu`, `cuda`, ...; None: the best there is.
        offline: Never ask a hub.
        trust_remote_code: Whether code from the base's repository may run; never taken from the adapter folder.
        cache_dir: Where fingerprints of bases are remembered; None: nowhere.
    """

    base: str | None = None
    quantization: Quantization = "as-trained"
    device: str | None = None
    offline: bool = False
    trust_remote_code: bool = False
    cache_dir: Path | None = None


@dataclass(frozen=True)
class SavedAdapter:
    """A verified adapter on its base, ready to answer.

    Attributes:
        folder: The adapter folder.
        manifest: What it says of itself.
        task: Its task.
        processor: Its tokenizer or processor, from the adapter folder.
        model: The adapted model in eval mode.
        precision: What it computes in.
    """

    folder: Path
    manifest: Manifest
    task: Task
    processor: Any
    model: Any
    precision: Precision

    def encode(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Encodes rows under our column names; labels, where there are any, must be canonical."""
        manifest = self.manifest
        return encode_rows(
            rows,
            task=self.task,
            processor=self.processor,
            labels=manifest.labels,
            problem_type=manifest.problem_type,
            settings=manifest.settings,
        )

    def logits(
        self,
        features: Sequence[dict[str, Any]],
        *,
        batch_size: int,
        advance: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Logits `(rows, outputs)` in the order of the features; see `logits_of`."""
        collate = self.task.collator(
            self.processor, problem_type=self.manifest.problem_type, settings=self.manifest.settings
        )
        return logits_of(
            self.model,
            features,
            collate=collate,
            precision=self.precision,
            batch_size=batch_size,
            advance=advance,
        )

    def decode(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """One prediction a row."""
        return self.task.decode(logits, labels=self.manifest.labels, problem_type=self.manifest.problem_type)


def find_base(manifest: Manifest, options: OpenOptions) -> BaseFolder:
    """Finds the base of an adapter: where the user says, else at its revision, else any copy of that name.

    A copy without the recorded revision (a packaged base) may still be the same base: the fingerprint decides.
    """
    if options.base is not None:
        return resolve_base(options.base, revision=None, offline=options.offline)
    try:
        return resolve_base(manifest.base.name, revision=manifest.base.revision, offline=options.offline)
    except ModelError:
        if manifest.base.revision is None:
            raise
        return resolve_base(manifest.base.name, revision=None, offline=options.offline)


def open_adapter(folder: Path, options: OpenOptions) -> SavedAdapter:
    """Opens an adapter folder; nothing is answered before everything is verified.

    Args:
        folder: An adapter folder, or the run folder that holds `adapter/`.
        options: Where the base is and how it is loaded.

    Returns:
        The adapter on its base.

    Raises:
        AdapterError: There is no adapter at `folder`.
        AdapterRefused: The folder is damaged, belongs to another base, or does not answer as it did.
        ModelError: The base cannot be found or read.
    """
    folder = resolve_adapter(folder)
    manifest = verify_files(folder)
    task = load_task(manifest.task)
    base_folder = find_base(manifest, options)
    found = fingerprint(base_folder, cache_dir=options.cache_dir)
    reasons = differences(Fingerprint(**manifest.base.fingerprint), found)
    refuse_other_base(manifest, reasons)
    quantization_config = (
        manifest.run["quantization_config"]
        if options.quantization == "as-trained"
        else QUANTIZATION_CONFIGS[options.quantization]
    )
    wish = manifest.run["dtype"]  # of the recipe; fp32 is honoured everywhere, 16 bits only where the device has them
    precision = plan_precision(device=options.device, dtype="float32" if wish == "float32" else None)
    base = load_base(
        base_folder,
        auto_class=task.auto_class,
        head=manifest.head,
        config=task.model_config(labels=manifest.labels, problem_type=manifest.problem_type),
        precision=precision,
        quantization_config=quantization_config,
        dropout=0.0,
        attn_implementation=manifest.run["attn_implementation"],
        dtype=wish if precision.autocast or wish == "float32" else None,
        trust_remote_code=options.trust_remote_code,
    )
    model = attach_saved(base.model, folder, manifest)
    cast_frozen_linears(model, precision)
    check_probe(model, manifest.probe, precision=precision.name, quantization=base.quantization)
    logger.info("adapter %s verified: files, base, tensors, probe", folder)
    return SavedAdapter(
        folder=folder,
        manifest=manifest,
        task=task,
        processor=load_processor(folder, trust_remote_code=options.trust_remote_code),
        model=model,
        precision=precision,
    )
