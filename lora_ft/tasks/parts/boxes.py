"""Boxes of objects: through flips, crops and the resizing of an image, and back into its pixels.

One value: {"bbox": [[12.0, 8.5, 40.0, 30.0]], "category": ["cat"]}; a box is left, top, width, height in pixels of the
upright image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Region = tuple[int, int, int, int]
"""Left, top, right, bottom of a part of an image, in pixels."""

SLACK_PIXELS = 1.0
"""How far a box may reach over the edge: annotation tools round. It is clipped."""

LEAST_LEFT = 0.3
"""A box of which a crop leaves less than this share of its area is dropped: what is left can hardly be recognised."""

MATCH_OVERLAP = 0.5


def boxes_fault(objects: Mapping[str, Any], *, size: tuple[int, int], labels: Sequence[str] = ()) -> str | None:
    """Why the boxes of an image cannot be used; None if they can.

    Args:
        objects: `bbox` and `category`.
        size: Width and height of the upright image in pixels.
        labels: The known categories; empty: all.
    """
    width, height = size
    for number, (box, category) in enumerate(zip(objects["bbox"], objects["category"], strict=True), start=1):
        left, top, wide, high = box
        shown = f"box {number} ({category}) = {[round(value, 2) for value in box]}"
        if wide <= 0 or high <= 0:
            return f"{shown} has no area. Expected [left, top, width, height] in pixels"
        over = max(-left, -top, left + wide - width, top + high - height)
        if over > SLACK_PIXELS:
            return (
                f"{shown} reaches {over:.1f} pixels outside of its image of {width} x {height}. Expected"
                " [left, top, width, height] in pixels of the upright image"
            )
        if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
            return f"{shown} lies outside of its image of {width} x {height}"
        if labels and category not in labels:
            return f"{shown}: this category does not occur in the training rows"
    return None


def box_table(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Boxes as a table `(boxes, 4)`, also where there are none."""
    import numpy as np

    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def clip_boxes(boxes: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Boxes cut at the edges of their image.

    Args:
        boxes: Left, top, width, height in pixels, `(boxes, 4)`.
        size: Width and height of the image in pixels.

    Returns:
        `(boxes, 4)`; a box that lies outside has no area.
    """
    import numpy as np

    limit = np.asarray(size, dtype=np.float64)
    first = np.clip(boxes[:, :2], 0, limit)
    last = np.clip(boxes[:, :2] + boxes[:, 2:], 0, limit)
    return np.concatenate([first, last - first], axis=1)


def flip_boxes(
    boxes: npt.NDArray[np.float64], size: tuple[int, int], *, sideways: bool, upside_down: bool
) -> npt.NDArray[np.float64]:
    """Boxes after their image was flipped.

    Args:
        boxes: Left, top, width, height in pixels, `(boxes, 4)`.
        size: Width and height of the image in pixels.
        sideways: Whether left and right were swapped.
        upside_down: Whether top and bottom were swapped.
    """
    flipped: npt.NDArray[np.float64] = boxes.copy()
    if sideways:
        flipped[:, 0] = size[0] - boxes[:, 0] - boxes[:, 2]
    if upside_down:
        flipped[:, 1] = size[1] - boxes[:, 1] - boxes[:, 3]
    return flipped


def crop_boxes(
    boxes: npt.NDArray[np.float64], region: Region, *, least_left: float = LEAST_LEFT
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Boxes after their image was cropped.

    Args:
        boxes: Left, top, width, height in pixels, `(boxes, 4)`.
        region: The part of the image that is kept.
        least_left: The least share of its area that a box must keep.

    Returns:
        The boxes that are left, in pixels of the crop, `(kept, 4)`, and their positions in `boxes`, `(kept,)`.
    """
    import numpy as np

    left, top, right, bottom = region
    moved = boxes - np.asarray([left, top, 0, 0])
    cut = clip_boxes(moved, (right - left, bottom - top))
    kept = np.flatnonzero((cut[:, 2] * cut[:, 3] >= least_left * boxes[:, 2] * boxes[:, 3]) & (cut[:, 2:].min(1) > 0))
    return cut[kept], kept


def to_model(boxes: npt.NDArray[np.float64], canvas: Sequence[float]) -> npt.NDArray[np.float64]:
    """Boxes as detection models learn them: centre and size as shares of what the model sees.

    Args:
        boxes: Left, top, width, height in pixels of the image, `(boxes, 4)`.
        canvas: Width and height of what the model sees (the image and what it is padded with), in the same pixels.

    Returns:
        Centre x, centre y, width, height, `(boxes, 4)`.
    """
    import numpy as np

    centres = boxes[:, :2] + boxes[:, 2:] / 2
    table = np.concatenate([centres, boxes[:, 2:]], axis=1)
    shares: npt.NDArray[np.float64] = table / np.asarray([*canvas, *canvas])
    return shares


def from_model(
    boxes: npt.NDArray[np.float64], canvas: Sequence[float], *, size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """What a model answers as boxes in pixels of the image: `to_model` the other way round, cut at the edges.

    Args:
        boxes: Centre x, centre y, width, height as shares of what the model sees, `(boxes, 4)`.
        canvas: Width and height of what the model sees, in pixels of the image.
        size: Width and height of the image in pixels.

    Returns:
        Left, top, width, height in pixels, `(boxes, 4)`.
    """
    import numpy as np

    scaled = boxes * np.asarray([*canvas, *canvas])
    return clip_boxes(np.concatenate([scaled[:, :2] - scaled[:, 2:] / 2, scaled[:, 2:]], axis=1), size)


def overlaps(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of each pair of boxes, `(ours, theirs)`; boxes as left, top, width, height."""
    import numpy as np

    first = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    last = np.minimum((ours[:, :2] + ours[:, 2:])[:, None], (theirs[:, :2] + theirs[:, 2:])[None])
    shared = np.clip(last - first, 0, None).prod(axis=-1)
    union = ours[:, 2:].prod(axis=-1)[:, None] + theirs[:, 2:].prod(axis=-1)[None] - shared
    shares: npt.NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def best_threshold(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> float | None:
    """The score from which on boxes are best believed: where F1 at half overlap is highest over all images.

    Args:
        predictions: For each image `boxes`, `scores` and `labels`, the surest box first.
        references: For each image `boxes` and `labels`.

    Returns:
        A score, halfway to that of the next box; None where no box hits anything.
    """
    import numpy as np

    scores: list[float] = []
    hits: list[bool] = []
    total = 0
    for predicted, true in zip(predictions, references, strict=True):
        total += len(true["boxes"])
        scores += [float(score) for score in predicted["scores"]]
        hits += _hits(predicted, true)
    if not any(hits):
        return None
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked = np.append(np.asarray(scores)[order], 0.0)
    right = np.cumsum(np.asarray(hits, dtype=np.float64)[order])
    f1 = 2 * right / (np.arange(1, len(right) + 1) + total)
    best = int(np.where(ranked[:-1] > ranked[1:], f1, 0.0).argmax())  # a threshold cannot part equal scores
    return float((ranked[best] + ranked[best + 1]) / 2)


def _hits(predicted: Mapping[str, Any], true: Mapping[str, Any]) -> list[bool]:
    """For each predicted box whether it overlaps an object of its label by half that no surer one has found."""
    shared = overlaps(box_table(predicted["boxes"]), box_table(true["boxes"]))
    free = list(range(len(true["boxes"])))
    found = []
    for row, label in enumerate(predicted["labels"]):
        own = [column for column in free if true["labels"][column] == label and shared[row, column] >= MATCH_OVERLAP]
        if own:
            free.remove(max(own, key=lambda column: shared[row, column]))
        found.append(bool(own))
    return found
