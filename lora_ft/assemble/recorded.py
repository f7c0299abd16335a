"""What an adapter folder remembers of its recipe: the rows it was made from, and how to read others like them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_ft.errors import RecipeError
from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.reader import read_document
from lora_ft.recipe.schema import Recipe, TaskFacts


@dataclass(frozen=True)
class RecordedColumns:
    """How the recipe of an adapter read its rows.

    Attributes:
        columns: `dataset.columns`.
        label_delimiter: `dataset.label_delimiter`.
        sample_by: `dataset.sample_by`.
        media_dir: `dataset.media_dir`, if that folder is still there; else paths start at the folder of the file.
    """

    columns: Mapping[str, str | tuple[str, ...]]
    label_delimiter: str | None = None
    sample_by: Literal["line", "paragraph", "document"] = "line"
    media_dir: Path | None = None


def recorded_columns(adapter: Path) -> RecordedColumns:
    """Reads from the recipe in an adapter folder how its rows were read."""
    section = read_document(adapter / "recipe.yaml").value["dataset"]
    columns = {
        name: tuple(column) if isinstance(column, list) else column
        for name, column in (section.get("columns") or {}).items()
    }
    media_dir = Path(section["media_dir"]) if section.get("media_dir") else None
    return RecordedColumns(
        columns,
        section.get("label_delimiter"),
        section.get("sample_by", "line"),
        media_dir if media_dir is not None and media_dir.is_dir() else None,
    )


def recorded_recipe(adapter: Path, *, tasks: Mapping[str, TaskFacts]) -> Recipe:
    """The recipe in an adapter folder, for its rows; its data files must still be where they were.

    Where it was trained (device, base, output folder) and how its rows were varied does not matter for measuring and is
    not checked again.

    Args:
        adapter: A verified adapter folder.
        tasks: The known tasks.

    Raises:
        RecipeError: The rows are not there any more.
    """
    file = adapter / "recipe.yaml"
    seed = (read_document(file).value.get("training_args") or {}).get("seed", 0)  # an adopted adapter has none
    elsewhere = (
        f"training_args={{output_dir: {json.dumps(str(adapter.parent))}, seed: {seed}}}",
        "model={pretrained_model_name_or_path: not/loaded}",
        "quantization_config=null",
        "early_stopping=null",
        "augmentation=null",  # its files and functions may be gone
    )
    try:
        return read_recipe(file, overrides=elsewhere, tasks=tasks)
    except RecipeError as error:
        raise RecipeError([*error.faults, "The adapter itself is fine: give the rows with --data FILE"]) from error
