"""What `data preview` shows of rows: each stage of their way, and that it is the way that they go in a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.previewed import PreviewedRow, Sound, changes, preview
from lora_ft.errors import InputError
from lora_ft.tasks.base import load_task
from tests.bases import WORDS, make_base
from tests.toy import read, write_recipe

WAYS = {"variants": 2, "random_deletion": 0.2, "random_swap": 0.2}


def media_recipe(folder: Path, name: str, kind: str, base: str, **augmentation: Any) -> Path:
    """A recipe on the example rows of a task."""
    make_base(folder / "base", base)
    datasets.Dataset.from_dict(load_task(name).example_rows(kind)).to_parquet(str(folder / "train.parquet"))
    content: dict[str, Any] = {
        "task": name, "offline": True, "model": {"pretrained_model_name_or_path": "base"},
        "dataset": {"data_files": {"train": "train.parquet"}},
        "training_args": {"output_dir": "run", "use_cpu": True},
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**content, **({"augmentation": augmentation} if augmentation else {})}))
    return file


def stages(row: PreviewedRow) -> list[str]:
    return [stage.name for stage in row.stages]


def test_a_text_is_shown_in_the_file_and_in_each_of_its_variants(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_bert, augmentation=WAYS))
    found, run = preview(recipe, split="train", count=3), prepare(recipe)
    assert (found.rows, len(found.shown)) == (128, 3)
    for row in found.shown:
        number = int(row.where.rpartition("row ")[2]) - 2
        made = [at for at, source in enumerate(run.variants.sources) if source == number]
        assert stages(row) == [
            "in the file",
            *(f"variant {n}: {run.variants.ways[at]}" for n, at in enumerate(made, 1)),
        ]
        own, *variants = row.stages
        assert own.columns["text"] == run.rows["train"][number]["text"]
        for stage, at in zip(variants, made, strict=True):
            assert stage.columns["text"] == run.rows["train"][128 + at]["text"]
            (given,) = stage.given
            assert given.shown == run.task.shown(run.features["train"][128 + at], run.problem)
            assert given.tokens == run.features["train"][128 + at]["length"]


def test_the_choice_of_rows_follows_from_the_seed(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert)
    one, again = (preview(read(file), split="train", count=4) for _ in range(2))
    other = preview(read(file, "training_args.seed=1"), split="train", count=4)
    assert [row.where for row in one.shown] == [row.where for row in again.shown] != [row.where for row in other.shown]


def test_rows_with_variants_come_first_and_never_more_than_there_are(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_bert, augmentation={"random_deletion": 0.2}))
    with (tmp_path / "data" / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = [("good", "positive"), ("bad", "negative"), ("a bad day", "negative"), ("great", "positive")]
        csv.writer(stream).writerows([("text", "label"), *rows])
    (row,) = preview(recipe, split="train", count=1).shown
    assert stages(row) == ["in the file", "variant 1: random_deletion"]
    assert len(preview(recipe, split="train", count=9).shown) == 4


def test_nothing_is_varied_in_other_splits(tmp_path: Path, tiny_bert: Path) -> None:
    found = preview(read(write_recipe(tmp_path, tiny_bert, augmentation=WAYS)), split="validation", count=2)
    assert [stages(row) for row in found.shown] == [["in the file"]] * 2
    assert found.notes == ("validation: nothing is varied; only training rows are",)


def test_a_split_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(InputError, match=r"--split tets: the recipe has no such split.* It has: train, validation"):
        preview(read(write_recipe(tmp_path, tiny_bert)), split="tets", count=1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_cut_off_is_shown(tmp_path: Path, tiny_bert: Path, side: str) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, processor={"max_length": 5, "truncation_side": side})
    row = preview(read(recipe), split="train", count=1).shown[0]
    (given,) = row.stages[0].given
    words = row.stages[0].columns["text"].split()
    assert given.truncated
    assert given.tokens == 5
    assert given.cut.split() == (words[3:] if side == "right" else words[:-3])


def test_a_target_that_is_cut_off_is_shown_too(tmp_path: Path) -> None:
    recipe = media_recipe(tmp_path, "text2text-generation", "text2text_generation", "t5")
    cut = preview(read(recipe, "processor={max_length: 4, max_target_length: 2}"), split="train", count=4)
    for row in cut.shown:
        (given,) = row.stages[0].given
        assert given.tokens == 6
        text, target = (known_words(row.stages[0].columns[name]) for name in ("text", "target"))
        parts = [" ".join(text[3:]), " ".join(target[1:])]
        assert given.cut.replace("<unk>", "?") == " ... ".join(part for part in parts if part)


def known_words(text: str) -> list[str]:
    """The words of a text as the tiny tokenizer knows them."""
    found = text.lower().replace(".", " .").replace(",", " ,").split()
    return [word if word in WORDS else "?" for word in found]


def test_texts_are_shown_before_and_after_they_were_prepared(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, preparation={"lowercase": True})
    file = tmp_path / "data" / "train.csv"
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([head, *(line.capitalize() for line in lines)]) + "\n", encoding="utf-8")
    for row in preview(read(recipe), split="train", count=2).shown:
        raw, ready = row.stages
        assert (raw.name, ready.name) == ("in the file", "prepared")
        assert raw.columns["text"] == ready.columns["text"].capitalize() != ready.columns["text"]
        assert not raw.given
        assert ready.given


def test_a_row_that_is_drawn_twice_is_shown_as_the_file_has_it_each_time(tmp_path: Path, tiny_bert: Path) -> None:
    for name, count in (("few", 2), ("many", 8)):
        lines = "".join(f"Good {name} {number},{('bad', 'good')[number % 2]}\n" for number in range(count))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    files = {"train": ["few.csv", "many.csv"]}
    drawn = {"few.csv": 1, "many.csv": 1}
    recipe = write_recipe(
        tmp_path, tiny_bert, dataset={"data_files": files},
        preparation={"lowercase": True, "mixing_weights": drawn, "stopping_strategy": "all_exhausted"},
    )  # fmt: skip
    shown = preview(read(recipe), split="train", count=99).shown
    assert len({row.where for row in shown}) == 10 < len(shown)
    for row in shown:
        assert stages(row) == ["in the file", "prepared"]
        assert row.stages[0].columns["text"].startswith("Good")


def test_entities_are_shown_where_they_lie(tmp_path: Path) -> None:
    recipe = media_recipe(tmp_path, "token-classification", "spans", "bert", entity_swap=1.0)
    found = preview(read(recipe), split="train", count=4)
    told = [stage.columns["spans"] for row in found.shown for stage in row.stages]
    assert "[person: Anna] [place: Oslo]" in told
    assert "[person: Per Lind] [place: Oslo]" in told


def test_pictures_are_shown_as_the_model_sees_them_in_each_epoch(tmp_path: Path) -> None:
    task = ("image-classification", "single_label_classification", "vit")
    recipe = media_recipe(tmp_path, *task, horizontal_flip=0.5, color_jitter=0.5, random_resized_crop=[0.4, 0.8])
    (row,) = preview(read(recipe), split="train", count=1).shown
    assert stages(row) == ["in the file", "epoch 1", "epoch 2", "epoch 3"]
    first, *epochs = (stage.media for stage in row.stages)
    assert first.size == (48, 48)
    assert {picture.size for picture in epochs} == {(32, 32)}
    assert len({picture.tobytes() for picture in epochs}) == 3
    (plain,) = preview(read(recipe, "augmentation=null"), split="train", count=1).shown
    assert stages(plain) == ["in the file", "the model"]
    whole = np.asarray(first.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.int64)
    assert np.abs(np.asarray(plain.stages[1].media, dtype=np.int64) - whole).max() <= 8


def test_boxes_are_drawn_where_the_objects_are(tmp_path: Path) -> None:
    recipe = media_recipe(
        tmp_path, "object-detection", "object_detection", "yolos", horizontal_flip=1.0, crop=[0.5, 0.9]
    )
    for row in preview(read(recipe), split="train", count=4).shown:
        for stage in row.stages:
            pixels = np.asarray(stage.media, dtype=np.int64)
            assert pixels.shape[2] == 3
        assert any(len(stage.given[0].shown) > 40 for stage in row.stages[1:])  # boxes are named


def test_sounds_are_shown_as_long_and_as_loud_as_the_model_hears_them(tmp_path: Path) -> None:
    recipe = media_recipe(
        tmp_path, "automatic-speech-recognition", "ctc", "wav2vec2", speed=[0.8, 1.2], gain_db=[-6, 6]
    )
    (row,) = preview(read(recipe), split="train", count=1).shown
    sounds = [stage.media for stage in row.stages]
    assert all(isinstance(sound, Sound) for sound in sounds)
    assert len({len(sound.samples) for sound in sounds}) == 4
    for stage, sound in zip(row.stages[1:], sounds[1:], strict=True):
        assert f"sound of {len(sound.samples) / sound.rate:.2f} s" in stage.given[0].shown
    assert sounds[0].line().startswith(f"{len(sounds[0].samples) / sounds[0].rate:.2f} s at 16000 Hz, peak 0.5")


def test_changes_put_together_are_both_texts() -> None:
    before, after = "My phone, it broke.\nTwice", "My telephone it broke again."
    found = changes(before, after)
    assert "".join(text for kind, text in found if kind != "new") == before
    assert "".join(text for kind, text in found if kind != "gone") == after
    assert ("new", "telephone") in found
    assert changes("same", "same") == [("same", "same")]
