"""Small painted pictures: the example rows of the image tasks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

SIDE = 48
FRUIT = (("red", 10), ("green", 12), ("red", 20), ("green", 22))
COLORS = {"apple": "red", "pear": "green"}
SCENES = (
    (("apple", (4, 4, 40, 24)),),
    (("pear", (16, 8, 28, 36)),),
    (("apple", (2, 2, 20, 44)), ("pear", (24, 8, 22, 36))),
    (("pear", (4, 24, 40, 22)), ("apple", (8, 2, 32, 20))),
)
"""For each picture the objects in it; a box is left, top, width, height in pixels."""


def fruit() -> list[dict[str, Any]]:
    """Four pictures of one fruit each: small red, small green, large red, large green."""
    return [picture([(color, (SIDE // 2 - half, SIDE // 2 - half, 2 * half, 2 * half))]) for color, half in FRUIT]


def scenes() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Four pictures with one or two objects each, and these objects."""
    pictures = [picture([(COLORS[name], box) for name, box in scene]) for scene in SCENES]
    objects = [
        {"bbox": [[float(value) for value in box] for _, box in scene], "category": [name for name, _ in scene]}
        for scene in SCENES
    ]
    return pictures, objects


def picture(shapes: Sequence[tuple[str, tuple[int, int, int, int]]]) -> dict[str, Any]:
    """A white picture with filled rectangles, as PNG.

    Args:
        shapes: Colour, and left, top, width and height in pixels, of each rectangle.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for color, (left, top, wide, high) in shapes:
        pen.rectangle((left, top, left + wide - 1, top + high - 1), fill=color)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return {"path": None, "bytes": stream.getvalue()}
