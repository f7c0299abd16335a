"""What a model is given of a picture or a sound, for eyes and ears: varied, resized, cut; see `Task.perceived`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.audio import extractor_of
from lora_ft.tasks.parts.audio_augmentation import Augmentation
from lora_ft.tasks.parts.audio_features import heard
from lora_ft.tasks.parts.detection import PENS
from lora_ft.tasks.parts.problem import Problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image


def picture(pixels: Any, problem: Problem) -> Image:
    """The picture that a model sees, its normalisation undone.

    Args:
        pixels: `pixel_values` of a feature, a tensor `(channels, height, width)`.
        problem: Its processor says how pictures are normalised; of one that does not, the range of values is stretched.
    """
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(pixels, dtype=np.float64)
    known = {**problem.processor.to_dict(), **problem.settings}
    of_timm = known.get("data_config") or {}
    mean, std = known.get("image_mean", of_timm.get("mean")), known.get("image_std", of_timm.get("std"))
    if mean is not None and std is not None and known.get("do_normalize", True):
        values = values * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
        values = values * 255 if known.get("do_rescale", True) else values
    else:
        values = (values - values.min()) * 255 / max(float(np.ptp(values)), 1e-9)
    shown = np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Pillow.fromarray(shown if shown.shape[2] == 3 else np.repeat(shown[:, :, :1], 3, axis=2))


def with_boxes(image: Image, boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> Image:
    """A picture with boxes in the colours of their labels.

    Args:
        image: An RGB picture; it stays as it is.
        boxes: Left, top, width and height of each in pixels of the picture.
        labels: The label of each.
    """
    from PIL import ImageDraw

    image = image.copy()
    pen = ImageDraw.Draw(image)
    thickness = max(1, min(image.size) // 150)
    for (left, top, wide, high), label in zip(boxes, labels, strict=True):
        color = PENS[zlib.crc32(label.encode()) % len(PENS)]
        pen.rectangle((left, top, left + wide, top + high), outline=color, width=thickness)
    return image


def sound(
    row: Mapping[str, Any], problem: Problem, *, training: bool, shortest_s: float = 0.0
) -> tuple[npt.NDArray[np.float32], int]:
    """The sound that a model hears, before its feature extractor: samples `(samples,)` and their rate in Hz.

    Args:
        row: A row with a sound.
        problem: Its processor, settings, augmentation and seed: the sound is the one that `encode` makes of the row.
        training: Whether it is varied.
        shortest_s: As in `encode`.
    """
    import numpy as np

    vary = Augmentation.of(problem.augmentation if training else {})
    rng = np.random.default_rng((problem.seed, 0))
    samples, _ = heard(row["audio"], problem, vary, rng, shortest_s=shortest_s)
    return samples, int(extractor_of(problem.processor).sampling_rate)
