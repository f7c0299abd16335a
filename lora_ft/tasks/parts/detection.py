"""Object detection beside the boxes: one canvas for all images, the loss, the answer as objects, pictures."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.tasks.parts.boxes import from_model
from lora_ft.tasks.parts.images import processed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

DEFAULT_THRESHOLD = 0.5
MOST_OBJECTS = 100

PENS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def detection_settings(given: Mapping[str, Any], *, processor_size: Mapping[str, Any]) -> dict[str, Any]:
    """The `processor` section with a `size` that gives every image the same canvas.

    DETR and YOLOS come with processors that keep each image's shape and pad to the largest of the batch: what the model
    answers then depends on the other images. Here each image is fitted into a square and padded to it.

    Args:
        given: The section as the recipe has it.
        processor_size: The size of the base's image processor.

    Raises:
        InputError: The size, or the threshold, is none.
    """
    threshold = given.get("threshold")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"processor.threshold = {threshold}: expected a score from 0 to 1")
    size = given.get("size", {key: value for key, value in processor_size.items() if value is not None})
    if isinstance(size, int):
        size = {"max_height": size, "max_width": size}
    elif "size" not in given and "shortest_edge" in size:
        size = {"max_height": size["shortest_edge"], "max_width": size["shortest_edge"]}
    settings = {**given, "size": dict(size)}
    canvas_of(settings)
    return settings


def canvas_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of what the model sees.

    Raises:
        InputError: `size` does not say it.
    """
    size = settings["size"]
    for height, width in (("height", "width"), ("max_height", "max_width"), ("longest_edge", "longest_edge")):
        if height in size and width in size:
            return int(size[height]), int(size[width])
    raise InputError(
        f"processor.size = {dict(size)}: expected {{max_height: 800, max_width: 800}} (fitted in and padded),"
        " {height: 640, width: 640} (stretched), {shortest_edge: 480, longest_edge: 800} (padded), or one number"
    )


def on_canvas(image: Image, processor: Any, settings: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[float, float]]:
    """What the model sees of an image: resized, normalised, padded at the right and below.

    Args:
        image: An RGB picture.
        processor: The image processor of the base.
        settings: As `detection_settings` made them.

    Returns:
        `(3, height, width)`, and width and height of that canvas in pixels of the image.
    """
    height, width = canvas_of(settings)
    made = processed(image, processor, settings, do_pad=True, pad_size={"height": height, "width": width})
    mask = made["pixel_mask"]  # (height, width), 1 where the image is
    high, wide = int(mask[:, 0].sum()), int(mask[0].sum())
    return made["pixel_values"], (image.width * width / wide, image.height * height / high)


def targets(batch: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The objects of a batch as DETR-like models take them: one mapping for each image, without padding."""
    real = batch["labels"] != -100  # (images, objects)
    return [
        {"class_labels": labels[one], "boxes": boxes[one]}
        for labels, boxes, one in zip(batch["labels"], batch["boxes"], real, strict=True)
    ]


def decoded(
    logits: np.ndarray,
    boxes: np.ndarray,
    *,
    labels: Sequence[str],
    threshold: float,
    canvas: Sequence[float],
    size: tuple[int, int],
) -> list[dict[str, Any]]:
    """What a model answers to one image as objects, the surest first.

    A head with one class more than there are labels knows "nothing here" and is read by softmax (DETR, YOLOS): one
    label a query. A head without it is read by sigmoid (RT-DETR, Deformable DETR and all trained with a focal loss):
    the best pairs of query and label.

    Args:
        logits: `(queries, classes)`.
        boxes: Centre x, centre y, width, height as shares of the canvas, `(queries, 4)`.
        labels: All labels in order.
        threshold: The least score.
        canvas: Width and height of the canvas in pixels of the image.
        size: Width and height of the image in pixels.
    """
    import numpy as np
    from scipy.special import expit, softmax

    values = np.asarray(logits, dtype=np.float64)
    if values.shape[-1] == len(labels) + 1:
        shares = softmax(values, axis=-1)[:, :-1]
        queries, names = np.arange(len(shares)), shares.argmax(axis=-1)
        scores = shares[queries, names]
    else:
        queries, names = np.divmod(np.arange(values.size), values.shape[-1])
        scores = expit(values).ravel()
    best = np.argsort(-scores, kind="stable")[:MOST_OBJECTS]
    best = best[scores[best] >= threshold]
    pixels = from_model(np.asarray(boxes, dtype=np.float64)[queries[best]], canvas, size=size)
    return [
        {"label": labels[name], "score": float(score), "box": [round(float(value), 2) for value in box]}
        for name, score, box in zip(names[best], scores[best], pixels, strict=True)
    ]


def threshold_of(settings: Mapping[str, Any]) -> float:
    """The least score of a box that is predicted."""
    return float(settings.get("threshold", DEFAULT_THRESHOLD))


def columns_of(prediction: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A prediction as the metric reads it: `boxes`, `scores` and `labels`."""
    objects = prediction["objects"]
    return {
        "boxes": [one["box"] for one in objects],
        "scores": [one["score"] for one in objects],
        "labels": [one["label"] for one in objects],
    }


def drawn(image: Image, objects: Sequence[Mapping[str, Any]]) -> Image:
    """A picture with boxes, names and scores drawn into it; a label has one colour in all pictures.

    Args:
        image: An RGB picture; it stays as it is.
        objects: `label`, `score` and `box`.
    """
    from PIL import ImageDraw, ImageFont

    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    thickness = max(1, min(image.size) // 200)
    font = ImageFont.load_default(size=max(10, min(image.size) // 30))
    for one in reversed(objects):  # the surest on top
        left, top, wide, high = one["box"]
        color = PENS[zlib.crc32(str(one["label"]).encode()) % len(PENS)]
        pen.rectangle((left, top, left + wide, top + high), outline=color, width=thickness)
        text = f"{one['label']} {one['score']:.2f}"
        place = pen.textbbox((left, top), text, font=font, anchor="lb" if top > font.size else "lt")
        pen.rectangle(place, fill=color)
        pen.text((left, top), text, fill="white", font=font, anchor="lb" if top > font.size else "lt")
    return picture
