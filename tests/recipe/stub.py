"""A stub of a task's facts, and short ways to write and read a recipe in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.errors import RecipeError
from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.schema import Column, Recipe, TaskFacts

TEXT_CLASSIFICATION = TaskFacts(
    name="text-classification",
    columns=(
        Column("text", "text", True, "the text to classify"),
        Column("text_pair", "text", False, "a second text"),
        Column("label", "label", True, "its class"),
    ),
    metrics={
        "single_label_classification": (
            "f1_macro",
            "accuracy",
            "precision_macro",
            "recall_macro",
            "matthews_corrcoef",
        ),
        "multi_label_classification": ("f1_macro", "f1_micro", "accuracy"),
        "regression": ("pearsonr", "spearmanr", "mse"),
    },
    lower_is_better=frozenset({"mse"}),
    processor_fields={
        "max_length": (int,),
        "truncation": (True, "longest_first", "only_first"),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
        "truncation_side": (str,),
        "padding_side": (str,),
    },
)
TASKS = {TEXT_CLASSIFICATION.name: TEXT_CLASSIFICATION}

GOOD = """\
task: text-classification
model:
  pretrained_model_name_or_path: bert-base-chinese
peft_config:
  peft_type: LORA
dataset:
  data_files: {train: train.csv, validation: dev.csv}
training_args:
  output_dir: runs/shop
"""


def write_data(folder: Path) -> None:
    (folder / "train.csv").write_text("text,label,review,stars,pair\ngood,pos,g,1,x\n")
    (folder / "dev.csv").write_text("text,label,review,stars,pair\nbad,neg,b,0,y\n")


def write(folder: Path, text: str = GOOD) -> Path:
    write_data(folder)
    file = folder / "x.yaml"
    file.write_text(text)
    return file


def read(folder: Path, *overrides: str, text: str = GOOD) -> Recipe:
    return read_recipe(write(folder, text), overrides=overrides, tasks=TASKS)


def faults(folder: Path, *overrides: str, text: str = GOOD) -> list[str]:
    """The faults of a recipe, `recipes/x.yaml` shortened to `x.yaml`."""
    file = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, overrides=overrides, tasks=TASKS)
    return [fault.replace(f"{folder}/", "") for fault in caught.value.faults]


def fault(folder: Path, *overrides: str, text: str = GOOD) -> str:
    """The only fault of a recipe."""
    (only,) = faults(folder, *overrides, text=text)
    return only
