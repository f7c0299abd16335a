"""What a recipe may say because of its task: processor, generation, augmentation, labels, and the base's limits."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ft.models import resolve
from lora_ft.recipe import bases
from lora_ft.recipe.bases import base_config, most_tokens
from lora_ft.recipe.read import read_recipe, resolved_yaml
from lora_ft.recipe.schema import TaskFacts
from tests.recipe.stub import (
    GOOD,
    IMAGE_CLASSIFICATION,
    OBJECT_DETECTION,
    TASKS,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    fault,
    of_task,
    read,
    write_files,
)

CHAT = of_task(TEXT_GENERATION, "plain.txt")
TAGS = of_task(TOKEN_CLASSIFICATION, "words.conll")
PHOTOS = of_task(IMAGE_CLASSIFICATION, "photos")
BOXES = of_task(OBJECT_DETECTION, "coco.json")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path) -> None:
    write_files(tmp_path)


def test_generation_and_augmentation_reach_the_recipe_and_come_back(tmp_path: Path) -> None:
    chat = read(
        tmp_path, "generation_config={max_new_tokens: 8, stop_strings: [a, b], early_stopping: never}", text=CHAT
    )
    assert chat.generation_config == {"max_new_tokens": 8, "stop_strings": ["a", "b"], "early_stopping": "never"}
    photos = read(
        tmp_path, "augmentation={flip: 1, crop_scale: [0.5, 1]}", "processor.size=[8, 8]", "dataset.media_dir=photos",
        "dataset.on_bad_row=skip", text=PHOTOS,
    )  # fmt: skip
    assert photos.augmentation == {"flip": 1, "crop_scale": [0.5, 1]}
    assert photos.dataset.media_dir == str(tmp_path / "photos")
    for recipe in (chat, photos):
        file = tmp_path / "elsewhere" / "recipe.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(resolved_yaml(recipe), encoding="utf-8")
        assert replace(read_recipe(file, tasks=TASKS), file=recipe.file) == recipe


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (GOOD, "generation_config.num_beams=2", "the task text-classification generates nothing. Leave the section out"),
        (GOOD, "augmentation.flip=1", "the task text-classification augments nothing. Leave the section out"),
        (BOXES, "processor.size=1", "the task object-detection has no settings of a processor. Leave the section out"),
        (
            CHAT, "generation_config.max_new_token=2",
            "generation_config of the task text-generation has no key 'max_new_token'. Did you mean 'max_new_tokens'?",
        ),
        (CHAT, "processor.max_new_tokens=2", "'. It belongs in generation_config: move it there"),
        (CHAT, "generation_config.max_new_tokens=two", "expected a whole number. YAML read this as text"),
        (CHAT, "generation_config.max_new_tokens=0", "expected a number at least 1"),
        (CHAT, "generation_config.temperature=0", "expected a number above 0"),
        (CHAT, "generation_config.stop_strings=3", "expected a list (a number or text each) or text. Put it in quotes: '3'"),
        (CHAT, "generation_config.stop_strings=[[a]]", "expected a number or text."),
        (CHAT, "generation_config.early_stopping=always", "expected 'never' or true or false."),
        (CHAT, "generation_config={do_sample: false, temperature: 0.5}", "it has no effect with do_sample: false. Leave one "
         "of the two out"),
        (PHOTOS, "augmentation.interpolation=bilinar", "expected one of 'bilinear', 3. Did you mean 'bilinear'?"),
        (PHOTOS, "augmentation.flip=[1]", "expected a number."),
        (PHOTOS, "processor.size=true", "expected a list (a number or text each) or a whole number."),
        (TAGS, "processor={max_length: 64, stride: 64}", "windows of 64 tokens (max_length) cannot overlap by that many. "
         "Write less than 64"),
        (TAGS, "processor.stride=-1", "expected a number at least 0"),
        (CHAT, "dataset.sample_by=word", "expected one of 'line', 'paragraph', 'document'."),
        (CHAT, "dataset.on_bad_row=leave", "expected one of 'error', 'skip'."),
        # labels
        (CHAT, "dataset.label_names=[a, b]", "the task text-generation has no labels. Leave it out"),
        (TAGS, "dataset.label_delimiter='|'", "it splits the text of a label column, and the task token-classification has "
         "none. Leave it out"),
        (TAGS, "dataset.label_names=[]", "expected at least 1 label. Name them all, or leave it out"),
        (PHOTOS, "dataset.label_names=[cat]", "expected at least 2 labels. Name them all, or leave it out"),
        (PHOTOS, "dataset.label_delimiter='|'", "a row of the task image-classification has one label. Leave it out, or name "
         "one column"),
        (PHOTOS, "dataset.columns.image=[a, b]", "expected text or null."),
        (GOOD, "loss.loss_type=ipo", "the task text-classification has one loss, without settings. Leave it out"),
        (GOOD, "loss.beta=0.1", "the task text-classification has one loss, without settings. Leave it out"),
        (CHAT, "loss.loss_type=sigmoi", "there is no such loss. Did you mean 'sigmoid'?"),
        (CHAT, "loss.beta=0", "expected a number above 0"),
        (CHAT, "loss.class_weight=balanced", "the task text-generation has no classes to weigh. Leave it out"),
        (TAGS, "training_args.label_smoothing_factor=0.1", "the task token-classification has no labels to smooth. Leave it "
         "out"),
        (PHOTOS, "model.problem_type=regression", "the task image-classification has no such problem type. Known: "
         "single_label_classification"),
    ],
)  # fmt: skip
def test_what_a_task_does_not_know_is_one_fault(tmp_path: Path, text: str, override: str, message: str) -> None:
    assert fault(tmp_path, override, text=text).rstrip(".").endswith(message.rstrip("."))


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (GOOD, ["generation_config=null", "augmentation={}"]),
        (CHAT, ["loss={loss_type: ipo, beta: 0.5}"]),
        (CHAT, ["generation_config={do_sample: true, temperature: 0.5}"]),
        (CHAT, ["generation_config={stop_strings: stop, early_stopping: true, temperature: 2}"]),
        (PHOTOS, ["augmentation={interpolation: 3, crop_scale: null}"]),
        (TAGS, ["dataset.label_names=[ORG]", "loss.class_weight={B-ORG: 2}"]),
        (BOXES, ["dataset.label_names=[cell]"]),
    ],
)
def test_what_a_task_knows_passes(tmp_path: Path, text: str, overrides: list[str]) -> None:
    read(tmp_path, *overrides, text=text)


@pytest.mark.parametrize(
    ("task", "file", "expected"),
    [(TOKEN_CLASSIFICATION, "words.conll", "all-linear"), (IMAGE_CLASSIFICATION, "photos", None)],
)
def test_only_tasks_without_images_get_all_linear_layers(
    tmp_path: Path, task: TaskFacts, file: str, expected: str | None
) -> None:
    text = of_task(task, file)
    assert read(tmp_path, text=text).peft_config.get("target_modules") == expected
    assert read(tmp_path, "peft_config.target_modules=[a]", text=text).peft_config["target_modules"] == ["a"]


def test_a_chat_template_is_a_text_or_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    recipe = read(tmp_path, "processor.chat_template=chat.jinja", text=CHAT)
    assert recipe.processor["chat_template"] == str(tmp_path / "chat.jinja")
    assert read(tmp_path, "processor.chat_template='{{ a }}'", text=CHAT).processor["chat_template"] == "{{ a }}"
    assert "there is no such file. Did you mean 'chat.jinja'?" in fault(
        tmp_path, "processor.chat_template=chat.jinjaa", text=CHAT
    )


def local_base(folder: Path, **config: object) -> list[str]:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text(json.dumps(config))
    return ["model.pretrained_model_name_or_path=./base"]


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 128}}, 128),
    ],
)
def test_texts_longer_than_a_local_base_reads_are_refused(
    tmp_path: Path, config: dict[str, object], limit: int
) -> None:
    base = local_base(tmp_path, **config)
    read(tmp_path, *base, f"processor.max_length={limit}")
    found = fault(tmp_path, *base, f"processor.max_length={limit + 1}")
    assert found == (
        f"override processor.max_length={limit + 1}: the base reads at most {limit} tokens (its config.json). "
        f"Write {limit} or less"
    )


@pytest.mark.parametrize("config", [{}, {"model_type": "t5", "n_positions": 512}, {"max_position_embeddings": -1}])
def test_a_base_without_a_limit_sets_none(tmp_path: Path, config: dict[str, object]) -> None:
    assert most_tokens(config) is None
    read(tmp_path, *local_base(tmp_path, **config), "processor.max_length=5000")


def test_a_config_that_cannot_be_read_is_left_to_the_run(tmp_path: Path) -> None:
    overrides = local_base(tmp_path)
    (tmp_path / "base" / "config.json").write_text("{")
    read(tmp_path, *overrides, "processor.max_length=5000")
    assert base_config("nobody/has-this", revision=None) == {}


def test_a_packaged_base_is_found_as_the_models_room_finds_it(tmp_path: Path) -> None:
    assert bases.PACKAGED_BASES == resolve.PACKAGED_BASES
    (name,) = bases.PACKAGED_BASES
    if not base_config(name, revision=None):
        pytest.skip("the packaged base is not installed")
    text = GOOD.replace("bert-base-chinese", name)
    assert "reads at most 512 tokens" in fault(tmp_path, "processor.max_length=513", text=text)
    read(tmp_path, "processor.max_length=513", "model.revision=v1", text=text)
