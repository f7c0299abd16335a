"""Our own words: each documented, each accepted, each read by the code that it is for."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lora_ft.recipe import defaults, owned, upstream, words
from lora_ft.recipe.schema import (
    BalancingSection,
    DatasetSection,
    DecisionSection,
    EarlyStoppingSection,
    LeanSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    PreparationSection,
    Recipe,
)

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, Any] = {
    "model": ModelSection,
    "dataset": DatasetSection,
    "preparation": PreparationSection,
    "loss": LossSection,
    "balancing": BalancingSection,
    "decision": DecisionSection,
    "optimizer": OptimizerSection,
    "early_stopping": EarlyStoppingSection,
    "lean": LeanSection,
}
WORDS = [(section, field.name) for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
WORDS += [("", field.name) for field in dataclasses.fields(Recipe)]


@pytest.fixture(scope="module")
def read_names() -> frozenset[str]:
    """Every attribute that code outside the recipe room reads."""
    names = set()
    for file in (ROOT / "lora_ft").rglob("*.py"):
        if "recipe" not in file.relative_to(ROOT / "lora_ft").parts:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return frozenset(names)


@pytest.mark.parametrize(("section", "word"), WORDS)
def test_every_word_of_ours_is_read_somewhere(read_names: frozenset[str], section: str, word: str) -> None:
    asked_for = {"checks": "checks_off"}.get(word, word)
    assert asked_for in read_names, f"{section}.{word} can be written in a recipe, and no code outside recipe/ reads it"


@pytest.mark.parametrize("section", SECTIONS)
def test_what_may_be_written_is_what_the_recipe_holds(section: str) -> None:
    struct = words.section_struct(section, task=None, peft_type="LORA")
    assert struct is not None
    assert list(struct.fields) == [field.name for field in dataclasses.fields(SECTIONS[section])]
    for field in dataclasses.fields(SECTIONS[section]):
        assert struct.fields[field.name].help, field.name


def test_every_section_of_the_recipe_is_known() -> None:
    assert {*words.SECTIONS, *words.TOP, "file"} == {field.name for field in dataclasses.fields(Recipe)}
    assert set(words.section_help()) == {field.name for field in dataclasses.fields(Recipe)}


def test_owned_fields_are_upstreams_and_renamed_ones_are_not() -> None:
    arguments, lora = upstream.training_arguments().fields, upstream.peft_config("LORA")
    assert lora is not None
    assert set(owned.OWNED["peft_config"]) <= set(lora.fields)
    assert set(owned.OWNED["training_args"]) - {"overwrite_output_dir"} <= set(arguments)
    assert not set(owned.RENAMED["training_args"]) & set(arguments)


DOCUMENT = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("section", "word"), WORDS)
def test_every_word_of_ours_is_documented(section: str, word: str) -> None:
    assert f"`{section}.{word}`" in DOCUMENT or (not section and f"`{word}`" in DOCUMENT) or word == "file"


@pytest.mark.parametrize("default", defaults.DEFAULTS, ids=lambda one: one.key)
def test_every_default_is_documented_with_its_reason(default: defaults.Default) -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{default.section}.{default.key}` |")]
    assert len(rows) == 1
    assert default.reason in rows[0]


@pytest.mark.parametrize(
    "field", [f"{section}.{key}" for section, fields in owned.OWNED.items() for key in fields], ids=str
)
def test_every_field_that_is_not_written_is_documented(field: str) -> None:
    assert f"`{field}`" in DOCUMENT
