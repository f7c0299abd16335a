"""Training images varied at random: the `augmentation` section of the image tasks, on Pillow and numpy alone.

torchvision and timm have the same operations, but draw from global random generators, and import only beside the torch
they were built for. Here all that is random comes from one generator: the same seed, epoch and row give the same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.boxes import Region, crop_boxes, flip_boxes
from lora_ft.tasks.parts.ranges import pair_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image


BOTH_TASKS: Mapping[str, FieldTypes] = {
    "horizontal_flip": (float,),
    "vertical_flip": (float,),
    "color_jitter": (float,),
}

CLASSIFICATION_FIELDS: Mapping[str, FieldTypes] = {
    **BOTH_TASKS,
    "random_resized_crop": (list,),
    "rand_augment": (list,),
    "mixup_alpha": (float,),
    "cutmix_alpha": (float,),
}
DETECTION_FIELDS: Mapping[str, FieldTypes] = {**BOTH_TASKS, "crop": (list,)}

GREY = (128, 128, 128)
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
MAX_MAGNITUDE = 30
SOLARIZE_TOP = 255
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
"""The 14 operations of RandAugment."""


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; by default not at all.

    Attributes:
        horizontal_flip: Probability that left and right are swapped.
        vertical_flip: Probability that top and bottom are swapped.
        color_jitter: Brightness, contrast and saturation are each multiplied by a number between 1 - it and 1 + it.
        random_resized_crop: Least and greatest share of the area that a crop keeps, for classification.
        crop: The same for detection.
        rand_augment: Number of operations, and their magnitude from 0 to 30.
        mixup_alpha: Parameter of the beta distribution that two images are blended by; 0: never.
        cutmix_alpha: Likewise for a rectangle of one image pasted into another.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    color_jitter: float = 0.0
    random_resized_crop: tuple[float, float] | None = None
    crop: tuple[float, float] | None = None
    rand_augment: tuple[int, int] | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Augmentation:
        """Reads the `augmentation` section of a recipe.

        Raises:
            InputError: A value is out of its range; the message begins with the key.
        """
        given = {one.name: section[one.name] for one in fields(cls) if section.get(one.name) is not None}
        for key in ("horizontal_flip", "vertical_flip", "color_jitter"):
            if not 0 <= given.get(key, 0) <= 1:
                what = "a strength" if key == "color_jitter" else "a probability"
                raise InputError(f"augmentation.{key} = {given[key]}: expected {what} from 0 to 1")
        for key in ("mixup_alpha", "cutmix_alpha"):
            if given.get(key, 0) < 0:
                raise InputError(f"augmentation.{key} = {given[key]}: expected 0 (never) or more, such as 0.2")
        for key in ("random_resized_crop", "crop"):
            if key in given:
                given[key] = pair_of(given[key])
                low, high = given[key] or (0, 0)
                if not 0 < low <= high <= 1:
                    raise InputError(
                        f"augmentation.{key} = {section[key]}: expected the least and the greatest share of the area"
                        " that is kept, above 0 and at most 1, such as [0.5, 1.0]"
                    )
        if "rand_augment" in given:
            given["rand_augment"] = pair_of(given["rand_augment"])
            count, magnitude = given["rand_augment"] or (0, -1)
            if not (count >= 1 and 0 <= magnitude <= MAX_MAGNITUDE and int(count) == count):
                raise InputError(
                    f"augmentation.rand_augment = {section['rand_augment']}: expected [number of operations, magnitude"
                    f" from 0 to {MAX_MAGNITUDE}], such as [2, 9]"
                )
        return cls(**given)

    @property
    def mixes(self) -> bool:
        """Whether images of one batch are mixed with each other."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


def augment_image(image: Image, augmentation: Augmentation, rng: np.random.Generator) -> Image:
    """One image varied for classification: crop, flips, RandAugment, colours.

    Args:
        image: An RGB picture.
        augmentation: How.
        rng: Where all that is random comes from.

    Returns:
        The varied picture; cropped to a part of its own size, which the image processor then resizes as any image.
    """
    if augmentation.random_resized_crop is not None:
        image = image.crop(random_region(image.size, augmentation.random_resized_crop, rng))
    image = _flipped(image, *_flips(augmentation, rng))
    if augmentation.rand_augment is not None:
        image = rand_augment(image, *augmentation.rand_augment, rng)
    return color_jitter(image, augmentation.color_jitter, rng)


def augment_boxes(
    image: Image, boxes: npt.NDArray[np.float64], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Image, npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """One image with its boxes varied for detection: crop, flips, colours.

    A crop that leaves no box of an image that had some is drawn again, and given up after ten attempts.

    Args:
        image: An RGB picture.
        boxes: Left, top, width, height in pixels, `(boxes, 4)`.
        augmentation: How.
        rng: Where all that is random comes from.

    Returns:
        The varied picture, the boxes that are left, `(kept, 4)`, and their positions in `boxes`, `(kept,)`.
    """
    import numpy as np

    kept = np.arange(len(boxes))
    for _ in range(CROP_ATTEMPTS if augmentation.crop is not None else 0):
        region = random_region(image.size, augmentation.crop or (1.0, 1.0), rng)
        moved, rest = crop_boxes(boxes, region)
        if len(rest) or not len(boxes):
            image, boxes, kept = image.crop(region), moved, rest
            break
    sideways, upside_down = _flips(augmentation, rng)
    boxes = flip_boxes(boxes, image.size, sideways=sideways, upside_down=upside_down)
    return color_jitter(_flipped(image, sideways, upside_down), augmentation.color_jitter, rng), boxes, kept


def random_region(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Region:
    """A random part of an image: its area by `scale`, its aspect ratio from 3:4 to 4:3.

    Args:
        size: Width and height in pixels.
        scale: Least and greatest share of the area.
        rng: Where it comes from.

    Returns:
        Left, top, right, bottom in pixels; the whole image if no such part fits in ten attempts.

    Source:
        Szegedy et al., Going Deeper with Convolutions (2015), section 6; torchvision's RandomResizedCrop.
    """
    import numpy as np

    width, height = size
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = float(np.exp(rng.uniform(*np.log(ASPECT_RATIOS))))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            return left, top, left + wide, top + high
    return 0, 0, width, height


def color_jitter(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Brightness, contrast and saturation, each by a factor between 1 - strength and 1 + strength, in any order."""
    from PIL import ImageEnhance

    if strength == 0:
        return image
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(kinds)):
        image = kinds[index](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def rand_augment(image: Image, count: int, magnitude: int, rng: np.random.Generator) -> Image:
    """RandAugment: `count` operations drawn from 14, all of one magnitude.

    Source:
        Cubuk et al., RandAugment (2019), arXiv:1909.13719, section 3; ranges of torchvision's RandAugment.
    """
    for name in rng.choice(OPERATIONS, size=count):
        image = _operation(str(name), image, magnitude / MAX_MAGNITUDE, 1 if rng.random() < 0.5 else -1)
    return image


def _operation(name: str, image: Image, level: float, sign: int) -> Image:
    """One operation; `level` from 0 to 1 is the magnitude, `sign` the direction where there are two."""
    from PIL import ImageEnhance, ImageOps

    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + 0.9 * level * sign)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * level))
    if name == "solarize":
        return ImageOps.solarize(image, round(SOLARIZE_TOP * (1 - level)) + 1)
    if name == "auto_contrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    return image if name == "identity" else _moved(name, image, level * sign)


def _moved(name: str, image: Image, level: float) -> Image:
    """A rotation, shear or shift; what comes from outside of the image is grey."""
    from PIL import Image as Pillow

    if name == "rotate":
        return image.rotate(30 * level, resample=Pillow.Resampling.BILINEAR, fillcolor=GREY)
    width, height = image.size
    matrices = {
        "shear_x": (1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": (1, 0, 150 / 331 * width * level, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 150 / 331 * height * level),
    }
    return image.transform(
        image.size, Pillow.Transform.AFFINE, matrices[name], resample=Pillow.Resampling.BILINEAR, fillcolor=GREY
    )


def _flips(augmentation: Augmentation, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether this image is flipped sideways, and upside down."""
    return bool(rng.random() < augmentation.horizontal_flip), bool(rng.random() < augmentation.vertical_flip)


def _flipped(image: Image, sideways: bool, upside_down: bool) -> Image:
    from PIL import ImageOps

    image = ImageOps.mirror(image) if sideways else image
    return ImageOps.flip(image) if upside_down else image
