"""Training images are varied as the recipe says, and the same way each time for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_ft.errors import InputError
from lora_ft.tasks.parts.image_augmentation import (
    OPERATIONS,
    Augmentation,
    _operation,
    augment_image,
    rand_augment,
    random_region,
)

EVERYTHING = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "random_resized_crop": [0.3, 0.9],
    "color_jitter": 0.4,
    "rand_augment": [2, 9],
}


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(20, 200, (height, width, 3), dtype=np.uint8))


def varied(section: dict[str, Any], seed: int, image: Image.Image | None = None) -> Image.Image:
    return augment_image(image or noise(), Augmentation.of(section), np.random.default_rng(seed))


def test_nothing_is_varied_without_a_word() -> None:
    assert varied({}, 0).tobytes() == noise().tobytes()


def test_a_seed_decides_everything_and_another_one_gives_another_image() -> None:
    first, again, other = (varied(EVERYTHING, seed) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("key", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)], ids=("horizontal", "vertical")
)
def test_flips_happen_as_often_as_asked(key: str, axis: int) -> None:
    mirrored = np.flip(np.asarray(noise()), axis)
    assert np.array_equal(np.asarray(varied({key: 1.0}, 0)), mirrored)
    often = sum(np.array_equal(np.asarray(varied({key: 0.25}, seed)), mirrored) for seed in range(200))
    assert 30 < often < 70


def test_a_crop_keeps_its_share_of_the_area_and_a_shape_near_a_square() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_region((400, 300), (0.3, 0.5), rng)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        assert 0.29 <= (right - left) * (bottom - top) / (400 * 300) <= 0.51
        assert 0.74 <= (right - left) / (bottom - top) <= 1.35


def test_an_image_too_narrow_for_any_crop_stays_whole() -> None:
    assert random_region((1_000, 10), (0.9, 1.0), np.random.default_rng(0)) == (0, 0, 1_000, 10)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_of_rand_augment_changes_the_image_at_full_magnitude_and_keeps_its_form(name: str) -> None:
    for sign in (1, -1):
        changed = _operation(name, noise(), 1.0, sign)
        assert changed.size == noise().size
        assert changed.mode == "RGB"
        assert (changed.tobytes() == noise().tobytes()) == (name == "identity")


@pytest.mark.parametrize("name", [one for one in OPERATIONS if one not in ("equalize", "auto_contrast")])
def test_an_operation_at_magnitude_zero_leaves_the_image_alone(name: str) -> None:
    assert _operation(name, noise(), 0.0, 1).tobytes() == noise().tobytes()


def test_rand_augment_draws_from_all_operations() -> None:
    seen = {rand_augment(noise(), 1, 9, np.random.default_rng(seed)).tobytes() for seed in range(150)}
    assert len(seen) > len(OPERATIONS)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"horizontal_flip": 2.0}, r"^augmentation\.horizontal_flip = 2\.0: expected a probability from 0 to 1"),
        ({"color_jitter": -0.1}, r"^augmentation\.color_jitter = -0\.1: expected a strength from 0 to 1"),
        (
            {"random_resized_crop": [0.9, 0.3]},
            r"^augmentation\.random_resized_crop = \[0\.9, 0\.3\]: expected the least",
        ),
        ({"random_resized_crop": [0.5]}, r"^augmentation\.random_resized_crop = \[0\.5\]: expected the least"),
        ({"crop": [0.0, 1.0]}, r"^augmentation\.crop = \[0\.0, 1\.0\]: expected the least"),
        ({"rand_augment": [2, 31]}, r"^augmentation\.rand_augment = \[2, 31\]: expected \[number of operations"),
        ({"rand_augment": ["two", 9]}, r"^augmentation\.rand_augment = \['two', 9\]: expected \[number of operations"),
        ({"mixup_alpha": -1.0}, r"^augmentation\.mixup_alpha = -1\.0: expected 0 \(never\) or more"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation.of(section)
