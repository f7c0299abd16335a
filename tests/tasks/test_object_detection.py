"""Object detection beyond the contract suite: families, boxes in pixels, images without objects, learning by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import DataError, InputError
from lora_ft.serve.predict import argument_rows, predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.detection import detection_settings
from lora_ft.tasks.parts.image_examples import picture
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.painted import ATTENTION, LABELS, Adapted, recipe, write_coco

TASK = load_task("object-detection")
FAMILIES = ("yolos", "detr", "rt_detr")
PROBLEM = Problem("object_detection", LABELS, None, {})
NOTHING: dict[str, list[Any]] = {"bbox": [], "category": []}


def answer(objects: list[tuple[int, list[float]]], *, softmax: bool, queries: int = 6) -> dict[str, np.ndarray]:
    """What a model that is sure of these objects would answer to one image; the other queries find nothing."""
    logits = np.full((1, queries, len(LABELS) + softmax), -9.0)
    if softmax:
        logits[0, :, -1] = 9.0
    boxes = np.full((1, queries, 4), 0.5)
    for query, (label, box) in enumerate(objects):
        logits[0, query] = -9.0
        logits[0, query, label] = 9.0
        boxes[0, query] = box
    return {"logits": logits, "pred_boxes": boxes}


@pytest.mark.parametrize("softmax", [True, False], ids=("softmax with no-object", "sigmoid"))
def test_an_answer_is_read_by_its_family_into_pixels_of_the_original_image(softmax: bool) -> None:
    given = answer([(1, [0.5, 0.25, 0.5, 0.5]), (0, [0.9, 0.5, 0.4, 0.2])], softmax=softmax)
    one = {"canvas": [200.0, 200.0], "image_size": [200, 100]}  # the lower half of the canvas is padding
    (found,) = TASK.decode(given, [one], PROBLEM)
    assert [thing["label"] for thing in found["objects"]] == ["pear", "apple"]
    assert [thing["box"] for thing in found["objects"]] == [[50, 0, 100, 100], [140, 80, 60, 20]]
    assert all(thing["score"] > 0.99 for thing in found["objects"])


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_an_image_has_is_what_a_perfect_model_answers(kind: str, tmp_path: Path) -> None:
    built = Adapted(tmp_path, kind, TASK.name, ATTENTION)
    pictures, objects = [picture([("red", (5, 7, 20, 10))])], [{"bbox": [[5.0, 7.0, 20.0, 10.0]], "category": ["pear"]}]
    rows = {"image": pictures, "objects": objects}
    (one,) = built.features(rows)
    given = answer([(label, box) for label, box in zip(one["labels"], one["boxes"], strict=True)], softmax=True)
    predictions = built.task.decode(given, [one], built.problem)
    assert predictions[0]["objects"][0]["box"] == pytest.approx([5, 7, 20, 10], abs=0.01)
    scores = built.task.score(predictions, built.task.references(rows, built.problem), built.problem)
    assert scores["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_trains_adapter_and_head_also_on_images_without_objects(kind: str, tmp_path: Path) -> None:
    built = Adapted(tmp_path, kind, TASK.name, ATTENTION)
    assert built.head
    built.model.train()
    pictures = built.rows["image"]
    some = built.batch({"image": pictures[:2], "objects": [built.rows["objects"][0], NOTHING]})
    built.loss(some).backward()
    assert built.without_gradient() == []
    none = built.batch({"image": pictures[:2], "objects": [NOTHING] * 2})
    loss = built.loss(none)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert float(loss.detach()) > 0


def test_metrics_look_at_boxes_of_any_score_and_predictions_from_the_threshold_on(tmp_path: Path) -> None:
    built = Adapted(tmp_path, "yolos", TASK.name, ATTENTION)
    built.model.eval()
    batch, features = built.batch(), built.features()
    counts = {}
    for given in (batch, {"pixel_values": batch["pixel_values"]}):
        with torch.no_grad():
            found = built.task.answer(built.model, given, built.problem, outputs=None)
        for threshold in (0.0, 1.0):
            problem = replace(built.problem, settings={**built.problem.settings, "threshold": threshold})
            parts = built.task.decode({name: one.numpy() for name, one in found.items()}, features, problem)
            counts["labels" in given, threshold] = sum(len(part["objects"]) for part in parts)
    queries = 8 * len(features)
    assert counts == {(True, 0.0): queries, (True, 1.0): queries, (False, 0.0): queries, (False, 1.0): 0}


def test_the_threshold_is_chosen_on_validation_unless_the_recipe_gives_one() -> None:
    found = {"objects": [{"label": "apple", "score": 0.3, "box": [0, 0, 9, 9]}]}
    true = {"boxes": [[0.0, 0.0, 9.0, 9.0]], "labels": ["apple"]}
    assert TASK.tune([found], [true], PROBLEM) == {"threshold": pytest.approx(0.15)}
    assert TASK.tune([{"objects": []}], [true], PROBLEM) == {}
    assert TASK.tune([found], [true], replace(PROBLEM, settings={"threshold": 0.7})) == {}


def test_the_canvas_is_one_for_all_images_whatever_the_processor_says() -> None:
    flexible = {"shortest_edge": 800, "longest_edge": 1333, "height": None}
    assert detection_settings({}, processor_size=flexible)["size"] == {"max_height": 800, "max_width": 800}
    assert detection_settings({"size": 512}, processor_size=flexible)["size"] == {"max_height": 512, "max_width": 512}
    fixed = {"height": 640, "width": 640}
    assert detection_settings({}, processor_size=fixed)["size"] == fixed
    with pytest.raises(InputError, match=r"^processor\.size = \{'shortest_edge': 480\}: expected \{max_height: 800"):
        detection_settings({"size": {"shortest_edge": 480}}, processor_size=flexible)
    with pytest.raises(InputError, match=r"^processor\.threshold = 1\.5: expected a score from 0 to 1"):
        detection_settings({"threshold": 1.5}, processor_size=flexible)


def test_bad_rows_are_named_with_column_and_reason() -> None:
    image = picture([])
    outside = {"bbox": [[40.0, 0.0, 30.0, 5.0]], "category": ["pear"]}
    fault = TASK.fault({"image": image, "objects": outside}, labels=LABELS)
    assert str(fault).startswith("objects: box 1 (pear) = [40.0, 0.0, 30.0, 5.0] reaches 22.0 pixels outside")
    assert str(TASK.fault({"image": {"path": None, "bytes": b"x"}}, labels=())).startswith("image: ")
    assert TASK.fault({"image": image, "objects": NOTHING}, labels=LABELS) is None


def test_training_crops_and_flips_and_evaluation_does_not(tmp_path: Path) -> None:
    built = Adapted(tmp_path, "yolos", TASK.name, ATTENTION)
    built.problem = replace(built.problem, augmentation={"crop": [0.5, 0.8], "horizontal_flip": 1.0}, seed=3)
    plain, varied = built.features()[3], built.features(training=True)[3]
    again = built.features(training=True)[3]
    assert varied["boxes"] != plain["boxes"]
    assert varied["boxes"] == again["boxes"]
    assert len(varied["labels"]) == len(varied["boxes"]) >= 1


def test_a_drawn_picture_shows_each_box_in_the_colour_of_its_label() -> None:
    row = {"image": picture([])}
    box = {"label": "apple", "score": 0.9, "box": [10, 20, 20, 20]}
    drawn = TASK.draw(row, {"objects": [box]})
    assert drawn.size == (48, 48)
    assert drawn.getpixel((10, 35)) == drawn.getpixel((20, 40)) != (255, 255, 255)
    assert drawn.getpixel((20, 30)) == (255, 255, 255)


def test_a_small_set_is_learned_by_heart_saved_and_predicted_alike(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "yolos")
    train_file, other_file = write_coco(tmp_path / "train"), write_coco(tmp_path / "other")
    read = recipe(
        tmp_path, base, TASK.name,
        dataset={"data_files": {"train": str(train_file), "validation": str(other_file)}},
        training_args={"num_train_epochs": 150, "learning_rate": 5e-3},
    )  # fmt: skip
    result = train(read, RunOptions())
    assert result.metrics["validation"]["map_50"] > 0.9
    assert result.learned
    assert result.manifest is not None
    assert result.manifest.labels == LABELS
    assert 0 < result.manifest.settings["threshold"] < 1

    adapter = open_adapter(result.folder, OpenOptions(offline=True))
    (column,) = TASK.inputs()
    found = list(predict(adapter, argument_rows([str(tmp_path / "other")], column), batch_size=4))
    truth = json.loads(other_file.read_text(encoding="utf-8"))
    for number, one in enumerate(found):
        expected = [row["bbox"] for row in truth["annotations"] if row["image_id"] == number]
        assert len(one["objects"]) == len(expected)
        for thing in one["objects"]:  # in pixels of an image of 96 x 48, though the model sees 32 x 16 of 32 x 32
            assert min(np.abs(np.asarray(thing["box"]) - box).max() for box in expected) < 8
    alone = list(predict(adapter, argument_rows([found[3]["image"]], column), batch_size=1))
    assert alone[0]["objects"][0]["score"] == pytest.approx(found[3]["objects"][0]["score"], abs=1e-5)


@pytest.mark.parametrize(("kind", "bits"), [("yolos", 4), ("rt_detr", 16)])
def test_each_kind_of_head_is_saved_and_loaded_also_on_four_bits(kind: str, bits: int, tmp_path: Path) -> None:
    base, file = make_base(tmp_path / "base", kind), write_coco(tmp_path / "train")
    four = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}} if bits == 4 else {}
    read = recipe(
        tmp_path, base, TASK.name, dataset={"data_files": {"train": str(file)}}, training_args={"max_steps": 3}, **four
    )
    result = train(read, RunOptions())
    adapter = open_adapter(result.folder, OpenOptions(offline=True))
    assert adapter.manifest.quantization == ("nf4" if bits == 4 else None)
    assert len(adapter.manifest.head) >= 2


@pytest.mark.parametrize("kind", ["rt_detr", "yolos"])
def test_pictures_without_objects_may_come_first(kind: str, tmp_path: Path) -> None:
    base, file = make_base(tmp_path / "base", kind), write_coco(tmp_path / "train")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 3]
    file.write_text(json.dumps(content), encoding="utf-8")
    read = recipe(
        tmp_path, base, TASK.name,
        dataset={"data_files": {"train": str(file)}},
        training_args={
            "num_train_epochs": 4, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential",
            "learning_rate": 1e-3,
        },
    )  # fmt: skip
    assert train(read, RunOptions()).manifest is not None


def test_a_box_outside_of_its_image_stops_the_run_or_is_left_out_and_counted(tmp_path: Path) -> None:
    base, file = make_base(tmp_path / "base", "yolos"), write_coco(tmp_path / "train")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"][1]["bbox"][0] = 90
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"box 1 \(pear\) = .* outside of its image of 96 x 48"):
        prepare(recipe(tmp_path, base, TASK.name, dataset={"data_files": {"train": str(file)}}))
    kept = prepare(
        recipe(tmp_path, base, TASK.name, dataset={"data_files": {"train": str(file)}, "on_bad_row": "skip"})
    )
    assert len(kept.rows["train"]) == 3


def test_images_of_all_shapes_share_a_batch(tmp_path: Path) -> None:
    built = Adapted(tmp_path, "detr", TASK.name, ATTENTION)
    for number, size in enumerate([(40, 10), (10, 40), (7, 7)]):
        Image.new("RGB", size, "white").save(tmp_path / f"{number}.png")
    pictures = [{"path": str(tmp_path / f"{number}.png"), "bytes": None} for number in range(3)]
    assert built.batch({"image": pictures})["pixel_values"].shape == (3, 3, 32, 32)
