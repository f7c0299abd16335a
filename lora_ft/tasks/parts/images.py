"""Images: a file or its bytes -> an upright RGB picture -> the pixels that a base reads.

One value: {"path": "photos/apple_01.jpg", "bytes": None}, or {"path": None, "bytes": b"..."}
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError, InputError
from lora_ft.recipe.schema import FieldTypes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PROCESSOR_FIELDS: Mapping[str, FieldTypes] = {
    "size": (int, dict),
    "crop_size": (int, dict),
    "do_resize": (bool,),
    "do_center_crop": (bool,),
    "do_normalize": (bool,),
    "image_mean": (list,),
    "image_std": (list,),
    "resample": (int,),
}
"""The keys of the `processor` section that the image tasks hand on to the image processor of the base."""

FIXED_SIZE = ("vit", "deit", "vit_msn", "beit", "data2vec-vision")
"""Families whose position embeddings fit one image size alone; YOLOS stretches its own."""

ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
HIGH_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # 16 bits a pixel; Pillow's conversion to RGB would clip them
WHITE = (255, 255, 255, 255)


def open_image(value: Mapping[str, Any]) -> Image:
    """Reads an image: upright (EXIF orientation), RGB, transparent parts on white, the first frame of several.

    Args:
        value: `path` or `bytes`; the bytes win.

    Returns:
        The picture.

    Raises:
        DataError: There is no such file, or it cannot be read whole.
    """
    with _opened(value) as image:
        return _rgb(_upright(image))


def image_size(value: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height in pixels of the upright image, read from its header.

    Args:
        value: `path` or `bytes`.

    Raises:
        DataError: There is no such file, or it is no image.
    """
    with _opened(value) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in SIDEWAYS else (width, height)


def image_fault(value: Mapping[str, Any]) -> str | None:
    """Why an image cannot be used; None if it can.

    It is read whole, as a file that was cut off shows only there; a JPEG at an eighth of its size, which is quick.
    """
    try:
        with _opened(value) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            _refuse_floats(image)
            image.getexif()
    except DataError as error:
        return str(error)
    return None


def image_settings(given: Mapping[str, Any], *, base_config: Mapping[str, Any]) -> dict[str, Any]:
    """The `processor` section of an image task, checked against the base.

    Args:
        given: The section as the recipe has it.
        base_config: The base's config.json.

    Raises:
        InputError: A timm base, whose transforms are fixed, or a size that the base cannot read.
    """
    wishes = [key for key in PROCESSOR_FIELDS if key in given]
    if wishes and "pretrained_cfg" in base_config:
        raise InputError(
            f"processor.{wishes[0]} = {given[wishes[0]]}: the image processor of a timm base is fixed by the"
            " pretrained_cfg of its config.json. Leave it out, or take a base with a transformers image processor"
        )
    key = "crop_size" if "crop_size" in given else "size"
    asked, reads = _square(given.get(key)), _square(base_config.get("image_size"))
    family = base_config.get("model_type")
    if asked and reads and asked != reads and family in FIXED_SIZE:
        raise InputError(
            f"processor.{key} = {given[key]}: this {family} reads images of"
            f" {reads[0]} x {reads[1]} pixels. Leave it out"
        )
    return dict(given)


def processed(image: Image, processor: Any, settings: Mapping[str, Any], **more: Any) -> dict[str, torch.Tensor]:
    """What the base reads of an image, by its own processor: resized, cropped, normalised.

    Args:
        image: An RGB picture.
        processor: The image processor of the base.
        settings: The `processor` section; keys of `PROCESSOR_FIELDS` are handed on.
        **more: Further arguments of the image processor; they win.

    Returns:
        `pixel_values`, `(3, height, width)` in float32, and what else the processor makes of one image.
    """
    options = {name: settings[name] for name in PROCESSOR_FIELDS if name in settings}
    made = processor([image], return_tensors="pt", **{**options, **more})
    return {name: values[0].float() if values.is_floating_point() else values[0] for name, values in made.items()}


@contextmanager
def _opened(value: Mapping[str, Any]) -> Iterator[Image]:
    """The image as Pillow opens it; whatever goes wrong with its content is one kind of error."""
    import zlib

    from PIL import Image as Pillow

    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise DataError("the image has neither a path nor bytes. Expected one of the two")
    name = path or f"an image of {len(data or b''):,} bytes"
    try:
        with Pillow.open(path if data is None else io.BytesIO(data)) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file") from error
    except Pillow.UnidentifiedImageError as error:
        raise DataError(f"{name}: it is no image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{name}: the image cannot be read: {error}") from error
    except Pillow.DecompressionBombError as error:
        raise DataError(f"{name}: the image is too large: {error}") from error


def _upright(image: Image) -> Image:
    """The image as a viewer shows it; a camera held sideways says so in EXIF alone."""
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image)


def _rgb(image: Image) -> Image:
    """Eight bits for each of red, green and blue."""
    from PIL import Image as Pillow

    if image.mode in HIGH_BIT_MODES:
        import numpy as np

        return Pillow.fromarray((np.asarray(image).astype(np.int64).clip(0, 65_535) >> 8).astype(np.uint8)).convert(
            "RGB"
        )
    _refuse_floats(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Pillow.new("RGBA", image.size, WHITE)
        paper.alpha_composite(image)
        image = paper
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _refuse_floats(image: Image) -> None:
    if image.mode == "F":
        raise ValueError("its pixels are floats without a known range; expected 8 or 16 bits a channel")


def _square(size: Any) -> tuple[int, int] | None:
    """Height and width of a size where it says both: 224, [224, 224], {"height": 224, "width": 224}."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None
