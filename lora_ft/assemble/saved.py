"""Adapter folder -> verified model that answers: files, base, tensors and probe are checked before it is handed out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import transformers

from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.verify import refuse_other_base, resolve_adapter, verify_files
from lora_ft.assemble.answer import answer, join_rows
from lora_ft.assemble.encode import EncodedRows, encode_rows
from lora_ft.assemble.probe import probe_forward
from lora_ft.errors import ModelError
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import Precision, cast_frozen_linears, plan_precision
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.tasks.base import Task, load_task
from lora_ft.tasks.parts.problem import Problem

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

    @property
    def problem(self) -> Problem:
        """What the adapter was trained for, with the processor that lies beside it."""
        return Problem(
            problem_type=self.manifest.problem_type,
            labels=self.manifest.labels,
            processor=self.processor,
            settings=self.manifest.settings,
            generation=self.manifest.run.get("generation_config", {}),
            preparation=self.manifest.preparation,
            loss=self.manifest.run.get("loss", {}),
            seed=self.manifest.seed,
        )

    def encode(self, rows: datasets.Dataset) -> EncodedRows:
        """Encodes rows under our column names; labels, where there are any, must be canonical."""
        return encode_rows(rows, task=self.task, problem=self.problem)

    def predict(
        self,
        rows: datasets.Dataset,
        *,
        batch_size: int,
        features: EncodedRows | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """One prediction for each row, in order.

        Args:
            rows: Rows under our column names; with targets they are measured, without they are answered.
            batch_size: Features a batch.
            features: Of these rows, if they are there already.
            advance: Called with the number of features done.
        """
        task, problem = self.task, self.problem
        encoded = self.encode(rows) if features is None else features
        answers = answer(
            self.model, encoded, task=task, problem=problem, precision=self.precision, batch_size=batch_size,
            advance=advance,
        )  # fmt: skip
        return join_rows(answers.parts, encoded, rows, task=task, problem=problem)


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
    processor = load_processor(folder, classes=task.processor_classes, trust_remote_code=options.trust_remote_code)
    problem = Problem(manifest.problem_type, manifest.labels, processor, manifest.settings)
    transformers.set_seed(manifest.seed)  # for a head that the base lacks: without the adapter it is asked too
    base = load_base(
        base_folder,
        auto_class=task.model_class(manifest.problem_type),
        head=manifest.head,
        config=task.model_config(problem),
        precision=precision,
        quantization_config=quantization_config,
        dropout=0.0,
        attn_implementation=manifest.run["attn_implementation"],
        dtype=wish if precision.autocast or wish == "float32" else None,
        trust_remote_code=options.trust_remote_code,
    )
    model = attach_saved(base.model, folder, manifest)
    cast_frozen_linears(model, precision)
    check_probe(
        model,
        manifest.probe,
        forward=probe_forward(task, problem),
        precision=precision.name,
        quantization=base.quantization,
    )
    logger.info("adapter %s verified: files, base, tensors, probe", folder)
    return SavedAdapter(
        folder=folder, manifest=manifest, task=task, processor=processor, model=model, precision=precision
    )
