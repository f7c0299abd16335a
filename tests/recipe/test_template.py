"""`lora-ft init`: a recipe for every task that has no fault once its data is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.reader import parse_document
from lora_ft.recipe.schema import TaskFacts
from lora_ft.recipe.template import first_columns, template
from lora_ft.tasks.base import load_task, task_names
from tests.recipe.stub import ALL_TASKS, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, TEXT_GENERATION

SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": []}]}]}
COCO = {"images": [{"file_name": "a.jpg"}], "annotations": [], "categories": []}


STUBS = {f"stub of {task.name}": task for task in ALL_TASKS}
EVERY_TASK = pytest.mark.parametrize("name", [*STUBS, *task_names()])


def facts(name: str) -> TaskFacts:
    return STUBS[name] if name in STUBS else load_task(name).facts()


def write_training_data(folder: Path, task: TaskFacts) -> None:
    """The training file of `starting_point`, with one row of the columns of the template."""
    file = folder / task.starting_point[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {column.kind: column.name for column in first_columns(task)}
    row = {column.name: "x" for column in first_columns(task)}
    nested = {"objects": COCO, "answers": SQUAD}
    texts = {
        ".csv": ",".join(row) + "\n" + ",".join(row.values()) + "\n",
        ".tsv": "\t".join(row) + "\n" + "\t".join(row.values()) + "\n",
        ".json": json.dumps(next((nested[kind] for kind in nested if kind in kinds), [row])),
        ".jsonl": json.dumps(row),
        ".txt": "some text",
        ".conll": "EU B-ORG\n",
        ".xml": "<annotation></annotation>",
    }
    if file.suffix == ".parquet":
        pq.write_table(pa.table({name: ["x"] for name in row}), file)
    elif file.suffix:
        file.write_text(texts[file.suffix])
    else:
        (file / "one class").mkdir(parents=True)
        (file / "one class" / ("a.jpg" if "image" in kinds else "a.wav")).write_text("")


@EVERY_TASK
def test_the_template_of_a_task_has_no_fault_once_its_data_exists(tmp_path: Path, name: str) -> None:
    task = facts(name)
    write_training_data(tmp_path, task)
    file = tmp_path / "recipe.yaml"
    file.write_text(template(task))
    recipe = read_recipe(file, tasks={task.name: task})
    assert recipe.model.pretrained_model_name_or_path == task.starting_point[0]
    assert recipe.dataset.columns == {column.name: column.name for column in first_columns(task)}
    assert set(recipe.processor) <= set(task.processor_fields)
    assert bool(recipe.generation_config) == bool(task.generation_fields)


@EVERY_TASK
def test_the_template_of_a_task_explains_every_section_and_column(name: str) -> None:
    task = facts(name)
    text = template(task)
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.endswith(":") and not line.startswith(" "):
            assert lines[index - 1].startswith("# "), line
        assert len(line) <= 120, line
    for column in first_columns(task):
        assert any(line.strip().startswith(f"{column.name}: ") and line.endswith(column.help) for line in lines)


def test_a_template_says_what_it_can_and_no_more() -> None:
    values = {task.name: parse_document(template(task), name="x").value for task in ALL_TASKS}
    assert values["text-classification"]["processor"] == {"max_length": 256, "truncation": True}
    assert "generation_config" not in values["text-classification"]
    assert values["token-classification"]["processor"] == {"max_length": 256, "stride": 64}
    assert values["token-classification"]["dataset"]["columns"] == {"tokens": "tokens", "tags": "tags"}
    assert values["text-generation"]["dataset"]["columns"] == {"text": "text"}
    assert values["text-generation"]["generation_config"] == {"max_new_tokens": 128, "do_sample": False}
    assert "processor" not in values["object-detection"]


def test_sounds_are_not_cut_unasked() -> None:
    task = replace(TEXT_GENERATION, processor_fields={"truncation": (bool,)})
    assert "processor" not in parse_document(template(task), name="x").value


def test_a_template_holds_no_value_that_its_task_refuses() -> None:
    task = replace(TEXT_GENERATION, processor_fields={"max_length": (int,), "truncation": ("only_second",)})
    assert parse_document(template(task), name="x").value["processor"] == {"max_length": 256}


def test_only_a_base_for_texts_starts_with_all_linear_layers() -> None:
    for task in (TEXT_CLASSIFICATION, TEXT_GENERATION):
        assert parse_document(template(task), name="x").value["peft_config"]["target_modules"] == "all-linear"
    assert "target_modules" not in template(IMAGE_CLASSIFICATION)


def test_a_length_is_said_to_be_a_window_where_texts_are_read_in_windows() -> None:
    assert "max_length: 256  # tokens of a window; longer texts are read in several" in template(
        load_task("token-classification").facts()
    )
    assert "# tokens; longer texts are cut" in template(load_task("text-classification").facts())


def test_speech_recognition_shows_how_to_say_the_language() -> None:
    assert "\n# processor: {language: german}\n" in template(load_task("automatic-speech-recognition").facts())
