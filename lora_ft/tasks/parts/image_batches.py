"""Images -> a batch, and images of a batch mixed with each other (mixup, cutmix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from lora_ft.errors import InputError
from lora_ft.tasks.parts.image_augmentation import Augmentation

SWITCH = 0.5
"""The probability of cutmix where both are wanted."""


def stack_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images of one size as one tensor.

    Args:
        images: `(3, height, width)` each.

    Returns:
        `(images, 3, height, width)`.

    Raises:
        InputError: They have different sizes.
    """
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{high} x {wide}" for high, wide in sorted(sizes)[:3])
        raise InputError(
            f"processor.size: the image processor of this base keeps each image's shape ({shown} pixels in one batch),"
            " and a batch has one size. Give a fixed one, such as size: {height: 224, width: 224}"
        )
    return torch.stack(list(images))


def mix(batch: Mapping[str, torch.Tensor], augmentation: Augmentation, *, classes: int) -> dict[str, torch.Tensor]:
    """Mixes each image with another one of the batch; by torch's global generator, which the Trainer seeds.

    Args:
        batch: `pixel_values` `(images, 3, height, width)`; `labels`, class numbers `(images,)` or 0/1
            `(images, labels)`.
        augmentation: `mixup_alpha` and `cutmix_alpha`; where both are above 0, each batch gets one of the two.
        classes: How many classes there are.

    Returns:
        The batch with mixed images. Class numbers stay, and `mixed_labels` `(images, classes)` has their shares; 0/1
        labels are mixed in place.

    Source:
        Zhang et al., mixup (2018), arXiv:1710.09412, equation 1; Yun et al., CutMix (2019), arXiv:1905.04899,
        equations 1 and 2.
    """
    pixel_values, labels = batch["pixel_values"], batch["labels"]
    cut = augmentation.cutmix_alpha > 0 and (augmentation.mixup_alpha == 0 or bool(torch.rand(()) < SWITCH))
    alpha = augmentation.cutmix_alpha if cut else augmentation.mixup_alpha
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    others = torch.randperm(len(pixel_values))
    if cut:
        pixel_values, share = _pasted(pixel_values, pixel_values[others], share)
    else:
        pixel_values = share * pixel_values + (1 - share) * pixel_values[others]
    soft = F.one_hot(labels, classes).float() if labels.ndim == 1 else labels
    soft = share * soft + (1 - share) * soft[others]
    return {**batch, "pixel_values": pixel_values, "mixed_labels" if labels.ndim == 1 else "labels": soft}


def _pasted(images: torch.Tensor, others: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """One rectangle, the same in all images, comes from the other image; and the share that stayed."""
    height, width = images.shape[-2:]
    half = (1 - share) ** 0.5 / 2
    row, column = float(torch.rand(())) * height, float(torch.rand(())) * width
    top, bottom = (min(max(round(row + way * half * height), 0), height) for way in (-1, 1))
    left, right = (min(max(round(column + way * half * width), 0), width) for way in (-1, 1))
    pasted = images.clone()
    pasted[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def pad_boxes(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The objects of some images as tensors, padded to the image with the most.

    Args:
        features: `labels`, class numbers, and `boxes`, as `boxes.to_model` makes them, of each image.

    Returns:
        `labels` `(images, objects)`, padded with -100, and `boxes` `(images, objects, 4)`.
    """
    most = max((len(one["labels"]) for one in features), default=0)
    labels = torch.full((len(features), most), -100, dtype=torch.long)
    boxes = torch.zeros(len(features), most, 4)
    for row, one in enumerate(features):
        count = len(one["labels"])
        labels[row, :count] = torch.as_tensor(one["labels"], dtype=torch.long)
        boxes[row, :count] = torch.as_tensor(one["boxes"], dtype=torch.float32).reshape(-1, 4)
    return {"labels": labels, "boxes": boxes}
