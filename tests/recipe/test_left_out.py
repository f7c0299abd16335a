"""What a recipe may leave out, and what is said of a file that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.errors import RecipeError
from lora_ft.recipe.read import read_recipe
from tests.recipe.stub import GOOD, TASKS, write


def test_a_recipe_without_peft_config_means_lora_with_our_defaults(tmp_path: Path) -> None:
    left_out = GOOD.replace("peft_config:\n  peft_type: LORA\n", "")
    assert "peft_config" not in left_out
    whole, without = (read_recipe(write(tmp_path, text), tasks=TASKS) for text in (GOOD, left_out))
    assert without.peft_config == whole.peft_config
    assert without.peft_config["peft_type"] == "LORA"


def test_a_file_is_only_suggested_if_more_than_its_ending_is_near(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "dev.csv").rename(tmp_path / "pc.csv")
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, overrides=("dataset.data_files.validation=dve.csv",), tasks=TASKS)
    assert "there is no such file. Nothing in " in str(caught.value)
    assert "pc.csv" not in str(caught.value)
