"""The JSON Schema accepts what the reader accepts, and knows every field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lora_ft.recipe import upstream
from lora_ft.recipe.json_schema import json_schema
from lora_ft.recipe.owned import OWNED
from lora_ft.recipe.read import read_recipe, resolved_yaml
from lora_ft.recipe.reader import parse_value
from lora_ft.recipe.template import template
from lora_ft.tasks.base import load_task, task_names
from tests.recipe.stub import ALL_TASKS, GOOD, TASKS, TEXT_GENERATION, of_task, read, write_files
from tests.recipe.test_read import EIGHT_MISTAKES, EVERYTHING

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema(TASKS)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def messages(validator: jsonschema.Draft202012Validator, text: str) -> list[str]:
    return [error.message for error in validator.iter_errors(parse_value(text))]


def test_good_recipes_are_valid(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    for text in (
        GOOD,
        EVERYTHING,
        *(template(task) for task in ALL_TASKS),
        resolved_yaml(read(tmp_path, text=EVERYTHING)),
    ):
        assert messages(validator, text) == []


CHAT = of_task(TEXT_GENERATION, "plain.txt")
GENERATION = (
    CHAT + "generation_config: {max_new_tokens: 8, temperature: 0.5, stop_strings: [a], early_stopping: never}\n"
)


def test_the_sections_of_a_task_are_in_the_schema(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    write_files(tmp_path)
    resolved = resolved_yaml(read(tmp_path, "model.problem_type=text", text=GENERATION))
    for text in (GENERATION, resolved, GENERATION.replace("[a]", "a").replace("never", "true")):
        assert messages(validator, text) == []
    for before, after in (
        ("max_new_tokens", "max_new_token"),
        ("8", "0"),
        ("[a]", "[[a]]"),
        ("never", "always"),
        ("task: text-generation", "task: text-classification"),
        ("dataset:", "augmentation: {flip: 0.5}\ndataset:"),
        ("  pretrained", "  problem_type: chta\n  pretrained"),
        ("plain.txt", "plain.txt\n  sample_by: word"),
        ("dataset:", "loss: {loss_type: idpo}\ndataset:"),
        ("plain.txt", "plain.txt\n  on_bad_row: leave"),
    ):
        assert before in GENERATION
        assert messages(validator, GENERATION.replace(before, after)), after


def test_every_recipe_and_template_of_this_repository_is_valid(tmp_path: Path) -> None:
    tasks = {name: load_task(name).facts() for name in task_names()}
    validator = jsonschema.Draft202012Validator(json_schema(tasks))
    for file in RECIPES:
        assert messages(validator, file.read_text(encoding="utf-8")) == [], file
        assert read_recipe(file, tasks=tasks).task in tasks
    for task in tasks.values():
        assert messages(validator, template(task)) == [], task.name


def test_mistakes_are_not_valid(validator: jsonschema.Draft202012Validator) -> None:
    text = EIGHT_MISTAKES.replace("  seed: 1\n", "")
    found = "\n".join(messages(validator, text))
    for word in (
        "bnb_4bit_quant_typ",
        "lora_alfa",
        "'no' is not of type",
        "'1e-4' is not of type",
        "'cosin' is not",
    ):
        assert word in found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("task: text-classification", "task: text-clasification"),
        ("training_args:", "trainig_args:"),
        ("  output_dir: runs/shop", "  seed: 1"),
        ("peft_type: LORA", "peft_type: lora"),
        ("peft_type: LORA", "lora_alfa: 1"),
        ("peft_type: LORA", "peft_type: IA3\n  r: 8"),
        ("peft_type: LORA", "r: 0"),
        ("peft_type: LORA", "task_type: SEQ_CLS"),
        ("dev.csv}", "dev.csv}\n  columns: {txt: a}"),
        ("dev.csv}", "dev.csv}\n  validation: 1.5"),
        ("output_dir: runs/shop", "output_dir: runs/shop\nprocessor: {max_len: 3}"),
    ],
)
def test_a_typo_is_not_valid(validator: jsonschema.Draft202012Validator, before: str, after: str) -> None:
    assert messages(validator, GOOD) == []
    assert before in GOOD
    assert messages(validator, GOOD.replace(before, after))


def test_every_field_of_every_method_is_in_the_schema() -> None:
    schema = json_schema(TASKS)
    for peft_type in upstream.peft_types():
        fields: Any = upstream.peft_config(peft_type)
        assert set(schema["$defs"][peft_type]["properties"]) == set(fields.fields) - set(OWNED["peft_config"])
    arguments = schema["properties"]["training_args"]["properties"]
    assert set(arguments) == set(upstream.training_arguments().fields) - set(OWNED["training_args"])


def test_fields_are_described_with_their_defaults() -> None:
    schema = json_schema(TASKS)
    assert schema["properties"]["training_args"]["properties"]["learning_rate"] == {
        "type": "number",
        "description": "The initial learning rate for the optimizer.",
        "default": 5e-5,
        "exclusiveMinimum": 0,
    }
    for section, properties in schema["properties"].items():
        assert properties["description"], section
        if section in ("model", "dataset", "loss", "optimizer", "early_stopping", "lean"):
            assert all(one.get("description") for one in properties["properties"].values()), section
