"""Stubs of tasks' facts, and short ways to write and read a recipe in a test."""

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
        Column("label", "label", True, "its class", target=True),
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
    weighs_classes=True,
    smooths_labels=True,
    free_texts=("text", "text_pair"),
)
TOKEN_CLASSIFICATION = TaskFacts(
    name="token-classification",
    columns=(
        Column("tokens", "texts", False, "the words"),
        Column("tags", "labels", False, "one tag for each word", target=True),
        Column("text", "text", False, "a text"),
        Column("spans", "spans", False, "its entities", target=True),
        Column("id", "text", False, "the name of a row"),
    ),
    column_sets={"tokens": ("tokens", "tags"), "spans": ("text", "spans")},
    metrics={"tokens": ("f1", "accuracy"), "spans": ("f1",)},
    lower_is_better=frozenset(),
    processor_fields={"max_length": (int,), "stride": (int,)},
    weighs_classes=True,
    starting_point=("google-bert/bert-base-cased", "data/train.conll"),
)
TEXT_GENERATION = TaskFacts(
    name="text-generation",
    columns=(
        Column("text", "text", False, "plain text"),
        Column("prompt", "text", False, "what is asked"),
        Column("completion", "text", False, "what is to be said", target=True),
        Column("messages", "messages", False, "a conversation"),
    ),
    column_sets={"text": ("text",), "completion": ("prompt", "completion"), "chat": ("messages",)},
    metrics=dict.fromkeys(("text", "completion", "chat"), ("perplexity", "token_accuracy")),
    lower_is_better=frozenset({"perplexity"}),
    processor_fields={"max_length": (int,), "chat_template": (str,)},
    generation_fields={
        "max_new_tokens": (int,),
        "do_sample": (bool,),
        "temperature": (float,),
        "stop_strings": (str, list),
        "early_stopping": (bool, "never"),
    },
    augmentation_fields={
        "variants": (int,),
        "random_deletion": (float,),
        "synonym_replacement": (float,),
        "synonyms": (str,),
        "back_translation": (str,),
    },
    varied_texts=("prompt",),
    free_texts=("text", "prompt", "completion"),
    loss_types=("sigmoid", "ipo"),
    starting_point=("Qwen/Qwen2.5-0.5B-Instruct", "data/train.txt"),
)
IMAGE_CLASSIFICATION = TaskFacts(
    name="image-classification",
    columns=(
        Column("image", "image", True, "the picture"),
        Column("label", "label", True, "its class", target=True),
    ),
    metrics={"single_label_classification": ("accuracy", "f1_macro")},
    lower_is_better=frozenset(),
    processor_fields={"size": (int, list)},
    augmentation_fields={"crop_scale": (list, type(None)), "flip": (float,), "interpolation": ("bilinear", 3)},
    weighs_classes=True,
    starting_point=("google/vit-base-patch16-224", "data/train"),
)
OBJECT_DETECTION = TaskFacts(
    name="object-detection",
    columns=(
        Column("image", "image", True, "the picture"),
        Column("objects", "objects", True, "boxes with their classes", target=True),
    ),
    metrics={"object_detection": ("map", "map_50")},
    lower_is_better=frozenset(),
    processor_fields={},
    starting_point=("hustvl/yolos-tiny", "data/train.json"),
)
ALL_TASKS = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, TEXT_GENERATION, IMAGE_CLASSIFICATION, OBJECT_DETECTION)
TASKS = {task.name: task for task in ALL_TASKS}

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


FILES = {
    "words.conll": "EU B-ORG\nrejects O\n\nBonn B-LOC\n",
    "spans.jsonl": '{"text": "EU", "spans": []}\n',
    "plain.txt": "To be or not to be.\n",
    "asked.csv": "prompt,completion,question\na,b,c\n",
    "coco.json": '{"images": [{"file_name": "a.jpg"}], "annotations": [], "categories": []}',
    "photos/cat/a.jpg": "",
    "photos/dog/b.PNG": "",
    "sounds/yes/a.wav": "",
}


def of_task(task: TaskFacts, data_files: str) -> str:
    """The smallest recipe of a task, on one of `FILES`."""
    return (
        GOOD.replace("text-classification", task.name)
        .replace("{train: train.csv, validation: dev.csv}", data_files)
        .replace("bert-base-chinese", "owner/base")
    )


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


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
