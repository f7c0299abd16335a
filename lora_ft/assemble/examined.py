"""Recipe -> what the data doctor finds in its rows: with the recipe's own tokenizer, but without loading its base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from lora_ft.assemble.prepare import base_config, label_column, sets_of, usable_rows
from lora_ft.data.contents import text_inputs
from lora_ft.data.doctor.boilerplate import BoilerplateCheck
from lora_ft.data.doctor.duplicates import DuplicateCheck
from lora_ft.data.doctor.findings import Finding, as_json, in_order, places
from lora_ft.data.doctor.labels import LabelCheck
from lora_ft.data.doctor.lengths import LengthCheck, Spread, Tokens
from lora_ft.data.doctor.scripts import ScriptCheck
from lora_ft.data.doctor.stream import (
    JOINT,
    Batch,
    Check,
    each_batch,
    target_column,
    text_columns,
    text_of,
)
from lora_ft.data.doctor.targets import target_reader
from lora_ft.data.doctor.texts import TextCheck
from lora_ft.data.faults import refuse_held
from lora_ft.data.labels import SINGLE, infer_problem_type
from lora_ft.data.rows import Origin, Splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import DataError, InputError, RecipeError
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import resolve_base
from lora_ft.recipe.schema import Column, Recipe
from lora_ft.tasks.base import Task, load_task
from lora_ft.tasks.parts.text import positions_of

Watch = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""A number of rows and what is done with them -> a progress bar, and how to move it on."""

BAD_ROWS = "bad-rows"
EXCERPTS = 3
EXCERPT_CHARACTERS = 160
MEDIA_AT_ONCE = 32


@dataclass(frozen=True)
class SplitReport:
    """What was counted in one split.

    Attributes:
        rows: Rows that can be used.
        bad: Rows that cannot.
        labels: Label -> rows, or entities; empty where there are no labels.
        characters: Of all that a model is given of a row; None without texts.
        tokens: The same in tokens, special ones included, nothing cut; None without texts.
        longer: Rows with more tokens than max_length; None without texts.
    """

    rows: int
    bad: int
    labels: Mapping[str, int]
    characters: Spread | None = None
    tokens: Spread | None = None
    longer: int | None = None


Seen = tuple[dict[str, SplitReport], list[Finding], tuple[int | None, int | None]]
"""What was counted, what was found, max_length and a better one."""


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        recipe: The recipe's file.
        task: Its task.
        splits: What was counted, split by split.
        findings: What is wrong, the worst first.
        excerpts: For each finding the beginnings of a few of its texts.
        origins: Split -> where its rows are.
        max_length: Of the recipe, or its default; None without texts.
        suggested: The least max_length that leaves 99 % of the training rows whole; None without texts.
        seconds: How long it took, reading the files included.
    """

    recipe: str
    task: str
    splits: Mapping[str, SplitReport]
    findings: Sequence[Finding]
    excerpts: Sequence[Sequence[str]]
    origins: Mapping[str, Origin]
    max_length: int | None
    suggested: int | None
    seconds: float

    def places(self, finding: Finding) -> str:
        """Where the first 20 rows of a finding are."""
        return places(finding.origin or self.origins[finding.split], finding.rows)

    def as_json(self) -> dict[str, Any]:
        """All of it, every row of every finding included."""
        splits = {
            name: {
                "rows": one.rows, "bad_rows": one.bad, "labels": dict(one.labels),
                "characters": _spread(one.characters), "tokens": _spread(one.tokens),
                "longer_than_max_length": one.longer,
            }
            for name, one in self.splits.items()
        }  # fmt: skip
        return {
            "recipe": self.recipe, "task": self.task, "seconds": round(self.seconds, 2), "splits": splits,
            "max_length": self.max_length, "suggested_max_length": self.suggested,
            "findings": [as_json(finding, self.origins) for finding in self.findings],
        }  # fmt: skip


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {
        "min": spread.least, "median": spread.median, "mean": spread.mean, "p95": spread.most_rows,
        "p99": spread.nearly_all, "max": spread.most,
    }  # fmt: skip


@contextmanager
def unwatched(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar that nobody sees."""
    del total, what

    def advance(rows: int) -> None:
        del rows

    yield advance


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
    splits, bad = _rows(recipe, task)
    if any(column.kind in ("image", "audio") for column in task.inputs()):
        seen = _media(recipe, task, splits, watch=watch)
    else:
        seen = _texts(recipe, task, splits, watch=watch)
    reports, findings, (max_length, suggested) = seen
    bad_of = {split: sum(len(group.rows) for group in splits.bad if group.split == split) for split in splits}
    reports = {split: replace(report, bad=bad_of[split]) for split, report in reports.items()}
    ordered = in_order([*bad, *findings])
    return Examination(
        str(recipe.file), task.name, reports, ordered, [excerpts_of(splits, task, one) for one in ordered],
        splits.origins, max_length, suggested, time.monotonic() - began,
    )  # fmt: skip


def _rows(recipe: Recipe, task: Task) -> tuple[Splits, list[Finding]]:
    """The rows that can be used, and a finding of those that cannot."""
    splits = load_splits(
        replace(recipe.dataset, on_bad_row="error"), columns=task.columns,
        column_sets=sets_of(task, recipe.model.problem_type), seed=int(recipe.training_args["seed"]),
        offline=recipe.offline, hold=True,
    )  # fmt: skip
    splits = usable_rows(task, splits, labels=(), on_bad_row="error", hold=True)
    if any(not len(table) for table in splits.values()):
        refuse_held(splits)
        empty = next(split for split, table in splits.items() if not len(table))
        raise DataError(f"dataset: the {empty} split has no rows. Expected at least one; fill it or take it out")
    skips = recipe.dataset.on_bad_row == "skip"
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
    return splits, found


def _problem_type(recipe: Recipe, task: Task, splits: Splits) -> str:
    if recipe.model.problem_type is not None:
        return recipe.model.problem_type
    if label_column(task):
        return infer_problem_type(splits["train"]["label"], label_names=recipe.dataset.label_names)
    return next(iter(task.metrics))


def _texts(recipe: Recipe, task: Task, splits: Splits, *, watch: Watch) -> Seen:
    """Everything about texts and their labels, in one pass over the rows, and a second one for boilerplate."""
    problem_type = _problem_type(recipe, task, splits)
    names = recipe.dataset.label_names or splits.label_names
    target_of = target_reader(splits["train"], task.columns, problem_type=problem_type, names=names)
    tokens, given = _tokens(recipe, task, splits, problem_type=problem_type)
    rows = sum(map(len, splits.values()))

    def batches(what: str) -> Iterator[Batch]:
        with watch(rows, what) as advance:
            yield from each_batch(splits, task.columns, target_of=target_of, advance=advance)

    lengths, single = LengthCheck(tokens, given=given), problem_type == SINGLE
    labels = LabelCheck(
        known=recipe.dataset.label_names if label_column(task) else None, one_each=single,
        weighs=task.weighs_classes and recipe.loss.class_weight is None,
    )  # fmt: skip
    duplicates = DuplicateCheck(lambda split, positions: _inputs(splits[split], task.columns, positions))
    boilerplate = BoilerplateCheck(lambda: batches("boilerplate"), duplicates.distinct)
    checks: list[Check] = [TextCheck(), duplicates, labels, lengths, ScriptCheck(), boilerplate]
    if not text_columns(splits["train"], task.columns):
        raise DataError(f"data check: {task.name} has no column of texts, images or sounds in these rows")
    for batch in batches("examine"):
        for check in checks:
            check.add(batch)
    findings = [finding for check in checks for finding in check.findings()]
    findings += _constant(splits, task, lengths)
    reports = {}
    for split, table in splits.items():
        characters, counted, _ = lengths.of(split)
        longer = int((counted > tokens.max_length).sum())
        counts = dict(labels.counts[split].most_common())
        reports[split] = SplitReport(len(table), 0, counts, Spread.of(characters), Spread.of(counted), longer)
    return reports, findings, (tokens.max_length, lengths.suggested())


def _constant(splits: Splits, task: Task, lengths: LengthCheck) -> list[Finding]:
    """A column of texts that says the same in every row; only asked where all rows are of one length."""
    found = []
    for split, table in splits.items():
        for column in text_columns(table, task.columns):
            read = {text_of(value) for value in table[column.name][:2]}
            if len(table) < 3 or len(read) > 1 or len(set(lengths.lengths[split][0])) > len(table) // 2:
                continue
            if len({text_of(value) for value in table[column.name][:]}) == 1:
                told = f"have the same text in the column {column.name!r}"
                remedy = f"Check `dataset.columns.{column.name}`: a column that never changes says nothing"
                found.append(Finding("constant-texts", "error", split, len(table), len(table), told, remedy))
    return found


def _tokens(recipe: Recipe, task: Task, splits: Splits, *, problem_type: str) -> tuple[Tokens, tuple[str, ...]]:
    """How the recipe's tokenizer counts, and the columns that it counts."""
    base = resolve_base(
        recipe.model.pretrained_model_name_or_path, revision=recipe.model.revision, offline=recipe.offline
    )
    config, train = base_config(base), splits["train"]
    processor = load_processor(base, classes=task.processor_classes, trust_remote_code=recipe.model.trust_remote_code)
    try:
        settings = task.settings(recipe.processor, base_config=config, processor=processor, problem_type=problem_type)
    except InputError as error:
        raise RecipeError([f"{recipe.file}: {error}"]) from error
    inputs, texts = text_inputs(train, task.columns), text_columns(train, task.columns)
    learned_with = task.peft_task_type == "CAUSAL_LM"  # what is given and what follows are one sequence
    given = tuple(column.name for column in (texts if learned_with or not inputs else inputs))
    stream = not inputs and all(column.kind == "text" for column in texts)
    unknown = processor.unk_token_id if processor.unk_token_id not in (None, processor.eos_token_id) else None

    def encode(*parts: Sequence[str]) -> Any:
        return processor(*map(list, parts), truncation=False, padding=False, verbose=False)["input_ids"]

    def count(parts: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
        if len(parts) > 2:  # one prompt and several answers to it
            first, *others = (encode(part) for part in parts)
            return [len(a) + max(map(len, rest)) for a, *rest in zip(first, *others, strict=True)], [0] * len(first)
        rows = encode(*parts)
        return [len(ids) for ids in rows], [ids.count(unknown) for ids in rows]

    limit = min(positions_of(config), int(processor.model_max_length))
    cuts = "stride" not in task.processor_fields and not stream
    return Tokens(count, max_length=int(settings["max_length"]), limit=limit, cuts=cuts), given


def _inputs(table: datasets.Dataset, columns: Sequence[Column], positions: Sequence[int]) -> list[str]:
    """The inputs of some rows, as `Batch.inputs` has them."""
    chosen = text_inputs(table, columns) or text_columns(table, columns)
    rows = table.select_columns([column.name for column in chosen])[list(positions)]
    return [JOINT.join(map(text_of, values)) for values in zip(*(rows[one.name] for one in chosen), strict=True)]


def excerpts_of(splits: Mapping[str, datasets.Dataset], task: Task, finding: Finding) -> list[str]:
    """The beginnings of a few texts of a finding; none of bad rows, which are not among the rows."""
    rows = finding.rows[:EXCERPTS].tolist()
    if not rows or finding.name == BAD_ROWS or not text_columns(splits[finding.split], task.columns):
        return []
    texts = [text.replace(JOINT, " | ") for text in _inputs(splits[finding.split], task.columns, rows)]
    return [text[:EXCERPT_CHARACTERS] + (" ..." if len(text) > EXCERPT_CHARACTERS else "") for text in texts]


def _media(recipe: Recipe, task: Task, splits: Splits, *, watch: Watch) -> Seen:
    """Everything about images or sounds and their labels; a few of them are in memory at once."""
    problem_type = _problem_type(recipe, task, splits)
    kind, name = next((column.kind, column.name) for column in task.inputs() if column.kind in ("image", "audio"))
    check: Any
    if kind == "image":
        from lora_ft.data.doctor.images import ImageCheck

        check = ImageCheck()
    else:
        from lora_ft.data.doctor.sounds import SoundCheck

        check = SoundCheck(longest_s=recipe.processor.get("max_length_s"))
    names = recipe.dataset.label_names or splits.label_names
    single = problem_type == SINGLE
    labels = LabelCheck(
        known=recipe.dataset.label_names, one_each=single,
        weighs=task.weighs_classes and recipe.loss.class_weight is None,
    )  # fmt: skip
    target = target_column(splits["train"], task.columns)
    target_of = target_reader(splits["train"], task.columns, problem_type=problem_type, names=names)
    with watch(sum(map(len, splits.values())), "examine") as advance:
        for split, table in splits.items():
            for start in range(0, len(table), MEDIA_AT_ONCE):
                rows = table[start : start + MEDIA_AT_ONCE]
                for at, value in enumerate(rows[name]):
                    check.add(split, start + at, value)
                if target is not None and target.name in rows:
                    told = [target_of(value) for value in rows[target.name]]
                    keys, found = [key for key, _ in told], [one for _, one in told]
                    labels.add(Batch(split, start, {}, [""] * len(found), keys, found))
                advance(len(rows[name]))
    reports = {split: SplitReport(len(t), 0, dict(labels.counts.get(split, {}))) for split, t in splits.items()}
    return reports, [*check.findings(), *(labels.findings() if labels.counts else ())], (None, None)
