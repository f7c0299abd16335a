"""Batches of images: one size, and images mixed with labels in the same shares."""

from __future__ import annotations

import pytest
import torch

from lora_ft.errors import InputError
from lora_ft.tasks.parts.image_augmentation import Augmentation
from lora_ft.tasks.parts.image_batches import mix, pad_boxes, stack_images

CLASSES = 3


def one_colour_each() -> dict[str, torch.Tensor]:
    """Image i is full of the number i, and so is its label."""
    pixels = torch.arange(CLASSES).float()[:, None, None, None].expand(CLASSES, 3, 16, 16).clone()
    return {"pixel_values": pixels, "labels": torch.arange(CLASSES)}


def expected_share(pixels: torch.Tensor, row: int) -> torch.Tensor:
    """How much of each class is in an image, counted pixel by pixel."""
    return torch.stack([(pixels[row, 0] == label).float().mean() for label in range(CLASSES)])


def test_images_of_different_sizes_are_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"^processor\.size: .*8 x 8, 8 x 9 pixels.*size: \{height: 224, width: 224\}"):
        stack_images([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)])


def test_mixup_blends_images_and_labels_in_the_same_share() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        mixed = mix(one_colour_each(), Augmentation(mixup_alpha=1.0), classes=CLASSES)
        assert mixed["labels"].tolist() == [0, 1, 2]
        assert torch.allclose(mixed["mixed_labels"].sum(1), torch.ones(CLASSES))
        numbers = (mixed["mixed_labels"] * torch.arange(CLASSES)).sum(1)  # the blend of labels is the blend of pixels
        assert torch.allclose(mixed["pixel_values"][:, 0, 0, 0], numbers, atol=1e-5)


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels() -> None:
    torch.manual_seed(0)
    changed = 0
    for _ in range(20):
        mixed = mix(one_colour_each(), Augmentation(cutmix_alpha=1.0), classes=CLASSES)
        for row in range(CLASSES):
            assert torch.allclose(mixed["mixed_labels"][row], expected_share(mixed["pixel_values"], row), atol=1e-5)
            changed += int(mixed["mixed_labels"][row].max() < 1)
    assert changed > 5


def test_several_labels_a_row_are_mixed_in_place() -> None:
    torch.manual_seed(0)
    batch = {"pixel_values": one_colour_each()["pixel_values"], "labels": torch.eye(CLASSES)}
    mixed = mix(batch, Augmentation(mixup_alpha=1.0), classes=CLASSES)
    assert "mixed_labels" not in mixed
    assert torch.allclose(mixed["labels"].sum(1), torch.ones(CLASSES))


def test_mixing_follows_the_global_seed_and_leaves_the_given_batch_alone() -> None:
    batch, both = one_colour_each(), Augmentation(mixup_alpha=0.4, cutmix_alpha=0.4)
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(mix(batch, both, classes=CLASSES)["pixel_values"])
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    assert torch.equal(batch["pixel_values"], one_colour_each()["pixel_values"])


def test_objects_are_padded_with_masked_labels() -> None:
    padded = pad_boxes([{"labels": [1, 0], "boxes": [[0.5] * 4] * 2}, {"labels": [], "boxes": []}])
    assert padded["labels"].tolist() == [[1, 0], [-100, -100]]
    assert padded["boxes"].shape == (2, 2, 4)
