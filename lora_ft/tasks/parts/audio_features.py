"""Sounds -> what a base hears: resampled, varied in training, cut or filled up, and read by its feature extractor."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError
from lora_ft.tasks.parts.audio import extractor_of, hears_s, name_of, read_sound, resampled, sound_length_s
from lora_ft.tasks.parts.audio_augmentation import Augmentation, mask_spectrogram, speed_between, varied
from lora_ft.tasks.parts.problem import Features, Problem, Rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)


def heard(
    value: Mapping[str, Any], problem: Problem, vary: Augmentation, rng: np.random.Generator, *, shortest_s: float = 0.0
) -> tuple[npt.NDArray[np.float32], bool]:
    """A sound as a base hears it, cut where `truncation` says so.

    Args:
        value: The sound.
        problem: Its processor and settings.
        vary: How it is varied, in training.
        rng: Where all that is random comes from.
        shortest_s: A faster speed must leave this much, in seconds.

    Returns:
        The samples at the base's rate, at least `min_length_s` of them, and whether it was cut.

    Raises:
        DataError: It cannot be decoded, or is longer than the base hears at a time.
    """
    import numpy as np

    extractor, settings = extractor_of(problem.processor), problem.settings
    limit_s, truncation = settings["max_length_s"], settings["truncation"]
    read_s = limit_s * max(1.0, vary.speed[1]) + 1 if truncation else None  # of an hour no more than is heard
    samples, rate = read_sound(value, most_s=read_s)
    length_s = len(samples) / rate
    base_limit = hears_s(extractor)
    if not truncation and base_limit is not None and length_s > base_limit:
        raise DataError(
            f"{name_of(value)}: {length_s:.2f} s long, and the base hears {base_limit:g} s at a time. Cut it up"
        )
    longest_s = math.inf if truncation else limit_s
    factor = rng.uniform(*speed_between(vary.speed, length_s=length_s, shortest_s=shortest_s, longest_s=longest_s))
    samples = varied(resampled(samples, rate * factor, to=extractor.sampling_rate), vary, rng)
    most = round(limit_s * extractor.sampling_rate)
    cut = truncation and len(samples) > most
    samples = samples[:most] if cut else samples
    least = math.ceil(settings["min_length_s"] * extractor.sampling_rate)
    return np.pad(samples, (0, max(0, least - len(samples)))), bool(cut)


def encode_sounds(
    rows: Rows, problem: Problem, *, training: bool, shortest_s: tuple[float, ...] | None = None
) -> Features:
    """What a base reads of each sound, with `length` and `truncated`; no padding but where the base wants it.

    Args:
        rows: Rows with the column `audio`.
        problem: Processor, settings, augmentation and seed.
        training: Whether sounds are varied as `augmentation` says.
        shortest_s: For each row how much a faster speed must leave, in seconds.
    """
    import numpy as np
    import transformers

    extractor = extractor_of(problem.processor)
    vary = Augmentation.of(problem.augmentation if training else {})
    name = extractor.model_input_names[0]
    features: Features = {name: [], "truncated": [], "length": []}
    for index, value in enumerate(rows["audio"]):
        rng = np.random.default_rng((problem.seed, index))
        least = shortest_s[index] if shortest_s else 0.0
        samples, cut = heard(value, problem, vary, rng, shortest_s=least)
        inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")[name][0]
        if isinstance(extractor, transformers.ASTFeatureExtractor):  # all others mask within the model
            inputs = mask_spectrogram(inputs, vary, rng)
        features[name].append(inputs.astype(np.float32, copy=False))
        features["truncated"].append(cut)
        features["length"].append(_cost(extractor, len(samples)))
    return features


def sound_costs(rows: Rows, problem: Problem) -> list[int]:
    """What each sound costs, from its header: samples, or frames where a base makes all sounds equally long.

    How many are longer than `max_length_s` and will be cut is logged: features are made too late to count them.
    """
    extractor, limit_s = extractor_of(problem.processor), problem.settings["max_length_s"]
    if problem.settings["truncation"]:
        cut = sum(sound_length_s(value) > limit_s for value in rows["audio"])
        if cut:
            logger.info("%d of %d sounds are longer than %g s and are cut", cut, len(rows["audio"]), limit_s)
    if hears_s(extractor) is not None:
        return [_cost(extractor, 0)] * len(rows["audio"])
    return [sound_samples(value, problem) for value in rows["audio"]]


def sound_samples(value: Mapping[str, Any], problem: Problem) -> int:
    """How many samples a base hears of a sound, from its header."""
    seconds, settings = sound_length_s(value), problem.settings
    seconds = min(seconds, settings["max_length_s"]) if settings["truncation"] else seconds
    rate = int(extractor_of(problem.processor).sampling_rate)
    return round(max(seconds, float(settings["min_length_s"])) * rate)


def _cost(extractor: Any, samples: int) -> int:
    import transformers

    if isinstance(extractor, transformers.WhisperFeatureExtractor):
        return int(extractor.nb_max_frames)
    return int(extractor.max_length) if isinstance(extractor, transformers.ASTFeatureExtractor) else samples
