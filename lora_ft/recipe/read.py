"""Reads a recipe file into a checked, resolved Recipe; all its faults come in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.recipe.defaults import fill_defaults
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.misspelt import with_nearest_sections
from lora_ft.recipe.overrides import lay_over
from lora_ft.recipe.paths import resolve_paths
from lora_ft.recipe.reader import read_document
from lora_ft.recipe.rules import broken_rules
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
    TaskFacts,
)
from lora_ft.recipe.sections import check_sections
from lora_ft.recipe.write import resolved_yaml

__all__ = ["read_recipe", "resolved_yaml"]


def read_recipe(file: Path, *, overrides: Sequence[str] = (), tasks: Mapping[str, TaskFacts]) -> Recipe:
    """Reads, checks and resolves a recipe without importing torch, transformers, peft or datasets.

    Args:
        file: The YAML file. Relative paths in it, and in the overrides, start at its folder.
        overrides: `section.key=value`, later ones over earlier ones.
        tasks: What the known tasks accept, by name.

    Returns:
        The recipe with every default filled in and every path absolute.

    Raises:
        RecipeError: One line for each fault, in the order of the file, then of the overrides.
    """
    document = with_nearest_sections(lay_over(read_document(file), overrides))
    draft = Draft(document=document, folder=file.absolute().parent)
    faults = [*document.faults, *check_sections(draft, tasks)]
    _settle(draft)
    faults += resolve_paths(draft)
    fill_defaults(draft)
    faults += broken_rules(draft)
    if faults:
        raise document.error(faults)
    return _recipe(file, draft)


def _settle(draft: Draft) -> None:
    """Gives values that may be written in several ways their one form; null takes a split or a column out."""
    dataset = draft.section("dataset")
    for key in ("columns", "split", "data_files"):
        if isinstance(dataset.get(key), dict):
            dataset[key] = {name: one for name, one in dataset[key].items() if one is not None}
    columns = dataset.get("columns")
    if columns is not None:
        dataset["columns"] = {key: tuple(one) if isinstance(one, list) else one for key, one in columns.items()}
    preparation = draft.section("preparation")
    for key in ("stop_words", "languages", "replace"):
        if isinstance(preparation.get(key), list):
            preparation[key] = tuple(tuple(one) if isinstance(one, list) else one for one in preparation[key])
    names = dataset.get("label_names")
    if names is not None:
        dataset["label_names"] = tuple(_label(name) for name in names)


def _label(value: Any) -> str:
    """A label as text: labels are compared as text everywhere."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _recipe(file: Path, draft: Draft) -> Recipe:
    dataset = {key: value for key, value in draft.section("dataset").items() if value is not None}
    loss = draft.section("loss")
    return Recipe(
        file=file,
        task=draft.values["task"],
        model=ModelSection(**draft.section("model")),
        peft_config=draft.section("peft_config"),
        dataset=DatasetSection(**dataset),
        processor=draft.section("processor"),
        training_args=draft.section("training_args"),
        quantization_config=draft.section("quantization_config") or None,
        preparation=PreparationSection(**draft.section("preparation")),
        loss=LossSection(**loss),
        balancing=BalancingSection(**draft.section("balancing")),
        decision=DecisionSection(**draft.section("decision")),
        optimizer=OptimizerSection(**draft.section("optimizer")),
        early_stopping=EarlyStoppingSection(**draft.section("early_stopping")),
        lean=LeanSection(**draft.section("lean")),
        generation_config=draft.section("generation_config"),
        augmentation=draft.section("augmentation"),
        checks=draft.section("checks"),
        offline=draft.values["offline"],
    )
