"""Image classification beyond the contract suite: top five, mixing, real folders, convolutions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.serve.predict import argument_rows, predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.painted import ATTENTION, CONVOLUTIONS, Adapted, recipe, write_class_folders

TASK = load_task("image-classification")
SINGLE = "single_label_classification"
MANY = tuple("abcdefgh")


def problem(labels: tuple[str, ...] = MANY, **more: Any) -> Problem:
    return Problem(SINGLE, labels, None, {}, **more)


def test_of_many_classes_a_prediction_names_the_five_likeliest_in_order() -> None:
    (one,) = TASK.decode({"logits": np.asarray([[0.0, 5, 1, 4, 2, 3, -1, -2]])}, [{}], problem())
    assert one["label"] == "b"
    assert list(one["scores"]) == ["b", "d", "f", "e", "c"]


def test_top_five_counts_a_label_among_the_five_likeliest() -> None:
    logits = np.tile([7.0, 6, 5, 4, 3, 2, 1, 0], (3, 1))
    predictions = TASK.decode({"logits": logits}, [{}] * 3, problem())
    scores = TASK.score(predictions, [0, 4, 5], problem())
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["top5_accuracy"] == pytest.approx(2 / 3)


def test_with_few_classes_top_five_leaves_one_out_so_that_it_still_says_something() -> None:
    few = problem(("a", "b", "c"))
    predictions = TASK.decode({"logits": np.asarray([[2.0, 1, 0]] * 2)}, [{}] * 2, few)
    assert TASK.score(predictions, [1, 2], few)["top5_accuracy"] == 0.5


def test_mixed_images_are_learned_in_their_shares_and_counted_as_images() -> None:
    mixing = problem(("a", "b", "c"), augmentation={"mixup_alpha": 1.0})
    features = [{"pixel_values": torch.full((3, 4, 4), float(label)), "labels": label} for label in (0, 1, 2)]
    torch.manual_seed(0)
    batch = TASK.collator(mixing, training=True)(features)
    assert TASK.items(batch) == 3
    logits = torch.randn(3, 3)
    expected = -(batch["mixed_labels"] * logits.log_softmax(1)).sum() / 3
    assert torch.allclose(TASK.loss({"logits": logits}, batch, mixing, items=3), expected)
    plain = TASK.collator(mixing)(features)
    assert set(plain) == {"pixel_values", "labels"}


def test_only_training_rows_are_augmented_and_their_seed_decides_how(tmp_path: Path) -> None:
    built = Adapted(tmp_path, "vit", TASK.name, ATTENTION)
    section = {"random_resized_crop": [0.2, 0.6], "color_jitter": 0.5}
    built.problem = replace(built.problem, augmentation=section, seed=1)
    first, again = (built.features(training=True)[0]["pixel_values"] for _ in range(2))
    plain = built.features()[0]["pixel_values"]
    built.problem = replace(built.problem, seed=2)
    other = built.features(training=True)[0]["pixel_values"]
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)


def test_a_broken_image_is_named_with_its_column_and_reason() -> None:
    fault = TASK.fault({"image": {"path": None, "bytes": b"no"}}, labels=())
    assert fault == "image: an image of 2 bytes: it is no image that Pillow can read"


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2", "timm"])
def test_convolutions_are_adapted_and_batch_norms_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    built = Adapted(tmp_path, kind, TASK.name, CONVOLUTIONS)
    assert built.head
    before = {name: buffer.clone() for name, buffer in built.model.named_buffers()}
    adapted = [name for name, _ in built.model.named_parameters() if "lora_A" in name]
    sizes = {tuple(one.shape[2:]) for name, one in built.model.named_parameters() if "lora_A" in name}
    assert len(adapted) > 5
    assert {(1, 1), (3, 3)} <= sizes
    built.model.train()
    built.loss(built.batch()).backward()
    assert built.without_gradient() == []
    assert all(torch.equal(buffer, before[name]) for name, buffer in built.model.named_buffers())


@pytest.mark.parametrize(("kind", "peft"), [("vit", ATTENTION), ("mobilenet_v2", CONVOLUTIONS), ("timm", CONVOLUTIONS)])
def test_a_folder_of_classes_is_learned_saved_and_predicted_alike(
    kind: str, peft: dict[str, Any], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", kind)
    images = write_class_folders(tmp_path / "fruit")
    others = write_class_folders(tmp_path / "other_fruit", smallest=9)
    read = recipe(
        tmp_path, base, TASK.name, peft_config=peft, augmentation={"horizontal_flip": 0.5},
        dataset={"data_files": {"train": str(images), "validation": str(others)}},
        training_args={"num_train_epochs": 8},
    )  # fmt: skip
    result = train(read, RunOptions())
    assert result.manifest is not None
    assert result.manifest.labels == ("apple", "pear")
    assert result.metrics["validation"]["accuracy"] >= 0.875
    assert result.learned

    adapter = open_adapter(result.folder, OpenOptions(offline=True))
    (column,) = TASK.inputs()
    found = list(predict(adapter, argument_rows([str(images)], column), batch_size=3))
    assert [one["label"] for one in found] == [Path(one["image"]).parent.name for one in found]
    assert len(found) == 8
    alone = list(predict(adapter, argument_rows([found[5]["image"]], column), batch_size=1))
    assert alone[0]["score"] == pytest.approx(found[5]["score"], abs=1e-6)


def test_a_base_in_four_bits_is_adapted_saved_and_loaded(tmp_path: Path) -> None:
    base, images = make_base(tmp_path / "base", "vit"), write_class_folders(tmp_path / "fruit")
    read = recipe(
        tmp_path, base, TASK.name, dataset={"data_files": {"train": str(images)}}, training_args={"max_steps": 3},
        quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    )  # fmt: skip
    result = train(read, RunOptions())
    assert open_adapter(result.folder, OpenOptions(offline=True)).manifest.quantization == "nf4"


def test_bad_images_are_left_out_and_counted_where_the_recipe_allows_it(tmp_path: Path) -> None:
    from lora_ft.assemble.prepare import prepare
    from lora_ft.errors import DataError

    base, images = make_base(tmp_path / "base", "vit"), write_class_folders(tmp_path / "fruit")
    broken = images / "apple" / "9.png"
    broken.write_bytes((images / "apple" / "0.png").read_bytes()[:60])
    files = {"train": str(images)}
    with pytest.raises(DataError, match=r"9\.png.*image"):
        prepare(recipe(tmp_path, base, TASK.name, dataset={"data_files": files}))
    kept = prepare(recipe(tmp_path, base, TASK.name, dataset={"data_files": files, "on_bad_row": "skip"}))
    assert len(kept.rows["train"]) == 8
    assert any("9.png" in line or "1" in line for line in kept.report.lines())


def test_several_labels_an_image_come_from_a_list(tmp_path: Path) -> None:
    rows = TASK.example_rows("multi_label_classification")
    table = datasets.Dataset.from_dict(rows)
    several = Problem("multi_label_classification", ("apple", "large", "pear"), None, {})
    assert TASK.references(table[:], several)[2] == [1.0, 1.0, 0.0]
