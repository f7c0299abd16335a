"""A trained adapter -> its folder: probe, manifest, model card, written at once and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lora_ft.adapters.card import model_card
from lora_ft.adapters.folder import write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Manifest, installed_versions
from lora_ft.adapters.probe import make_probe
from lora_ft.adapters.verify import verify_files
from lora_ft.assemble.fresh import FreshAdapter
from lora_ft.assemble.prepare import Prepared, base_answers
from lora_ft.models.fingerprint import fingerprint
from lora_ft.recipe.write import resolved_yaml


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        metrics: `{split: {metric: value}}` of the adapter.
        baseline: The same for the majority answer.
        learned: Whether the adapter beats the majority answer; None without a validation split.
        majority: The majority answer itself.
        run: Facts of the run: seconds, steps, epochs, command.
    """

    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    learned: bool | None
    majority: Mapping[str, Any]
    run: Mapping[str, Any]


def save_adapter(
    folder: Path,
    *,
    prepared: Prepared,
    fresh: FreshAdapter,
    outcome: Outcome,
    cache_dir: Path | None,
    overwrite: bool,
) -> Manifest:
    """Writes the adapter folder and verifies what was written.

    Args:
        folder: Where it goes.
        prepared: Task, labels, rows and recipe.
        fresh: The trained model.
        outcome: What the run came to.
        cache_dir: Where fingerprints of bases are remembered.
        overwrite: Whether an adapter that is there may be replaced.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: The folder cannot be written, or what was written is not what was meant.
    """
    manifest = describe(prepared, fresh, outcome=outcome, cache_dir=cache_dir)
    write_adapter(
        folder,
        model=fresh.model,
        processor=prepared.processor,
        recipe_yaml=resolved_yaml(prepared.recipe),
        manifest=manifest,
        metrics={"adapter": manifest.metrics, "majority": manifest.run["baseline"], "learned": outcome.learned},
        card=model_card(manifest, auto_class=prepared.task.auto_class),
        overwrite=overwrite,
    )
    return verify_files(folder)


def describe(prepared: Prepared, fresh: FreshAdapter, *, outcome: Outcome, cache_dir: Path | None) -> Manifest:
    """The manifest of a trained adapter, without the files and tensors that only the writing knows."""
    recipe = prepared.recipe
    return Manifest(
        task=recipe.task,
        problem_type=prepared.problem_type,
        labels=prepared.labels,
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
        settings=dict(prepared.settings),
        precision=fresh.precision.name,
        quantization=fresh.base.quantization,
        probe=make_probe(
            fresh.model,
            probe_inputs(prepared),
            precision=fresh.precision.name,
            quantization=fresh.base.quantization,
        ),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        run={
            **outcome.run,
            "quantization_config": dict(recipe.quantization_config) if recipe.quantization_config else None,
            "attn_implementation": recipe.model.attn_implementation,
            "dtype": recipe.model.dtype,
            "rows": {split: len(table) for split, table in prepared.rows.items()},
            "truncated": dict(prepared.truncated),
            "baseline": {split: dict(values) for split, values in outcome.baseline.items()},
            "majority": dict(outcome.majority),
            "base_answers": not fresh.base.new_head and base_answers(prepared.base, prepared.labels),
            "columns": [name for name in prepared.rows["train"].column_names if name != "label"],
        },
    )


def probe_inputs(prepared: Prepared) -> dict[str, Any]:
    """The batch whose logits prove at every load that the adapter answers as it did: the task's example texts."""
    rows = prepared.task.example_rows(prepared.problem_type)
    inputs = {name: values for name, values in rows.items() if name != "label"}
    features = prepared.task.encode(
        inputs,
        prepared.processor,
        labels=prepared.labels,
        problem_type=prepared.problem_type,
        settings=prepared.settings,
    )
    names = [name for name in features if name not in ("length", "truncated")]
    collate = prepared.task.collator(prepared.processor, problem_type=prepared.problem_type, settings=prepared.settings)
    count = len(features["length"])
    batch: dict[str, Any] = collate([{name: features[name][index] for name in names} for index in range(count)])
    return batch
