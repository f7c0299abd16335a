"""Adopts an adapter of plain peft: puts it on its base, proves that it landed, and writes it as a folder of ours."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from ruamel.yaml import YAML
from safetensors.torch import load_file

from lora_ft.adapters.card import model_card
from lora_ft.adapters.convolutions import show_geometry
from lora_ft.adapters.folder import check_landed, write_adapter
from lora_ft.adapters.foreign import HEADS_OF_PEFT
from lora_ft.adapters.manifest import BaseIdentity, Manifest, installed_versions
from lora_ft.adapters.method import UNFIT
from lora_ft.adapters.probe import make_probe
from lora_ft.adapters.targets import inside
from lora_ft.adapters.verify import CONFIG, WEIGHTS, hash_file, verify_files
from lora_ft.assemble.adoption import Adoption, refusal
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.prepare import base_answers
from lora_ft.assemble.probe import probe_batch, probe_forward
from lora_ft.assemble.saved import SavedAdapter
from lora_ft.errors import RunError
from lora_ft.models.fingerprint import fingerprint
from lora_ft.models.load import Base, load_base, load_processor
from lora_ft.models.precision import Precision, cast_frozen_linears, plan_precision
from lora_ft.models.processor import has_files, inner_tokenizer
from lora_ft.models.size import base_size
from lora_ft.tasks.parts.problem import Problem

SEED = 0
"""Of the adoption: it draws the head of the bare base where that has none. The seed of the training is not known."""

UNKNOWN = ("training data", "training seed", "steps", "hyperparameters", "whether it learned anything")
"""What a folder of plain peft never says."""

METRICS = "metrics"
"""Not known either, unless they are measured."""


@dataclass(frozen=True)
class Measured:
    """What the adapter came to on rows that the user gave.

    Attributes:
        file: The file with the rows.
        rows: How many.
        metrics: Of the adapter.
    """

    file: Path
    rows: int
    metrics: dict[str, float]


def open_foreign(adoption: Adoption, *, device: str | None, cache_dir: Path | None) -> SavedAdapter:
    """Puts an adapter of plain peft on its base and makes a probe of it.

    Args:
        adoption: What `plan_adoption` returned.
        device: `cpu`, `cuda`, ...; None: the best there is.
        cache_dir: Where fingerprints of bases are remembered.

    Returns:
        The adapter on its base, ready to answer; its manifest is as it will be written, but for metrics and files.

    Raises:
        AdapterRefused: A tensor does not land, the head is not whole, or the adapter has no effect.
        ModelError: The base cannot be read.
    """
    task, adapter = adoption.task, adoption.adapter
    if adapter.peft_type in UNFIT:
        raise refusal(adapter.folder, [f"peft_type = {adapter.peft_type!r}: {UNFIT[adapter.peft_type]}"])
    precision = plan_precision(device=device, dtype="float32" if adoption.dtype == "float32" else None)
    problem = _problem(adoption)
    transformers.set_seed(SEED)
    base = load_base(
        adoption.base, auto_class=task.model_class(problem.problem_type), head=adapter.head,
        config=task.model_config(problem), precision=precision, quantization_config=None, dropout=0.0,
        attn_implementation=None, dtype=adoption.dtype if precision.autocast or adoption.dtype == "float32" else None,
        trust_remote_code=False,
    )  # fmt: skip
    _refuse_random_head(adoption, base)
    _refuse_larger_vocabulary(adoption, base, problem.processor)
    size = base_size(base.model)
    model = _attach(adoption, base)
    cast_frozen_linears(model, precision)
    identity = BaseIdentity(
        name=adoption.base.name,
        revision=adoption.base.revision,
        fingerprint=asdict(fingerprint(adoption.base, cache_dir=cache_dir)),
        parameters=size.parameters,
        bytes=size.bytes,
    )
    manifest = _manifest(adoption, problem, model, identity=identity, base=base, precision=precision)
    if manifest.probe.logits == manifest.probe.bare_logits and not adoption.untrained:
        raise refusal(
            adapter.folder,
            [
                "it changes no answer to the example rows: THE ADAPTER HAS NO EFFECT. To adopt it all the same give "
                "--untrained"
            ],
        )
    return SavedAdapter(
        folder=adapter.folder, manifest=manifest, task=task, processor=problem.processor, model=model,
        precision=precision,
    )  # fmt: skip


def measure(opened: SavedAdapter, rows: datasets.Dataset, *, file: Path, batch_size: int) -> Measured:
    """Measures an adapter on labelled rows.

    Args:
        opened: What `open_foreign` returned.
        rows: Rows with canonical labels.
        file: Where they came from.
        batch_size: Features a batch.
    """
    references = references_of(rows, task=opened.task, problem=opened.problem)
    predictions = opened.predict(rows, batch_size=batch_size)
    return Measured(file, len(rows), dict(opened.task.score(predictions, references, opened.problem)))


def write_adopted(
    target: Path, opened: SavedAdapter, adoption: Adoption, *, measured: Measured | None, overwrite: bool
) -> Manifest:
    """Writes the adopted adapter as a folder of ours and verifies what was written; the original stays as it is.

    Args:
        target: The folder to be.
        opened: What `open_foreign` returned.
        adoption: What `plan_adoption` returned.
        measured: Metrics on rows of the user, or None: they are unknown.
        overwrite: Whether an adapter at `target` may be replaced.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: The folder cannot be written.
    """
    manifest = opened.manifest
    if measured is not None:
        rows = {"file": str(measured.file), **asdict(hash_file(measured.file))}
        facts = {**manifest.run["adopted"], "unknown": list(UNKNOWN), "data": rows}
        manifest = dataclasses.replace(
            manifest,
            metrics={"data": measured.metrics},
            run={**manifest.run, "adopted": facts, "rows": {"data": measured.rows}},
        )
    generation = manifest.run["generation_config"]

    def check(written: Path, _: Manifest) -> None:
        verify_files(written)

    return write_adapter(
        target,
        model=opened.model,
        processor=opened.processor,
        recipe_yaml=_recipe(adoption),
        manifest=manifest,
        metrics={"adapter": manifest.metrics, "baseline": {}, "learned": None},
        card=model_card(
            manifest,
            auto_class=opened.task.model_class(manifest.problem_type),
            config=opened.task.model_config(opened.problem),
        ),
        generation_config=transformers.GenerationConfig(**generation) if generation else None,
        overwrite=overwrite,
        option="--output",
        check=check,
    )


def _problem(adoption: Adoption) -> Problem:
    """What the adapter is about, with the processor that lies beside it, else the base's."""
    task, folder = adoption.task, adoption.adapter.folder
    own = any(has_files(folder, name) for name in task.processor_classes)
    processor = load_processor(
        folder if own else adoption.base, classes=task.processor_classes, trust_remote_code=False
    )
    processor = task.fit_processor(processor, (), given=adoption.processor)
    settings = task.settings(
        adoption.processor, base_config=adoption.base_config, processor=processor, problem_type=adoption.problem_type
    )
    return Problem(
        problem_type=adoption.problem_type, labels=adoption.labels, processor=processor, settings=settings,
        generation=adoption.generation, seed=SEED,
    )  # fmt: skip


def _refuse_random_head(adoption: Adoption, base: Base) -> None:
    """Refuses where a module has weights neither in the base nor in the adapter: plain peft would draw them anew."""
    names = [name for name, _ in base.model.named_modules()]
    random = [
        one
        for one in base.head
        if any((name == one or name.endswith(f".{one}")) and not inside(name, adoption.adapter.head) for name in names)
    ]
    if random:
        raise refusal(
            adoption.adapter.folder,
            [
                f"{WEIGHTS} has no tensor of {' and '.join(random)}, and {adoption.base.name} has none either: plain "
                "peft starts them at random at every load, so what it was trained with is lost. Where it was "
                f"trained, save it with modules_to_save: {[*adoption.adapter.head, *random]}; else train again"
            ],
        )


def _refuse_larger_vocabulary(adoption: Adoption, base: Base, processor: Any) -> None:
    """Refuses a tokenizer with tokens that the base has no embedding for."""
    tokenizer = inner_tokenizer(processor)
    if tokenizer is None:
        return
    rows = base.model.get_input_embeddings().weight.shape[0] if base.model.main_input_name == "input_ids" else None
    if rows is not None and len(tokenizer) > rows:
        raise refusal(
            adoption.adapter.folder,
            [
                f"its tokenizer has {len(tokenizer)} tokens, {adoption.base.name} has embeddings of {rows}: tokens "
                "were added before it was trained. Resize the base likewise, save it as a folder of its own, and give "
                "that as --base"
            ],
        )


def _attach(adoption: Adoption, base: Base) -> PeftModel:
    """Puts the adapter on its base, frozen, and makes sure that every tensor has landed bit by bit."""
    adapter, file = adoption.adapter, adoption.adapter.folder / WEIGHTS
    try:
        model: PeftModel = PeftModel.from_pretrained(
            base.model,
            str(adapter.folder),
            is_trainable=False,
            config=_peft_config(adoption),
            low_cpu_mem_usage=adapter.peft_type == "LORA" and base.model.dtype == torch.float32,  # as at every load
            torch_device=str(next(base.model.parameters()).device),
        )
        check_landed(model, load_file(file), file=file)
    except KeyError as error:  # peft looks for each tensor of the head by name
        raise refusal(
            adapter.folder, [f"{file}: tensor {error} of the head is missing. Copy the folder again"]
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise refusal(
            adapter.folder,
            [f"peft {peft.__version__} cannot put it on {type(base.model).__name__} {adoption.base.name}: {reason}"],
        ) from error
    show_geometry(model)
    model.peft_config["default"].modules_to_save = list(adapter.head) or None  # peft adds names that no base has
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _peft_config(adoption: Adoption) -> Any:
    """The peft config of the adapter for the task, without what older versions wrote and this one does not know."""
    adapter, task = adoption.adapter, adoption.task
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.peft_type]
    fields = {one.name for one in dataclasses.fields(config_class)}
    given = dict(adapter.peft_fields)
    if "modules_to_save" in fields:
        given["modules_to_save"] = list(adapter.head) or None
    automatic = HEADS_OF_PEFT.get(str(task.peft_task_type))
    bare = automatic is not None and not set(automatic) & set(adapter.head)  # peft would look for a head of its own
    try:
        config = config_class(**given, task_type=None if bare else task.peft_task_type)
    except (ValueError, TypeError) as error:
        raise refusal(
            adapter.folder, [f"{adapter.folder / CONFIG}: peft {peft.__version__} refuses it: {error}"]
        ) from error
    config.inference_mode = True
    return config


def _manifest(
    adoption: Adoption, problem: Problem, model: Any, *, identity: BaseIdentity, base: Base, precision: Precision
) -> Manifest:
    """All that is known of the adapter, and which things are not."""
    task, adapter = adoption.task, adoption.adapter
    try:
        probe = make_probe(
            model,
            probe_batch(task, problem),
            forward=probe_forward(task, problem),
            precision=precision.name,
            quantization=None,
        )
    except RunError as error:
        reason = "on this base it answers with numbers that are not finite. Give the base that it was trained on"
        raise refusal(adapter.folder, [reason]) from error
    needed = task.column_sets.get(problem.problem_type)
    columns = [one.name for one in task.inputs() if (one.name in needed if needed else one.required)]
    return Manifest(
        task=task.name, problem_type=problem.problem_type, labels=problem.labels, base=identity, head=adapter.head,
        new_head=base.new_head, peft_type=adapter.peft_type, versions=installed_versions(), seed=SEED, metrics={},
        learned=None, settings=dict(problem.settings), precision=precision.name, quantization=None, probe=probe,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        run={
            "adopted": {
                "unknown": [*UNKNOWN, METRICS],
                "notes": list(adoption.notes),
                "base_model_name_or_path": adapter.config.get("base_model_name_or_path"),
                "revision": adapter.config.get("revision"),
                "peft_version": adapter.config.get("peft_version"),
                "config": asdict(hash_file(adapter.folder / CONFIG)),
                "weights": asdict(hash_file(adapter.folder / WEIGHTS)),
            },
            "steps": None,
            "quantization_config": None,
            "attn_implementation": None,
            "dtype": adoption.dtype,
            "rows": {},
            "truncated": {},
            "baseline": {},
            "majority": None,
            "base_answers": not base.new_head and base_answers(adoption.base, task, problem.labels),
            "columns": columns,
            "generation_config": dict(problem.generation),
            "loss": {},
        },
    )  # fmt: skip


def _recipe(adoption: Adoption) -> str:
    """The recipe as far as the adapter tells it, as YAML under a header that says what is missing."""
    adapter, base = adoption.adapter, adoption.base
    model = {
        "pretrained_model_name_or_path": base.name,
        "revision": base.revision,
        "dtype": adoption.dtype,
        "problem_type": adoption.problem_type if adoption.labels else None,
    }
    fields = {"peft_type": adapter.peft_type, **adapter.peft_fields}
    dataset = {"label_names": list(adoption.labels), **adoption.dataset}
    sections = {
        "task": adoption.task.name,
        "model": {key: value for key, value in model.items() if value is not None},
        "peft_config": fields,
        "dataset": {key: value for key, value in dataset.items() if value},
        "processor": dict(adoption.processor),
        "generation_config": dict(adoption.generation),
    }
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.width = 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump({key: value for key, value in sections.items() if value or key == "dataset"}, stream)
    return (
        "# Adopted from plain peft, not made by this recipe: data, seed and training_args are not known.\n"
        "# lora-ft train cannot run it before dataset.data_files and training_args are written.\n" + stream.getvalue()
    )
