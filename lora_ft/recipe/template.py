"""A commented recipe to start from: `lora-ft init TASK`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lora_ft.recipe.column_sets import possible_sets
from lora_ft.recipe.faults import shown
from lora_ft.recipe.schema import Column, FieldTypes, TaskFacts
from lora_ft.recipe.values import problems
from lora_ft.recipe.words import accepts_of

HEADER = """\
# {task}: one recipe makes one adapter.
# Check it:  lora-ft check recipe.yaml
# Train it:  lora-ft train recipe.yaml
# Every key is a field of the upstream class of its section; docs/recipe.md says which.
task: {task}

# The frozen base: a hub id, or a folder beside this file.
model:
  pretrained_model_name_or_path: {base}

# The adapter: fields of peft's config class for this peft_type.
peft_config:
  peft_type: LORA
  r: 8
  lora_alpha: 16
{targets}
# The rows. Paths start at the folder of this file; {files}.
dataset:
  data_files:
    train: {data}
  # A share of the training rows finds the best epoch; a file of its own goes under data_files.
  validation: 0.1
  # Our name on the left, the column of the data on the right.
  columns:
{columns}
"""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")

ALL_LINEAR = "  target_modules: all-linear\n"

SECTION = """
# {comment}
{section}:
{keys}
"""

TRAINING = """
# Fields of transformers' TrainingArguments.
training_args:
  output_dir: runs/{task}
  learning_rate: 5e-4
  num_train_epochs: 3
  per_device_train_batch_size: 16
  seed: 0
"""

PROCESSOR: Mapping[str, Any] = {"max_length": 256, "truncation": True, "stride": 64, "max_target_length": 64}
GENERATION: Mapping[str, Any] = {"max_new_tokens": 128, "num_beams": 1, "do_sample": False}
"""What a start may say, of which a template takes what the task understands."""

NEEDS = {"truncation": "max_length"}
"""Without the other key it means something else: a sound that is cut no longer has its transcript."""

WHAT_THEY_DO = {
    "max_length": "tokens; longer texts are cut",
    "stride": "tokens that two windows share",
    "max_target_length": "tokens of what is to be learned",
    "max_new_tokens": "the longest answer",
    "num_beams": "more: a wider search, and a slower one",
    "do_sample": "true draws the words at random: temperature and top_p say how",
}


WINDOW = "tokens of a window; longer texts are read in several, nothing is cut"
"""What `max_length` does where there is a `stride`."""

SAY_IT = """
# Arguments of the processor. Multilingual Whisper must be told what is spoken, unless it is English.
# processor: {language: german}
"""
"""For a task whose only key that a start may want depends on the base."""


def template(task: TaskFacts) -> str:
    """Writes a recipe for a task.

    Args:
        task: The task.

    Returns:
        YAML with comments; it is valid once the training file exists beside it with the columns it names.
    """
    base, data = task.starting_point
    reads_images = any(column.kind == "image" for column in task.columns)
    text = HEADER.format(
        task=task.name,
        base=base,
        data=data,
        targets="" if reads_images else ALL_LINEAR,
        files=_kinds_of_files(data),
        columns=_lines([(f"{one.name}: {one.name}", one.help) for one in first_columns(task)], indent=4),
    )
    text += _section("processor", "Arguments of the processor.", task.processor_fields, PROCESSOR)
    text += SAY_IT if "language" in task.processor_fields else ""
    comment = "Fields of transformers' GenerationConfig: how answers are made when they are measured and predicted."
    text += _section("generation_config", comment, task.generation_fields, GENERATION)
    return text + TRAINING.format(task=task.name)


def first_columns(task: TaskFacts) -> tuple[Column, ...]:
    """The columns of the first kind of row that a task reads; all where it needs none."""
    names = next(iter(possible_sets(task.columns, task.column_sets).values()))
    return tuple(column for column in task.columns if column.name in names) or task.columns


def _section(section: str, comment: str, fields: Mapping[str, FieldTypes], values: Mapping[str, Any]) -> str:
    """A section with the values that a task accepts; empty where it accepts none."""
    chosen = {
        key: value
        for key, value in values.items()
        if key in fields and NEEDS.get(key, key) in fields and not problems(value, accepts_of(fields[key]))
    }
    if not chosen:
        return ""
    meanings = WHAT_THEY_DO | ({"max_length": WINDOW} if "stride" in chosen else {})
    keys = _lines([(f"{key}: {shown(value)}", meanings.get(key, "")) for key, value in chosen.items()], indent=2)
    return SECTION.format(comment=comment, section=section, keys=keys)


def _lines(entries: list[tuple[str, str]], *, indent: int) -> str:
    """Entries with their comments below each other."""
    width = max(len(entry) for entry, _ in entries)
    lines = [f"{entry:<{width}}  # {comment}" if comment else entry for entry, comment in entries]
    return "\n".join(" " * indent + line for line in lines)


def _kinds_of_files(data: str) -> str:
    """What may stand in the place of a training file, as the end of a sentence."""
    suffix = PurePosixPath(data).suffix
    if not suffix:
        return "the subfolders of a folder are its classes"
    return f"{' '.join(dict.fromkeys((suffix, *TABLES)))} work"
