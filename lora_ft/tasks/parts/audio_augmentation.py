"""Training sounds varied at random: the `augmentation` section of the audio tasks.

Speed, noise and gain change the waveform here; SpecAugment masks are drawn inside wav2vec2, HuBERT and Whisper by their
own config fields, and here for AST, which has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.ranges import pair_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AUGMENTATION_FIELDS: Mapping[str, FieldTypes] = {
    "speed": (list,),
    "noise_snr_db": (list,),
    "gain_db": (list,),
    "mask_time_prob": (float,),
    "mask_time_length": (int,),
    "mask_feature_prob": (float,),
    "mask_feature_length": (int,),
}
RANGES: Mapping[str, tuple[str, tuple[float, float]]] = {
    "speed": ("the least and the greatest factor of the speed, from 0.5 to 2, such as [0.9, 1.1]", (0.5, 2.0)),
    "noise_snr_db": ("the least and the greatest decibels of the sound over the noise, such as [10, 30]", (-20, 100)),
    "gain_db": ("the least and the greatest decibels, from -60 to 60, such as [-6, 6]", (-60, 60)),
}
"""Of each range what it is, and the values it may have."""


@dataclass(frozen=True)
class Augmentation:
    """How training sounds are varied; by default not at all. Every range is drawn from evenly, for each row anew.

    Attributes:
        speed: Least and greatest factor of the speed, by resampling: the pitch changes with it.
        noise_snr_db: Least and greatest decibels of the sound over white noise that is added.
        gain_db: Least and greatest decibels that the sound is made louder by.
        mask_time_prob: Share of the frames that SpecAugment masks, about: spans may overlap.
        mask_time_length: Frames of a span.
        mask_feature_prob: Share of the features (mel bands; hidden units of wav2vec2) that it masks.
        mask_feature_length: Features of a span.
    """

    speed: tuple[float, float] = (1.0, 1.0)
    noise_snr_db: tuple[float, float] | None = None
    gain_db: tuple[float, float] | None = None
    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Augmentation:
        """Reads the `augmentation` section of a recipe.

        Raises:
            InputError: A value is out of its range; the message begins with the key.
        """
        given = {one.name: section[one.name] for one in fields(cls) if section.get(one.name) is not None}
        for key, (what, (least, most)) in RANGES.items():
            if key in given:
                pair = pair_of(given[key])
                if pair is None or not least <= pair[0] <= pair[1] <= most:
                    raise InputError(f"augmentation.{key} = {given[key]}: expected {what}")
                given[key] = pair
        for key in ("mask_time_prob", "mask_feature_prob"):
            if not 0 <= given.get(key, 0.0) < 1:
                raise InputError(f"augmentation.{key} = {given[key]}: expected a share from 0 to 1, such as 0.05")
        for key in ("mask_time_length", "mask_feature_length"):
            if given.get(key, 1) < 1:
                raise InputError(f"augmentation.{key} = {given[key]}: expected 1 or more")
        return cls(**given)

    @property
    def masks(self) -> bool:
        """Whether SpecAugment masks anything."""
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0

    def config(self) -> dict[str, Any]:
        """The fields of a speech base's config; its own masks are off unless the recipe asks for some.

        Without masks its probabilities stay as they are, as wav2vec2 has its mask embedding only where one is not 0.
        """
        if not self.masks:
            return {"apply_spec_augment": False}
        names = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")
        return {"apply_spec_augment": True, **{name: vars(self)[name] for name in names}}


def varied(
    samples: npt.NDArray[np.float32], augmentation: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A sound with noise and gain; nothing is clipped.

    Args:
        samples: `(samples,)`.
        augmentation: How.
        rng: Where all that is random comes from.

    Returns:
        As many samples.
    """
    import numpy as np

    if augmentation.noise_snr_db is not None:
        loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        level = loudness * 10 ** (-rng.uniform(*augmentation.noise_snr_db) / 20)
        samples = samples + level * rng.standard_normal(len(samples), dtype=np.float32)
    if augmentation.gain_db is not None:
        samples = samples * 10 ** (rng.uniform(*augmentation.gain_db) / 20)
    return samples.astype(np.float32, copy=False)


def speed_between(
    limits: tuple[float, float], *, length_s: float, shortest_s: float, longest_s: float
) -> tuple[float, float]:
    """The factors of speed that keep a sound within its limits of length; 1 alone if there are none.

    Args:
        limits: What the recipe allows.
        length_s: How long the sound is, in seconds.
        shortest_s: How long it must stay.
        longest_s: How long it may become.
    """
    slowest = max(limits[0], length_s / longest_s)
    fastest = min(limits[1], length_s / shortest_s) if shortest_s > 0 else limits[1]
    return (slowest, fastest) if slowest <= fastest else (1.0, 1.0)


def mask_spectrogram(
    spectrogram: npt.NDArray[np.float32], augmentation: Augmentation, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """SpecAugment: spans of frames and of bands set to 0, the mean of a normalised spectrogram.

    Args:
        spectrogram: `(frames, bands)`.
        augmentation: How much.
        rng: Where the spans come from.

    Source:
        Park et al., SpecAugment (2019), arXiv:1904.08779, section 2, without time warping; the number of spans as
        transformers draws it.
    """
    import numpy as np

    masked = spectrogram
    plans = (
        (0, augmentation.mask_time_prob, augmentation.mask_time_length),
        (1, augmentation.mask_feature_prob, augmentation.mask_feature_length),
    )
    for axis, share, span in plans:
        size = spectrogram.shape[axis]
        count = math.floor(share * size / span + rng.random()) if share > 0 and span <= size else 0
        for start in rng.integers(0, size - span + 1, size=count) if count else ():
            masked = masked.copy() if masked is spectrogram else masked
            np.moveaxis(masked, axis, 0)[start : start + span] = 0.0
    return masked
