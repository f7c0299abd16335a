"""Recipe -> rows, labels and features, all checked before a model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets

from lora_ft.assemble.decided import class_faults, with_thresholds
from lora_ft.assemble.encode import EncodedRows, encode_rows, without_media
from lora_ft.assemble.kept_features import KeptFeatures
from lora_ft.assemble.prepared_splits import prepare_splits
from lora_ft.assemble.varied import Variants, with_variants
from lora_ft.data.checks import RowReport, check_rows, drop_bad_rows
from lora_ft.data.faults import refuse_held
from lora_ft.data.labels import canonical_labels, infer_problem_type, label_vocabulary
from lora_ft.data.preparation.counts import StepCount
from lora_ft.data.rows import Origin, Splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import DataError, InputError, ModelError, RecipeError, closest
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import BaseFolder, resolve_base
from lora_ft.recipe.families import unknown_family
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task, load_task
from lora_ft.tasks.parts.problem import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded.

    Attributes:
        recipe: The recipe.
        task: Its task.
        problem: What rows, recipe and base make of the task; without `preparation`, which these rows have behind them.
        base: The base's folder.
        rows: Rows of each split under our column names, texts prepared, labels canonical; the variants of training
            rows after these.
        features: Features of each split, without padding.
        report: What was counted in the rows.
        truncated: Features of each split that were cut; empty where features are made as they are read.
        origins: Where the rows of each split are, for messages.
        texts: What was done to texts; others like them are prepared by it, see `Problem.preparation`.
        counts: What each step of the preparation did.
        variants: Which of the training rows were made of others, and how.
    """

    recipe: Recipe
    task: Task
    problem: Problem
    base: BaseFolder
    rows: Mapping[str, datasets.Dataset]
    features: Mapping[str, EncodedRows]
    report: RowReport
    truncated: Mapping[str, int]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[StepCount, ...] = ()
    variants: Variants = field(default_factory=Variants)

    def lines(self) -> list[str]:
        """What to log of the rows."""
        return [*self.report.lines(), *self.variants.lines(self.report.rows["train"])]

    @property
    def own_rows(self) -> Mapping[str, datasets.Dataset]:
        """Rows of each split without the variants of training rows."""
        train = self.rows["train"]
        return {**self.rows, "train": train.select(range(len(train) - len(self.variants.sources)))}


def prepare(
    recipe: Recipe, *, encode: bool = True, features_dir: Path | None = None, shared_dir: Path | None = None
) -> Prepared:
    """Reads the rows, checks them, and encodes them.

    Args:
        recipe: A checked recipe.
        encode: Whether features are wanted, which takes longest.
        features_dir: Where features of large splits are kept for the next run; None: nowhere.
        shared_dir: Where the processes of this run on this machine have in common what one of them makes; None: it is
            alone.

    Returns:
        Rows and features of each split.

    Raises:
        DataError: A file, column, split, row or label is unusable.
        ModelError: The base or its processor cannot be found.
        RecipeError: The recipe does not fit the data, for instance a metric of another problem type.
    """
    task, dataset, seed = load_task(recipe.task), recipe.dataset, int(recipe.training_args["seed"])
    base = resolve_base(
        recipe.model.pretrained_model_name_or_path, revision=recipe.model.revision, offline=recipe.offline
    )
    config = base_config(base)
    read = load_splits(
        dataset,
        columns=task.columns,
        column_sets=sets_of(task, recipe.model.problem_type),
        offline=recipe.offline,
        hold=True,
    )
    ready = prepare_splits(recipe, task, read)
    raw = ready.splits
    try:
        problem_type = _problem_type(recipe, task, raw, config=config)
        labels = _labels(recipe, task, raw, problem_type=problem_type)
    except DataError:
        refuse_held(raw)  # what the rest of the rows make of the labels says nothing
        raise
    _check_family(recipe, task, config)
    raw = usable_rows(task, raw, labels=labels, on_bad_row=dataset.on_bad_row, hold=True)
    if not raw.bad:
        check_fit(recipe, task, problem_type=problem_type, labels=labels)
    processor = load_processor(base, classes=task.processor_classes, trust_remote_code=recipe.model.trust_remote_code)
    processor = task.fit_processor(processor, without_media(raw["train"], task), given=recipe.processor)
    try:
        settings = task.settings(recipe.processor, base_config=config, processor=processor, problem_type=problem_type)
    except InputError as error:
        raise RecipeError([f"{recipe.file}: {error}"]) from error
    problem = Problem(
        problem_type=problem_type, labels=labels, processor=processor, settings=settings,
        generation=recipe.generation_config, augmentation=recipe.augmentation, loss=_loss_settings(recipe),
        checks_off=recipe.checks_off, seed=seed,
    )  # fmt: skip
    raw = fitting_rows(task, raw, problem, on_bad_row=dataset.on_bad_row)
    report = check_rows(raw, columns=task.columns, problem_type=problem_type, labels=labels, without=recipe.checks_off)
    rows: dict[str, datasets.Dataset] = dict(raw)
    if label_column(task):
        rows = {name: canonical_labels(table, problem_type=problem_type, labels=labels) for name, table in raw.items()}
    problem = with_thresholds(recipe, task, problem, rows)
    rows["train"], variants = with_variants(
        rows["train"], task=task, problem=problem, recipe=recipe, shared_dir=shared_dir
    )
    folder = features_dir if features_dir is not None else shared_dir
    kept = KeptFeatures(folder, processor) if folder is not None else None
    features = {
        split: encode_rows(table, task=task, problem=problem, training=split == "train", kept=kept)
        for split, table in rows.items()
        if encode
    }
    truncated = {} if task.lazy else {split: sum(table["truncated"][:]) for split, table in features.items()}
    return Prepared(
        recipe=recipe, task=task, problem=problem, base=base, rows=rows, features=features, report=report,
        truncated=truncated, origins=variants.origins_of(raw.origins), texts=ready.texts, counts=tuple(ready.counts),
        variants=variants,
    )  # fmt: skip


def _loss_settings(recipe: Recipe) -> dict[str, Any]:
    """What the task itself reads of the section `loss`."""
    values = {"loss_type": recipe.loss.loss_type, "beta": recipe.loss.beta}
    return {name: value for name, value in values.items() if value is not None}


def sets_of(task: Task, problem_type: str | None) -> Mapping[str, tuple[str, ...]]:
    """The sets of columns that rows may have; the one of a problem type where that is decided."""
    sets = task.column_sets
    return {problem_type: sets[problem_type]} if problem_type is not None and problem_type in sets else sets


def label_column(task: Task) -> bool:
    """Whether a task has a column of labels, which says what kind of problem it is."""
    return any(column.kind == "label" for column in task.columns)


def _problem_type(recipe: Recipe, task: Task, raw: Splits, *, config: Mapping[str, Any]) -> str:
    """What kind of problem it is: as the recipe says, else by the labels, else by columns and base."""
    given = recipe.model.problem_type
    if given is None and label_column(task):
        given = infer_problem_type(raw["train"]["label"], label_names=recipe.dataset.label_names)
    if given is None:
        given = task.problem_type_of(raw["train"].column_names, base_config=config)
    if given not in task.metrics:
        raise RecipeError(
            [f"{recipe.file}: the labels make it a {given}, and {task.name} knows only: {', '.join(task.metrics)}"]
        )
    return given


def _check_family(recipe: Recipe, task: Task, config: Mapping[str, Any]) -> None:
    """Refuses a base that no model of the task can be made of; a base on this disk was refused with the recipe."""
    told = unknown_family(config, task.auto_classes(), task=task.name)
    if told is not None:
        raise RecipeError([f"{recipe.file}: model.pretrained_model_name_or_path: {told}"])


def _labels(recipe: Recipe, task: Task, raw: Splits, *, problem_type: str) -> tuple[str, ...]:
    """All labels in order: the recipe's, else the source's, else those of the training rows."""
    given = recipe.dataset.label_names
    if label_column(task):
        return label_vocabulary(raw, problem_type=problem_type, label_names=given)
    return task.vocabulary(without_media(raw["train"], task), given=given or raw.label_names)


def usable_rows(
    task: Task, splits: Splits, *, labels: Sequence[str], on_bad_row: Literal["error", "skip"], hold: bool = False
) -> Splits:
    """The rows that the task can use.

    Args:
        task: The task; it says what is wrong with a row.
        splits: Rows under our column names.
        labels: All labels in order.
        on_bad_row: What happens to the others.
        hold: Whether they are refused later, with those that do not fit.

    Raises:
        DataError: There are others and they are not to be skipped, or too many of them are.
    """
    if type(task).fault is not Task.fault:
        splits = drop_bad_rows(
            splits, lambda row: task.fault(row, labels=labels), on_bad_row=on_bad_row, hold=True, only=("train",)
        )
        doubtful = any(group.split == "train" for group in splits.bad)  # the labels of bad training rows judge nobody
        known = () if doubtful else labels
        others = [split for split in splits if split != "train"]
        splits = drop_bad_rows(
            splits, lambda row: task.fault(row, labels=known), on_bad_row=on_bad_row, hold=True, only=others
        )
    if not hold:
        refuse_held(splits)
    return splits


def fitting_rows(task: Task, splits: Splits, problem: Problem, *, on_bad_row: Literal["error", "skip"]) -> Splits:
    """The rows that can be learned with this processor and these settings; see `usable_rows`."""
    if type(task).misfit is Task.misfit:
        refuse_held(splits)
        return splits
    return drop_bad_rows(splits, lambda row: task.misfit(row, problem), on_bad_row=on_bad_row)


def check_fit(recipe: Recipe, task: Task, *, problem_type: str, labels: Sequence[str]) -> None:
    """Refuses what the recipe asks for and this kind of labels does not have.

    The recipe's own rules say the same where the recipe names the problem type; here it comes from the data.

    Raises:
        RecipeError: Every wish that does not fit, with what would.
    """
    faults = []
    asked = recipe.training_args.get("metric_for_best_model")
    metrics = task.metrics[problem_type]
    families = [family for family in ("f1", "map") if any(one.partition("_")[0] == family for one in metrics)]
    kinds = dict.fromkeys(label.removeprefix("B-").removeprefix("I-") for label in labels)
    known = (*metrics, "loss", *(f"{family}/{kind}" for family in families for kind in kinds))
    if asked is not None and str(asked).removeprefix("eval_") not in known:
        faults.append(
            f"training_args.metric_for_best_model = {asked}: {recipe.task} computes no such metric for "
            f"{problem_type}.{closest(str(asked), known)} Choose one of: {', '.join(known)}"
        )
    faults += class_faults(recipe, problem_type=problem_type, labels=labels)
    single = problem_type == "single_label_classification"
    if recipe.training_args.get("label_smoothing_factor") and label_column(task) and not single:
        faults.append(
            f"training_args.label_smoothing_factor: it has no effect on {problem_type}, only on one label a row. "
            "Leave it out"
        )
    if faults:
        raise RecipeError([f"{recipe.file}: {fault}" for fault in faults])


def base_answers(base: BaseFolder, task: Task, labels: Sequence[str]) -> bool:
    """Whether the base's own head means what the task means by it, and so can answer by itself.

    A head for labels must know them by name, in this order; names such as LABEL_0 say nothing of what they mean. Where
    there are no labels (language models, transcripts), there is nothing to mistake.
    """
    if not labels:
        return not label_column(task)
    named = base_config(base).get("id2label") or {}
    order = [str(named[key]).casefold() for key in sorted(named, key=int)]
    return order == [label.casefold() for label in labels]


def base_config(base: BaseFolder) -> dict[str, Any]:
    """The base's config.json.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        config: dict[str, Any] = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{base.folder}/config.json: cannot be read as JSON: {error}. Fetch the base again") from error
    return config
