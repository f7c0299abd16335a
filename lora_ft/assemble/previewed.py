"""Recipe -> some of its rows as they become what the model gets: in the file, prepared, varied, encoded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lora_ft.assemble.encode import RowEncoder
from lora_ft.assemble.prepare import Prepared, prepare, sets_of
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import InputError, closest
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem

EPOCHS = 3
"""How many epochs a picture or a sound is shown in, as it is varied anew in each."""

WHOLE = 1 << 24
"""Tokens that no row has: what a row is without being cut."""

WORD = re.compile(r"\s+|\w+|[^\w\s]")
Change = tuple[Literal["same", "new", "gone"], str]


@dataclass(frozen=True)
class Sound:
    """A sound.

    Attributes:
        samples: `(samples,)`.
        rate: Samples a second.
    """

    samples: Any
    rate: int

    def line(self) -> str:
        """How long and how loud it is."""
        peak = float(np.abs(self.samples).max(initial=0.0))
        return f"{len(self.samples) / self.rate:.2f} s at {self.rate} Hz, peak {peak:.2f}"


@dataclass(frozen=True)
class Given:
    """One feature: what the model gets at a time.

    Attributes:
        shown: As a person reads it, what is learned in `[[ ]]`.
        tokens: How many tokens it is; None for pictures and sounds.
        cut: What was cut off of the row; empty where nothing was, or where it is not known.
        truncated: Whether something was cut off.
    """

    shown: str
    tokens: int | None
    cut: str = ""
    truncated: bool = False


@dataclass(frozen=True)
class Stage:
    """A row at one stage of its way.

    Attributes:
        name: Which stage, `variant 1: random_swap`.
        columns: Its columns as text.
        given: What the model gets of it; nothing of a row that is not yet ready.
        media: Its picture (a PIL image) or its `Sound` at this stage, or None.
    """

    name: str
    columns: Mapping[str, str]
    given: tuple[Given, ...] = ()
    media: Any = None

    def media_line(self) -> str:
        """How large a picture is, or how long a sound; empty where there is none."""
        if self.media is None:
            return ""
        return self.media.line() if isinstance(self.media, Sound) else "{} x {} pixels".format(*self.media.size)


@dataclass(frozen=True)
class PreviewedRow:
    """A row on its way.

    Attributes:
        where: File and number, as a message names it.
        stages: From the file to the model.
    """

    where: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Preview:
    """Some rows of a split.

    Attributes:
        recipe: Name of the recipe's file.
        task: Its task.
        split: The split.
        rows: How many rows of the data it has.
        shown: Those that are shown.
        notes: What is to be known of all of them.
        lazy: Whether rows are varied as they are read (pictures, sounds).
    """

    recipe: str
    task: str
    split: str
    rows: int
    shown: tuple[PreviewedRow, ...]
    notes: tuple[str, ...]
    lazy: bool


def preview(recipe: Recipe, *, split: str, count: int) -> Preview:
    """Shows what becomes of some rows; the base's weights are not loaded.

    Args:
        recipe: A checked recipe.
        split: The split that they are of; only `train` is varied.
        count: How many; chosen by the run's seed, rows with variants first.

    Raises:
        InputError: The recipe has no such split.
        DataError: As `prepare`.
        RecipeError: As `prepare`.
    """
    prepared = prepare(recipe, encode=False)
    if split not in prepared.rows:
        known = tuple(prepared.rows)
        raise InputError(
            f"--split {split}: the recipe has no such split.{closest(split, known)} It has: {', '.join(known)}"
        )
    own = len(prepared.own_rows[split])
    chosen = _chosen(prepared, split=split, count=min(count, own), of=own)
    in_file = _in_file(prepared, split, chosen)
    return Preview(
        recipe=recipe.file.name,
        task=recipe.task,
        split=split,
        rows=own,
        shown=tuple(
            PreviewedRow(
                where=prepared.origins[split].describe([number]),
                stages=_stages(prepared, split, number, given=in_file.get(number)),
            )
            for number in chosen
        ),
        notes=_notes(prepared, split, own),
        lazy=prepared.task.lazy,
    )


def changes(before: str, after: str) -> list[Change]:
    """Which words of a text stayed, came and went, in the order of both texts."""
    one, other = WORD.findall(before), WORD.findall(after)
    found: list[Change] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(other[c:d])))
            continue
        found += [("gone", "".join(one[a:b]))] if b > a else []
        found += [("new", "".join(other[c:d]))] if d > c else []
    return found


def _chosen(prepared: Prepared, *, split: str, count: int, of: int) -> list[int]:
    """Numbers of the rows to show, ascending."""
    order = np.random.default_rng(prepared.problem.seed).permutation(of).tolist()
    varied = set(prepared.variants.sources) if split == "train" else set()
    return sorted(sorted(order, key=lambda number: number not in varied)[:count])


def _in_file(prepared: Prepared, split: str, chosen: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The rows as they were before their texts were prepared; nothing where none was."""
    if not prepared.texts:
        return {}
    recipe, task = prepared.recipe, prepared.task
    read: Splits = load_splits(
        recipe.dataset,
        columns=task.columns,
        column_sets=sets_of(task, recipe.model.problem_type),
        offline=recipe.offline,
        hold=True,
    )
    origin = prepared.origins[split]
    wanted: dict[tuple[str, int], list[int]] = {}  # a row that is drawn several times has several numbers
    for number in chosen:
        wanted.setdefault((origin.names[origin.source[number]], int(origin.number[number])), []).append(number)
    found: dict[int, dict[str, Any]] = {}
    for name, table in read.items():
        places = read.origins[name]
        for row, place in enumerate(zip(places.source.tolist(), places.number.tolist(), strict=True)):
            for number in wanted.get((places.names[place[0]], place[1]), ()):
                found[number] = table[row]
    return found


def _notes(prepared: Prepared, split: str, own: int) -> tuple[str, ...]:
    """What is to be known of all rows."""
    notes = prepared.variants.lines(own) if split == "train" else []
    augmentation = prepared.problem.augmentation
    if split != "train" and augmentation:
        notes.append(f"{split}: nothing is varied; only training rows are")
    if split == "train" and not augmentation:
        notes.append("train: nothing is varied; the recipe has no section `augmentation`")
    if "mixup_alpha" in augmentation or "cutmix_alpha" in augmentation:
        notes.append("mixup and cutmix mix the pictures of a batch, which is not shown here")
    if {"mask_time_prob", "mask_feature_prob"} & set(augmentation):
        notes.append("the masks of SpecAugment lie on what the model makes of a sound, and are not heard here")
    return tuple(notes)


def _stages(prepared: Prepared, split: str, number: int, *, given: Mapping[str, Any] | None) -> tuple[Stage, ...]:
    """A row from the file to the model."""
    task, table, training = prepared.task, prepared.rows[split], split == "train"
    problem = prepared.problem if training else replace(prepared.problem, augmentation={})
    row = table[number]
    if task.lazy:
        return tuple(_media_stages(task, problem, row, number, training=training))
    stages = []
    if given is not None and (told := _told(given, task)) != _told(row, task):
        stages.append(Stage("in the file", told))
    name = "prepared" if stages else "in the file"
    stages.append(Stage(name, _told(row, task), _given(task, problem, row, number, training=training)))
    first, variants = len(prepared.own_rows[split]), prepared.variants
    made = [at for at, source in enumerate(variants.sources) if source == number] if training else []
    for count, at in enumerate(made, start=1):
        varied = table[first + at]
        got = _given(task, problem, varied, first + at, training=True)
        stages.append(Stage(f"variant {count}: {variants.ways[at]}", _told(varied, task), got))
    return tuple(stages)


def _media_stages(task: Task, problem: Problem, row: Mapping[str, Any], number: int, *, training: bool) -> list[Stage]:
    """A picture or a sound in the file, and in the first epochs as the model gets it."""
    stages = [Stage("in the file", _told(row, task), media=_original(row, task))]
    varies = training and bool(problem.augmentation)
    encoder = RowEncoder(task, problem, training)
    for epoch in range(EPOCHS if varies else 1):
        seeded = encoder.problem_at(number, epoch=epoch)
        perceived = task.perceived(row, seeded, training=training)
        media = Sound(*perceived) if isinstance(perceived, tuple) else perceived
        name = f"epoch {epoch + 1}" if varies else "the model"
        got = _given(task, problem, row, number, training=training, epoch=epoch)
        stages.append(Stage(name, {}, got, media))
    return stages


def _original(row: Mapping[str, Any], task: Task) -> Any:
    """The picture of a row with its boxes, or its sound, as the file has it."""
    kinds = {column.kind: column.name for column in task.columns if row.get(column.name) is not None}
    if "image" in kinds:
        from lora_ft.tasks.parts.images import open_image
        from lora_ft.tasks.parts.perceived import with_boxes

        picture = open_image(row[kinds["image"]])
        objects = row[kinds["objects"]] if "objects" in kinds else None
        return with_boxes(picture, objects["bbox"], objects["category"]) if objects else picture
    if "audio" in kinds:
        from lora_ft.tasks.parts.audio import read_sound

        return Sound(*read_sound(row[kinds["audio"]]))
    return None


def _given(
    task: Task, problem: Problem, row: Mapping[str, Any], number: int, *, training: bool, epoch: int = 0
) -> tuple[Given, ...]:
    """What the model gets of one row alone."""
    features = _features(task, problem, row, number, training=training, epoch=epoch)
    cut = any(feature.get("truncated") for feature in features) and not task.lazy
    whole: list[dict[str, Any]] = []
    if cut:
        limits = {name: WHOLE for name in ("max_length", "max_target_length") if name in problem.settings}
        uncut = replace(problem, settings={**problem.settings, **limits})
        whole = _features(task, uncut, row, number, training=training, epoch=epoch)
    paired = whole if len(whole) == len(features) else [{}] * len(features)
    return tuple(
        Given(
            shown=task.shown(feature, problem),
            tokens=None if task.lazy else int(feature["length"]),
            cut=_cut_off(feature, uncut_feature, problem) if feature.get("truncated") else "",
            truncated=bool(feature.get("truncated")),
        )
        for feature, uncut_feature in zip(features, paired, strict=True)
    )


def _features(
    task: Task, problem: Problem, row: Mapping[str, Any], number: int, *, training: bool, epoch: int
) -> list[dict[str, Any]]:
    made = RowEncoder(task, problem, training)({name: [row[name]] for name in row}, index=number, epoch=epoch)
    return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]


def _cut_off(feature: Mapping[str, Any], whole: Mapping[str, Any], problem: Problem) -> str:
    """The text that a feature lacks of what it would be without a limit."""
    names = [name for name in whole if name.endswith("_ids") and name != "token_type_ids"]
    if "labels" in whole and isinstance(whole["labels"], list) and len(whole["labels"]) != len(feature["labels"]):
        names += [] if any(len(whole[name]) == len(whole["labels"]) for name in names) else ["labels"]
    missing = []
    for name in names:
        kept, full = list(feature[name]), list(whole[name])
        most = min(len(kept), len(full))
        left = next((at for at in range(most) if kept[at] != full[at]), most)
        right = next((at for at in range(most - left) if kept[-1 - at] != full[-1 - at]), most - left)
        ids = full[left : len(full) - right]
        missing += [str(problem.processor.decode(ids, skip_special_tokens=False))] if ids else []
    return " ... ".join(missing)


def _told(row: Mapping[str, Any], task: Task) -> dict[str, str]:
    """The columns of a row as text."""
    return {column.name: _value(row[column.name], row) for column in task.columns if row.get(column.name) is not None}


def _value(value: Any, row: Mapping[str, Any]) -> str:
    """A value of a row as a person reads it."""
    if isinstance(value, dict):
        if "path" in value and "bytes" in value:
            return Path(value["path"]).name if value["path"] else f"{len(value['bytes'] or b''):,} bytes"
        if "bbox" in value:
            pairs = zip(value["category"], value["bbox"], strict=True)
            return "; ".join(f"{name} {' '.join(f'{side:g}' for side in box)}" for name, box in pairs)
        if "answer_start" in value:
            return "; ".join(dict.fromkeys(value["text"])) or "no answer"
    if isinstance(value, list):
        return " ".join(_item(one, row) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _item(one: Any, row: Mapping[str, Any]) -> str:
    """An item of a list: a word, a tag, a span, a turn of a chat."""
    if not isinstance(one, dict):
        return str(one)
    if "start" in one and "end" in one:
        return f"[{one['label']}: {str(row.get('text', ''))[one['start'] : one['end']]}]"
    return f"[{one['role']}] {one['content']}" if "role" in one and "content" in one else str(one)
