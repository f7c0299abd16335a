"""What a recipe says of classes is held against the labels before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.assemble.prepare import prepare
from lora_ft.errors import RecipeError
from tests.toy import read, write_recipe


def test_a_weight_of_no_label_is_told_with_the_nearest_one_before_a_model(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_bert, loss={"class_weight": {"negative": 2.0, "positve": 1.0}}))
    with pytest.raises(RecipeError, match=r"loss.class_weight: 'positve' is no label. Did you mean 'positive'\?"):
        prepare(recipe)
