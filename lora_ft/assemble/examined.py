"""Recipe -> what the data doctor finds in its rows: with the recipe's own tokenizer, but without loading its base."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import datasets
import numpy as np

from lora_ft.assemble.examination import Examination, Watch, unwatched
from lora_ft.assemble.examined_media import examine_media
from lora_ft.assemble.examined_texts import examine_texts, inputs_of
from lora_ft.assemble.prepare import label_column, sets_of, usable_rows
from lora_ft.assemble.prepared_splits import prepare_splits
from lora_ft.data.doctor.findings import Finding, in_order
from lora_ft.data.doctor.stream import JOINT, text_columns
from lora_ft.data.faults import refuse_held
from lora_ft.data.labels import infer_problem_type
from lora_ft.data.preparation.counts import StepCount
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import DataError
from lora_ft.recipe.check_names import FINDINGS
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task, load_task

BAD_ROWS = "bad-rows"
EXCERPTS = 3
EXCERPT_CHARACTERS = 160


def examine(recipe: Recipe, *, watch: Watch = unwatched) -> Examination:
    """Looks for everything that is wrong with the rows of a recipe.

    Args:
        recipe: A checked recipe.
        watch: Makes the progress bars.

    Returns:
        What was counted and found. Faults of single rows are findings, too, and are not raised.

    Raises:
        DataError: A file, column or split cannot be read at all, or the labels leave open what they are.
        ModelError: The base, whose tokenizer is needed, cannot be found.
    """
    began = time.monotonic()
    task = load_task(recipe.task)
    splits, bad, prepared = _rows(recipe, task)
    problem_type = _problem_type(recipe, task, splits)
    look = examine_media if any(column.kind in ("image", "audio") for column in task.inputs()) else examine_texts
    reports, findings, (max_length, suggested) = look(recipe, task, splits, problem_type=problem_type, watch=watch)
    bad_of = {split: sum(len(group.rows) for group in splits.bad if group.split == split) for split in splits}
    reports = {split: replace(report, bad=bad_of[split]) for split, report in reports.items()}
    off = recipe.checks_off
    ordered = in_order(one for one in [*bad, *findings] if one.name not in off)
    return Examination(
        str(recipe.file), task.name, reports, ordered, [excerpts_of(splits, task, one) for one in ordered],
        splits.origins, max_length, suggested, time.monotonic() - began, sorted(off & set(FINDINGS)), prepared,
    )  # fmt: skip


def _rows(recipe: Recipe, task: Task) -> tuple[Splits, list[Finding], Sequence[StepCount]]:
    """The rows that can be used, prepared as for training; findings of those that cannot; what preparation did."""
    splits = load_splits(
        replace(recipe.dataset, on_bad_row="error"), columns=task.columns,
        column_sets=sets_of(task, recipe.model.problem_type), offline=recipe.offline, hold=True,
    )  # fmt: skip
    skips, held = recipe.dataset.on_bad_row == "skip", splits.bad
    if skips and len(splits["train"]):
        splits.bad = ()  # a run goes on without them, and its shares are split off the rest
    ready = prepare_splits(recipe, task, splits, until="filters")
    ready.splits.bad = held
    splits = usable_rows(task, ready.splits, labels=(), on_bad_row="error", hold=True)
    if any(not len(table) for table in splits.values()):
        refuse_held(splits)
        empty = next(split for split, table in splits.items() if not len(table))
        raise DataError(f"dataset: the {empty} split has no rows. Expected at least one; fill it or take it out")
    found = []
    for group in splits.bad:
        reasons = dict.fromkeys(reason for _, reason in group.faults)
        shown = "; ".join(list(reasons)[:3]) + (f"; {len(reasons) - 3} more" if len(reasons) > 3 else "")
        remedy = (
            "Mend them; they are left out of the run" if skips else "Mend them, or write `dataset.on_bad_row: skip`"
        )
        rows = np.array(sorted(group.rows), dtype=np.int64)
        told = f"cannot be used ({shown})"
        found.append(
            Finding(
                BAD_ROWS, "warning" if skips else "error", group.split, len(rows), group.of, told, remedy,
                rows=rows, origin=group.origin,
            )
        )  # fmt: skip
    return splits, found, ready.counts


def _problem_type(recipe: Recipe, task: Task, splits: Splits) -> str:
    if recipe.model.problem_type is not None:
        return recipe.model.problem_type
    if label_column(task):
        return infer_problem_type(splits["train"]["label"], label_names=recipe.dataset.label_names)
    return next(iter(task.metrics))


def excerpts_of(splits: Mapping[str, datasets.Dataset], task: Task, finding: Finding) -> list[str]:
    """The beginnings of a few texts of a finding; none of bad rows, which are not among the rows."""
    rows = finding.rows[:EXCERPTS].tolist()
    if not rows or finding.name == BAD_ROWS or not text_columns(splits[finding.split], task.columns):
        return []
    texts = [text.replace(JOINT, " | ") for text in inputs_of(splits[finding.split], task.columns, rows)]
    return [text[:EXCERPT_CHARACTERS] + (" ..." if len(text) > EXCERPT_CHARACTERS else "") for text in texts]
