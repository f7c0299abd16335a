"""A trained adapter -> its folder: probe, manifest, model card, written at once and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from lora_ft.adapters.card import model_card
from lora_ft.adapters.folder import write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Centroid, Manifest, Probe, installed_versions
from lora_ft.adapters.probe import adapter_off, make_probe
from lora_ft.adapters.verify import verify_files
from lora_ft.assemble.embed import centroid_of
from lora_ft.assemble.fresh import FreshAdapter
from lora_ft.assemble.prepare import Prepared, base_answers
from lora_ft.assemble.probe import probe_batch, probe_forward
from lora_ft.models.fingerprint import fingerprint
from lora_ft.ops.shards import put_together
from lora_ft.recipe.write import resolved_yaml


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        metrics: `{split: {metric: value}}` of the adapter.
        baseline: The same for the best constant answer, or for the untrained model.
        learned: Whether the adapter beats that; None without a validation split.
        majority: The constant answer itself, or None.
        run: Facts of the run: seconds, steps, epochs, command.
    """

    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    learned: bool | None
    majority: Mapping[str, Any] | None
    run: Mapping[str, Any]


@dataclass(frozen=True)
class TriedOut:
    """What a trained model answers, for those who load it.

    Attributes:
        probe: A batch and its answers.
        centroid: Where the training rows lie for the base; None where it embeds nothing.
    """

    probe: Probe
    centroid: Centroid | None

    @classmethod
    def of(cls, prepared: Prepared, fresh: FreshAdapter) -> TriedOut:
        """Runs the model; all processes have to, where each has but a piece of it."""
        probe = make_probe(
            fresh.model,
            probe_batch(prepared.task, prepared.problem),
            forward=probe_forward(prepared.task, prepared.problem),
            precision=fresh.precision.name,
            quantization=fresh.base.quantization,
        )
        return cls(probe, _centroid(prepared, fresh))


def save_adapter(
    folder: Path,
    *,
    prepared: Prepared,
    fresh: FreshAdapter,
    tensors: Mapping[str, torch.Tensor],
    tried: TriedOut,
    outcome: Outcome,
    cache_dir: Path | None,
    overwrite: bool,
) -> Manifest:
    """Writes the adapter folder; what was written is verified before it takes the place of what is there.

    Args:
        folder: Where it goes.
        prepared: Task, labels, rows and recipe.
        fresh: The trained model.
        tensors: Adapter and head, whole, by peft's names.
        tried: What the model answers.
        outcome: What the run came to.
        cache_dir: Where fingerprints of bases are remembered.
        overwrite: Whether an adapter that is there may be replaced.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: The folder cannot be written, or what was written is not what was meant.
    """
    manifest = describe(prepared, fresh, tried=tried, outcome=outcome, cache_dir=cache_dir)
    recipe_generation = prepared.problem.generation

    def check(written: Path, _: Manifest) -> None:
        verify_files(written)

    return write_adapter(
        folder,
        model=fresh.model,
        tensors=tensors,
        processor=prepared.problem.processor,
        recipe_yaml=resolved_yaml(prepared.recipe),
        manifest=manifest,
        metrics={"adapter": manifest.metrics, "baseline": manifest.run["baseline"], "learned": outcome.learned},
        card=model_card(
            manifest,
            auto_class=prepared.task.model_class(prepared.problem.problem_type),
            config=prepared.task.model_config(prepared.problem),
        ),
        generation_config=transformers.GenerationConfig(**recipe_generation) if recipe_generation else None,
        overwrite=overwrite,
        check=check,
    )


def describe(
    prepared: Prepared, fresh: FreshAdapter, *, tried: TriedOut, outcome: Outcome, cache_dir: Path | None
) -> Manifest:
    """The manifest of a trained adapter, without the files and tensors that only the writing knows."""
    recipe = prepared.recipe
    return Manifest(
        task=recipe.task,
        problem_type=prepared.problem.problem_type,
        labels=prepared.problem.labels,
        base=BaseIdentity(
            name=prepared.base.name,
            revision=prepared.base.revision,
            fingerprint=asdict(fingerprint(prepared.base, cache_dir=cache_dir)),
            parameters=fresh.size.parameters,
            bytes=fresh.size.bytes,
        ),
        head=fresh.base.head,
        new_head=fresh.base.new_head,
        peft_type=str(recipe.peft_config["peft_type"]),
        versions=installed_versions(),
        seed=int(recipe.training_args["seed"]),
        metrics={split: dict(values) for split, values in outcome.metrics.items()},
        learned=outcome.learned,
        settings=dict(prepared.problem.settings),
        precision=fresh.precision.name,
        quantization=fresh.base.quantization,
        probe=tried.probe,
        centroid=tried.centroid,
        preparation=dict(prepared.texts),
        checks_off=sorted(recipe.checks_off),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        run={
            **outcome.run,
            "quantization_config": dict(recipe.quantization_config) if recipe.quantization_config else None,
            "attn_implementation": recipe.model.attn_implementation,
            "dtype": recipe.model.dtype,
            "rows": {split: len(table) for split, table in prepared.rows.items()},
            "truncated": dict(prepared.truncated),
            "baseline": {split: dict(values) for split, values in outcome.baseline.items()},
            "majority": dict(outcome.majority) if outcome.majority is not None else None,
            "base_answers": not fresh.base.new_head
            and base_answers(prepared.base, prepared.task, prepared.problem.labels),
            "columns": [one.name for one in prepared.task.inputs() if one.name in prepared.rows["train"].column_names],
            "generation_config": dict(recipe.generation_config),
            "loss": dict(prepared.problem.loss),
            "preparation": [count.as_json() for count in prepared.counts],
            "variants": prepared.variants.as_json(),
        },
    )


def _centroid(prepared: Prepared, fresh: FreshAdapter) -> Centroid | None:
    """Of the training rows, by the base as it was before the run."""
    with adapter_off(fresh.model), put_together(fresh.model):
        return centroid_of(
            fresh.model.get_base_model(),
            prepared.own_rows["train"],
            task=prepared.task,
            problem=prepared.problem,
            precision=fresh.precision,
        )
