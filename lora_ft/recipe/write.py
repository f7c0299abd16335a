"""Writes a resolved recipe as YAML that reads back as the same recipe."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from lora_ft.recipe.schema import Recipe

OUR_SECTIONS = (
    "model", "dataset", "preparation", "loss", "balancing", "decision", "optimizer", "early_stopping", "lean",
)  # fmt: skip
ORDER = (
    "task",
    "offline",
    "model",
    "quantization_config",
    "peft_config",
    "dataset",
    "preparation",
    "processor",
    "generation_config",
    "augmentation",
    "loss",
    "balancing",
    "decision",
    "optimizer",
    "early_stopping",
    "lean",
    "checks",
    "training_args",
)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in and every path absolute.

    Args:
        recipe: A recipe that was read.

    Returns:
        YAML; `read_recipe` makes the same recipe of it (its `file` aside) on a machine with the same files.
    """
    values = {key: _plain(_written(vars(recipe)[key], key)) for key in ORDER}
    values = {key: value for key, value in values.items() if value not in (None, {}, False)}
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.width = 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(values, stream)
    return stream.getvalue()


def _written(value: Any, key: str) -> Any:
    """A section of ours without what equals its default."""
    if key not in OUR_SECTIONS:
        return value
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    return {name: one for name, one in vars(value).items() if one != defaults[name] and one not in ({}, None)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
