"""Rows as they were read -> rows as they are learned: texts prepared, shares split off, training rows filtered.

The steps always run in this order: texts, duplicates, shares, lengths, languages, leakage, mixture, sample.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt

from lora_ft.assemble.encode import has_targets
from lora_ft.data.contents import text_inputs
from lora_ft.data.doctor.stream import target_column, text_columns
from lora_ft.data.preparation.counts import StepCount
from lora_ft.data.preparation.mixing import mixed_rows
from lora_ft.data.preparation.repeats import repeats_of_measured, repeats_within
from lora_ft.data.preparation.row_filters import Count, characters_of, lengths_of, other_languages, words_of
from lora_ft.data.preparation.texts import prepared_rows, text_settings
from lora_ft.data.rows import Splits, each_value, take_rows
from lora_ft.data.sources import SPLITS, shares_of, split_off
from lora_ft.data.splits import sample_rows
from lora_ft.errors import DataError, RecipeError
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import resolve_base
from lora_ft.recipe.schema import PreparationSection, Recipe
from lora_ft.tasks.base import Task

logger = logging.getLogger(__name__)

TRAIN = "train"
KEYS = ("group", "time")
Until = Literal["splits", "filters", "all"]
"""How far the steps go: until the shares are split off, until the filters have gone over the rows, or to the end."""


@dataclass(frozen=True)
class PreparedSplits:
    """Rows as they are learned.

    Attributes:
        splits: Rows of each split.
        texts: What was done to texts, as plain JSON; empty: nothing.
        counts: What each step did that did something.
    """

    splits: Splits
    texts: Mapping[str, Any]
    counts: Sequence[StepCount]


@dataclass
class _Work:
    """Which training rows are left while the steps go over them.

    Attributes:
        train: All training rows as they were read, texts prepared.
        rows: Positions in it of the training rows that are left, in their order.
        others: Rows of the splits that are measured on.
        counts: What was counted so far.
    """

    train: datasets.Dataset
    rows: list[int]
    others: dict[str, datasets.Dataset]
    counts: list[StepCount] = field(default_factory=list)

    def left(self, columns: Sequence[str]) -> datasets.Dataset:
        """Some columns of the training rows that are left."""
        table = self.train.select_columns(list(columns))
        return table if len(self.rows) == len(table) else take_rows(table, self.rows)

    def leave_out(self, step: str, positions: frozenset[int], *, note: str = "") -> None:
        """Takes out some of the rows that are left, by their positions among these; none is counted too."""
        count = len(self.rows)
        if positions and len(positions) == count:
            raise DataError(
                f"preparation.{step}: it leaves none of {count} training rows. Expected rows to learn from: loosen it"
            )
        self.rows = [row for at, row in enumerate(self.rows) if at not in positions]
        self.counts.append(StepCount(step, "left out", {TRAIN: len(positions)}, {TRAIN: count}, note))


def prepare_splits(
    recipe: Recipe, task: Task, raw: Splits, *, until: Until = "all", as_given: bool = False
) -> PreparedSplits:
    """Prepares the rows of a recipe, and says what was done to them.

    Args:
        recipe: A checked recipe.
        task: Its task.
        raw: What `load_splits` returned.
        until: `splits`: what is measured on is complete; `filters`: neither mixed nor sampled, for a look at the rows.
        as_given: Whether the same rows are handed out with their texts as they were, for what prepares them itself.

    Returns:
        The rows; where there are bad rows to be refused, all that were read, and nothing is split off.

    Raises:
        DataError: A step leaves no training rows, or there is nothing to split by.
        RecipeError: Texts are to be rewritten, and the rows have none that may be.
    """
    section, seed = recipe.preparation, int(recipe.training_args["seed"])
    texts = text_settings(section)
    given = {split: _without_keys(table) for split, table in raw.items()}
    if texts and not any(name in given[TRAIN].column_names for name in task.free_texts):
        raise RecipeError(
            [
                f"{recipe.file}: preparation.{next(iter(texts))}: the rows have no texts that may be rewritten: turns "
                "of a chat are kept as they are. Leave it out"
            ]
        )
    changed: dict[str, Counter[str]] = {split: Counter() for split in raw}
    tables = {
        split: prepared_rows(table, task.free_texts, texts, counted=changed[split]) for split, table in given.items()
    }
    counts = _text_counts(texts, changed, tables)
    if raw.bad:
        return PreparedSplits(_renewed(raw, tables, raw.origins), texts, counts)
    others = {split: table for split, table in tables.items() if split != TRAIN}
    work = _Work(tables[TRAIN], list(range(len(tables[TRAIN]))), others, counts)
    if section.deduplicate is not None:
        _deduplicate(work, task, near=section.deduplicate == "near")
    positions: dict[str, list[int]] = {}
    if shares_of(recipe.dataset):
        positions = split_off(raw[TRAIN], raw.origins[TRAIN], recipe.dataset, seed=seed, rows=work.rows)
        work.rows = positions.pop(TRAIN)
        work.others.update({split: take_rows(work.train, taken) for split, taken in positions.items()})
    if until != "splits":
        _filter(work, task, section, recipe)
    if until == "all":
        _draw(work, section, raw, seed=seed)
    for count in work.counts:
        logger.info("%s", count.line())
    positions[TRAIN] = work.rows
    source = given if as_given else tables
    ready = {
        split: (source[split] if split in raw and split != TRAIN else _taken(source[TRAIN], positions[split]))
        for split in SPLITS
        if split in raw or split in positions
    }
    origins = {
        split: raw.origins[TRAIN].take(positions[split]) if split in positions else raw.origins[split]
        for split in ready
    }
    return PreparedSplits(_renewed(raw, ready, origins), texts, work.counts)


def _text_counts(
    texts: Mapping[str, Any], changed: Mapping[str, Counter[str]], tables: Mapping[str, datasets.Dataset]
) -> list[StepCount]:
    """How many rows each text step changed; a step that found nothing to change is told too."""
    of = {split: len(table) for split, table in tables.items()}
    counts = [StepCount(step, "changed", {split: changed[split][step] for split in of}, of) for step in texts]
    if "stop_words" in texts:
        logger.info(
            "preparation: stop_words: bases such as BERT read whole sentences, and 'not' may be among the words that "
            "are gone; compare with a run without"
        )
    return counts


def _deduplicate(work: _Work, task: Task, *, near: bool) -> None:
    """Keeps the first of the rows that say the same in all their texts, what is learned of them included."""
    texts = [column.name for column in text_columns(work.train, task.columns)]
    target = target_column(work.train, task.columns)
    name = target.name if target is not None else None
    found = repeats_within(work.train, texts=texts, target=name, near=near)
    note = f"{found.conflicts} of them under another label than the row that stays" if found.conflicts else ""
    work.leave_out("deduplicate", found.rows, note=note)


def _filter(work: _Work, task: Task, section: PreparationSection, recipe: Recipe) -> None:
    """Lengths, languages, and what is measured on."""
    texts = [column.name for column in text_columns(work.train, task.columns)]
    bounds: list[tuple[str, int | None, int | None, Count | None]] = [
        ("characters", section.min_characters, section.max_characters, characters_of),
        ("words", section.min_words, section.max_words, words_of),
        ("tokens", section.min_tokens, section.max_tokens, None),
    ]
    for unit, least, most, count in bounds:
        if least is None and most is None:
            continue
        lengths = lengths_of(work.left(texts), texts, count=count or _token_count(recipe, task))
        if least is not None:
            work.leave_out(f"min_{unit}", _positions(lengths < least))
            lengths = lengths[lengths >= least]
        if most is not None:
            work.leave_out(f"max_{unit}", _positions(lengths > most))
    if section.languages:
        other = other_languages(
            work.left(texts), texts, languages=section.languages, threshold=section.language_threshold
        )
        work.leave_out("languages", _positions(other))
    if section.decontaminate is not None:
        inputs = [column.name for column in text_inputs(work.train, task.columns)] or texts
        measured = {split: table for split, table in work.others.items() if has_targets(table, task)}
        found = repeats_of_measured(work.left(inputs), measured, texts=inputs, near=section.decontaminate == "near")
        work.leave_out("decontaminate", found.rows)


def _positions(chosen: npt.NDArray[np.bool_]) -> frozenset[int]:
    return frozenset(np.flatnonzero(chosen).tolist())


def _token_count(recipe: Recipe, task: Task) -> Count:
    """How the base's tokenizer counts the texts of a row."""
    model = recipe.model
    base = resolve_base(model.pretrained_model_name_or_path, revision=model.revision, offline=recipe.offline)
    processor = load_processor(base, classes=task.processor_classes, trust_remote_code=model.trust_remote_code)

    def encode(*parts: Sequence[str]) -> list[int]:
        ids = processor(*map(list, parts), truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def count(texts: Sequence[Sequence[str]]) -> list[int]:
        if len(texts) <= 2:
            return encode(*texts)
        return [sum(lengths) for lengths in zip(*map(encode, texts), strict=True)]

    return count


def _draw(work: _Work, section: PreparationSection, raw: Splits, *, seed: int) -> None:
    """The mixture, then the sample."""
    if section.mixing_weights:
        work.rows, count = mixed_rows(
            work.rows, raw.origins[TRAIN], weights=section.mixing_weights,
            stopping_strategy=section.stopping_strategy, seed=seed,
        )  # fmt: skip
        work.counts.append(count)
    if section.sample is not None:
        total = len(work.rows)
        size = max(1, round(section.sample * total)) if section.sample < 1 else int(section.sample)
        every = list(each_value(raw[TRAIN], "label")) if "label" in raw[TRAIN].column_names else []
        labels = [every[row] if every else None for row in work.rows]
        work.rows = [work.rows[at] for at in sample_rows(labels, size=size, seed=seed)]
        work.counts.append(StepCount("sample", "kept", {TRAIN: len(work.rows)}, {TRAIN: total}))


def _without_keys(table: datasets.Dataset) -> datasets.Dataset:
    """Rows without what they are grouped or ordered by, which no task reads."""
    keys = [name for name in KEYS if name in table.column_names]
    return table.remove_columns(keys) if keys else table


def _taken(table: datasets.Dataset, rows: Sequence[int]) -> datasets.Dataset:
    """Some rows; the same table where these are all, in their order."""
    return table if list(rows) == list(range(len(table))) else take_rows(table, rows)


def _renewed(raw: Splits, tables: Mapping[str, datasets.Dataset], origins: Mapping[str, Any]) -> Splits:
    return Splits(
        tables, origins=origins, label_names=raw.label_names, skipped=raw.skipped, notes=raw.notes, bad=raw.bad
    )
