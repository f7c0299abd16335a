"""Boxes stay right: through every transformation each still encloses exactly the rectangle that was painted for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lora_ft.tasks.parts.boxes import (
    best_threshold,
    box_table,
    boxes_fault,
    crop_boxes,
    flip_boxes,
    from_model,
    overlaps,
    to_model,
)
from lora_ft.tasks.parts.detection import detection_settings, on_canvas
from lora_ft.tasks.parts.image_augmentation import Augmentation, augment_boxes

COLORS = ("#ff0000", "#00ff00", "#0000ff")
QUICK = settings(max_examples=60, deadline=None)


@st.composite
def scenes(draw: Any) -> tuple[Image.Image, np.ndarray]:
    """A black image with up to three rectangles, one a colour, none over another; and their boxes."""
    width, height = draw(st.integers(24, 60)), draw(st.integers(24, 60))
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    boxes = []
    for number in range(draw(st.integers(1, 3))):
        lane = height // 3
        wide, high = draw(st.integers(2, width)), draw(st.integers(2, lane))
        left = draw(st.integers(0, width - wide))
        top = number * lane + draw(st.integers(0, lane - high))
        pen.rectangle((left, top, left + wide - 1, top + high - 1), fill=COLORS[number])
        boxes.append((left, top, wide, high))
    return image, box_table(boxes)


def painted(image: Image.Image, number: int) -> np.ndarray | None:
    """Where a colour is: the smallest box around its pixels; None if it is nowhere."""
    pixels = np.asarray(image)
    channel = pixels[..., number].astype(int) - np.delete(pixels, number, axis=-1).max(axis=-1)
    rows, columns = np.nonzero(channel > 127)
    if not len(rows):
        return None
    return np.asarray([columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1], dtype=np.float64)


@QUICK
@given(scenes(), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_flips_and_crops_move_boxes_exactly_with_their_rectangles(
    scene: tuple[Image.Image, np.ndarray], sideways: bool, upside_down: bool, seed: int
) -> None:
    image, boxes = scene
    vary = Augmentation(horizontal_flip=float(sideways), vertical_flip=float(upside_down), crop=(0.3, 1.0))
    varied, moved, kept = augment_boxes(image, boxes, vary, np.random.default_rng(seed))
    assert len(moved) == len(kept) >= 1
    for box, number in zip(moved, kept, strict=True):
        assert painted(varied, number) == pytest.approx(box)


@QUICK
@given(scenes(), st.sampled_from([{"max_height": 32, "max_width": 32}, {"height": 40, "width": 24}, {"height": 64}]))
def test_the_way_to_the_model_and_back_keeps_boxes_on_their_rectangles(
    scene: tuple[Image.Image, np.ndarray], size: dict[str, int]
) -> None:
    from transformers import DetrImageProcessorPil

    image, boxes = scene
    size = {"shortest_edge": 32, "longest_edge": 64} if size == {"height": 64} else size
    processor = DetrImageProcessorPil(do_normalize=False, do_convert_annotations=False, resample=0)
    pixel_values, canvas = on_canvas(image, processor, detection_settings({"size": size}, processor_size={}))
    seen = Image.fromarray((pixel_values.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    learned = to_model(boxes, canvas)
    for number, (center_x, center_y, wide, high) in enumerate(learned * [*seen.size, *seen.size]):
        found = painted(seen, number)
        expected = [center_x - wide / 2, center_y - high / 2, center_x + wide / 2, center_y + high / 2]
        if found is not None:  # a thin rectangle may fall between the pixels of a smaller image
            corners = [*found[:2], *(found[:2] + found[2:])]
            assert corners == pytest.approx(expected, abs=1.0)
        else:
            assert min(wide, high) < 1
    assert from_model(learned, canvas, size=image.size) == pytest.approx(boxes, abs=1e-6)


def test_a_crop_drops_what_it_leaves_too_little_of_and_clips_the_rest() -> None:
    boxes = box_table([(0, 0, 10, 10), (8, 0, 10, 10), (30, 30, 5, 5)])
    moved, kept = crop_boxes(boxes, (8, 0, 20, 12))
    assert kept.tolist() == [1]  # 20 % of the first is left, all of the second, nothing of the third
    assert moved.tolist() == [[0, 0, 10, 10]]
    moved, kept = crop_boxes(boxes, (5, 0, 20, 12))
    assert kept.tolist() == [0, 1]
    assert moved[0].tolist() == [0, 0, 5, 10]


def test_an_image_with_objects_never_loses_all_of_them_to_a_crop() -> None:
    image, boxes = Image.new("RGB", (100, 100)), box_table([(0, 0, 4, 4)])
    for seed in range(50):
        _, moved, _ = augment_boxes(image, boxes, Augmentation(crop=(0.1, 0.2)), np.random.default_rng(seed))
        assert len(moved) == 1


def test_an_image_without_objects_goes_through_all_of_it() -> None:
    image, none = Image.new("RGB", (20, 20)), box_table([])
    varied, moved, kept = augment_boxes(
        image, none, Augmentation(horizontal_flip=1.0, crop=(0.2, 0.5)), np.random.default_rng(0)
    )
    assert varied.size != image.size
    assert moved.shape == (0, 4)
    assert kept.shape == (0,)
    assert flip_boxes(none, (20, 20), sideways=True, upside_down=True).shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([3.0, 4.0, 0.0, 5.0], "box 1 (cat) = [3.0, 4.0, 0.0, 5.0] has no area"),
        ([90.0, 10.0, 30.0, 5.0], "box 1 (cat) = [90.0, 10.0, 30.0, 5.0] reaches 20.0 pixels outside of its image"),
        ([-2.5, 10.0, 30.0, 5.0], "reaches 2.5 pixels outside of its image of 100 x 50"),
        ([10.0, 50.0, 5.0, 0.5], "lies outside of its image of 100 x 50"),
    ],
)
def test_a_box_that_cannot_be_is_named_with_its_reason(box: list[float], reason: str) -> None:
    assert reason in str(boxes_fault({"bbox": [box], "category": ["cat"]}, size=(100, 50)))


def test_a_pixel_over_the_edge_is_forgiven_and_an_unknown_category_is_not() -> None:
    objects = {"bbox": [[0.0, 0.0, 100.8, 50.0]], "category": ["cat"]}
    assert boxes_fault(objects, size=(100, 50), labels=("cat",)) is None
    assert "does not occur in the training rows" in str(boxes_fault(objects, size=(100, 50), labels=("dog",)))


def test_overlap_is_intersection_over_union() -> None:
    ours, theirs = box_table([(0, 0, 10, 10)]), box_table([(0, 0, 10, 10), (5, 0, 10, 10), (50, 50, 1, 1)])
    assert overlaps(ours, theirs)[0].tolist() == pytest.approx([1.0, 1 / 3, 0.0])


def test_the_best_threshold_keeps_what_hits_and_drops_what_does_not() -> None:
    true = {"boxes": [[0, 0, 10, 10], [20, 20, 10, 10]], "labels": ["cat", "dog"]}
    found = {
        "boxes": [[0, 0, 10, 10], [20, 20, 10, 10], [1, 1, 9, 9], [20, 20, 10, 10]],
        "scores": [0.9, 0.6, 0.4, 0.3],  # the third finds a cat that was found, the fourth calls a dog a cat
        "labels": ["cat", "dog", "cat", "cat"],
    }
    assert best_threshold([found], [true]) == pytest.approx(0.5)
    alike = {**found, "scores": [0.7, 0.7, 0.7, 0.2]}  # no threshold parts equal scores
    assert best_threshold([alike], [true]) == pytest.approx(0.45)
    assert best_threshold([{"boxes": [], "scores": [], "labels": []}], [true]) is None
