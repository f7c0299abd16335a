"""A base that a task has no model for is refused by what transformers itself lists, before anything is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.errors import RecipeError
from lora_ft.recipe.families import families_of, unknown_family
from lora_ft.tasks.base import load_task, task_names
from tests.toy import read, write_recipe


@pytest.mark.parametrize("task", task_names())
def test_the_families_read_are_those_that_transformers_maps(task: str) -> None:
    import transformers

    for name in load_task(task).auto_classes():
        upstream = getattr(transformers, name)._model_mapping._model_mapping
        assert families_of(name) == frozenset(upstream)


@pytest.mark.parametrize(
    ("task", "family", "expected"),
    [
        ("text2text-generation", "bert", "bart, "),
        ("text2text-generation", "gpt2", "t5, "),
        ("image-classification", "bert", "vit, "),
        ("object-detection", "vit", "yolos"),
        ("automatic-speech-recognition", "bert", "whisper"),
        ("fill-mask", "gpt2", "bert, "),
    ],
)
def test_a_base_of_another_kind_is_a_fault_of_the_recipe(tmp_path: Path, task: str, family: str, expected: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read(write_recipe(tmp_path, tmp_path / "base", task=task))
    (found,) = [fault for fault in caught.value.faults if "pretrained_model_name_or_path" in fault]
    assert f"the base is of the family '{family}'" in found
    assert expected in found


@pytest.mark.parametrize(
    "config", [{}, {"architecture": "resnet18"}, {"model_type": "new", "auto_map": {"AutoModel": "x"}}]
)
def test_a_base_that_does_not_say_its_family_is_left_to_the_run(config: dict[str, object]) -> None:
    assert unknown_family(config, ("AutoModelForImageClassification",), task="image-classification") is None


@pytest.mark.parametrize("task", ["fill-mask", "text-generation", "question-answering", "token-classification"])
def test_a_length_without_room_is_a_fault_of_the_recipe(tmp_path: Path, task: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(write_recipe(tmp_path, tmp_path / "base", task=task, processor={"max_length": 4}))
    least = load_task(task).least_tokens
    assert any(f"processor.max_length = 4: expected {least} tokens or more" in fault for fault in caught.value.faults)
