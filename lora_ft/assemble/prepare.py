"""Recipe -> rows, labels and features, all checked before a model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from lora_ft.data.checks import RowReport, check_rows
from lora_ft.data.encode import encode_split
from lora_ft.data.labels import canonical_labels, infer_problem_type, label_vocabulary
from lora_ft.data.sources import load_splits
from lora_ft.errors import ModelError, RecipeError, closest
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task, load_task

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded.

    Attributes:
        recipe: The recipe.
        task: Its task.
        problem_type: What the labels are.
        labels: All labels in order; empty for regression.
        base: The base's folder.
        processor: The base's tokenizer or processor.
        settings: The `processor` section with `max_length` filled in.
        rows: Rows of each split under our column names, labels canonical.
        features: Features of each split, without padding.
        report: What was counted in the rows.
        truncated: Rows of each split that were cut at `max_length`.
    """

    recipe: Recipe
    task: Task
    problem_type: str
    labels: tuple[str, ...]
    base: BaseFolder
    processor: Any
    settings: Mapping[str, Any]
    rows: Mapping[str, datasets.Dataset]
    features: Mapping[str, datasets.Dataset]
    report: RowReport
    truncated: Mapping[str, int]


def prepare(recipe: Recipe) -> Prepared:
    """Reads the rows, checks them, and encodes them.

    Args:
        recipe: A checked recipe.

    Returns:
        Rows and features of each split.

    Raises:
        DataError: A file, column, split or label is unusable.
        ModelError: The base or its tokenizer cannot be found.
        RecipeError: The recipe does not fit the data, for instance a metric of another problem type.
    """
    task = load_task(recipe.task)
    base = resolve_base(
        recipe.model.pretrained_model_name_or_path, revision=recipe.model.revision, offline=recipe.offline
    )
    raw = load_splits(
        recipe.dataset, columns=task.columns, seed=int(recipe.training_args["seed"]), offline=recipe.offline
    )
    problem_type = recipe.model.problem_type or infer_problem_type(
        raw["train"]["label"], label_names=recipe.dataset.label_names
    )
    labels = label_vocabulary(raw, problem_type=problem_type, label_names=recipe.dataset.label_names)
    check_fit(recipe, task, problem_type=problem_type, labels=labels)
    report = check_rows(raw, columns=task.columns, problem_type=problem_type, labels=labels)
    rows = {split: canonical_labels(table, problem_type=problem_type, labels=labels) for split, table in raw.items()}
    processor = load_processor(base, trust_remote_code=recipe.model.trust_remote_code)
    settings = {**recipe.processor, "max_length": longest_input(recipe, base, processor)}
    features = {
        split: encode_rows(
            table, task=task, processor=processor, labels=labels, problem_type=problem_type, settings=settings
        )
        for split, table in rows.items()
    }
    truncated = {split: sum(table["truncated"][:]) for split, table in features.items()}
    return Prepared(
        recipe=recipe, task=task, problem_type=problem_type, labels=labels, base=base, processor=processor,
        settings=settings, rows=rows, features=features, report=report, truncated=truncated,
    )  # fmt: skip


def encode_rows(
    rows: datasets.Dataset,
    *,
    task: Task,
    processor: Any,
    labels: tuple[str, ...],
    problem_type: str,
    settings: Mapping[str, Any],
) -> datasets.Dataset:
    """Encodes rows under our column names; see `Task.encode` for what comes out."""

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return task.encode(batch, processor, labels=labels, problem_type=problem_type, settings=settings)

    return encode_split(rows, encode, description=f"encode {len(rows)} rows")


def check_fit(recipe: Recipe, task: Task, *, problem_type: str, labels: Sequence[str]) -> None:
    """Refuses what the recipe asks for and this kind of labels does not have.

    The recipe's own rules say the same where the recipe names the problem type; here it comes from the data.

    Raises:
        RecipeError: Every wish that does not fit, with what would.
    """
    faults = []
    asked = recipe.training_args.get("metric_for_best_model")
    known = (*task.metrics[problem_type], "loss", *(f"f1/{label}" for label in labels))
    if asked is not None and str(asked).removeprefix("eval_") not in known:
        faults.append(
            f"training_args.metric_for_best_model = {asked}: {recipe.task} computes no such metric for "
            f"{problem_type}.{closest(str(asked), known)} Choose one of: {', '.join(known)}"
        )
    if recipe.loss.class_weight is not None and problem_type == "regression":
        faults.append("loss.class_weight: the labels are numbers, there are no classes to weigh. Leave it out")
    if recipe.training_args.get("label_smoothing_factor") and problem_type != "single_label_classification":
        faults.append(
            f"training_args.label_smoothing_factor: it has no effect on {problem_type}, only on one label a row. "
            "Leave it out"
        )
    if faults:
        raise RecipeError([f"{recipe.file}: {fault}" for fault in faults])


def base_answers(base: BaseFolder, labels: Sequence[str]) -> bool:
    """Whether the base has a head that knows these labels by name, in this order, and so can answer by itself.

    Names such as LABEL_0 say nothing of what they mean and count as not known.
    """
    named = _base_config(base).get("id2label") or {}
    order = [str(named[key]).casefold() for key in sorted(named, key=int)]
    return bool(labels) and order == [label.casefold() for label in labels]


def _base_config(base: BaseFolder) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base.folder}/config.json: cannot be read as JSON: {error}. Fetch the base again") from error
    return config


def longest_input(recipe: Recipe, base: BaseFolder, processor: Any) -> int:
    """The number of tokens at which rows are cut: as the recipe says, never more than the base can read.

    Raises:
        RecipeError: The recipe asks for more tokens than the base has positions.
        ModelError: The base's config.json cannot be read.
    """
    config = _base_config(base)
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their position numbers begin after the padding index
    limit = min(positions, int(processor.model_max_length))
    asked = recipe.processor.get("max_length")
    if asked is None:
        return min(limit, DEFAULT_MAX_LENGTH)
    if asked > positions:
        raise RecipeError(
            [
                f"{recipe.file}: processor.max_length = {asked}: {base.name} reads at most {positions} tokens. "
                f"Set it to {positions} or less"
            ]
        )
    return int(asked)
