"""Batches of sounds: padded, and heard by a model so that the answer to one does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.audio import extractor_of
from lora_ft.tasks.parts.problem import Problem

if TYPE_CHECKING:
    import torch

PROBE_VALUES = 256


def pad_sounds(
    features: Sequence[Mapping[str, Any]], problem: Problem, *, least_samples: int = 0
) -> dict[str, torch.Tensor]:
    """Pads what the base reads to the longest row of the batch.

    Args:
        features: As `encode_sounds` made them.
        problem: Its processor.
        least_samples: Waveforms become at least that long.

    Returns:
        Spectrograms, of equal size as they are; waveforms as `input_values` `(rows, samples)` with their own lengths as
        `samples` `(rows,)`.
    """
    import numpy as np
    import torch
    from torch.nn.utils.rnn import pad_sequence

    extractor = extractor_of(problem.processor)
    name = extractor.model_input_names[0]
    if features[0][name].ndim > 1:  # a spectrogram
        return {name: torch.from_numpy(np.stack([row[name] for row in features]))}
    rows = [torch.from_numpy(row[name]) for row in features]
    samples = torch.tensor([max(len(row), least_samples) for row in rows])
    longest = torch.empty(int(samples.max()))
    values = pad_sequence([*rows, longest], batch_first=True, padding_value=extractor.padding_value)[:-1]
    return {name: values, "samples": samples}


def answers_of(model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
    """The outputs of a model for a batch of sounds; those of a row are what they would be if it were alone.

    Args:
        model: An encoder with a head.
        batch: As `pad_sounds` made it.
        problem: Its settings have the base's convolutions.
    """
    inputs = {name: batch[name] for name in ("input_values", "input_features") if name in batch}
    samples = batch.get("samples")
    if samples is None or bool((samples == samples[0]).all()):
        return model(**inputs)
    import torch

    positions = torch.arange(inputs["input_values"].shape[1], device=samples.device)
    mask = (positions < samples[:, None]).long()
    with _norms_of_rows_alone(model, samples, problem):
        return model(**inputs, attention_mask=mask)


@contextmanager
def _norms_of_rows_alone(model: Any, samples: torch.Tensor, problem: Problem) -> Iterator[None]:
    """Lets norms over time count real frames alone.

    wav2vec2-base, HuBERT-base and other bases with a group norm behind the first convolution normalise each channel
    over the whole row. Zeros that pad a row shift all of its answer, and neither an attention mask nor leaving it out
    mends that: trained so, ten digits that are learned by heart in batches of one end at a word error rate of 0.4 in
    padded batches of four (benchmarks/speech.py).

    Args:
        model: The model, adapted or not.
        samples: The real samples of each row, `(rows,)`.
        problem: Its settings have the base's convolutions.
    """
    import torch
    from torch import nn

    frames = (samples - problem.settings["conv_kernel"][0]) // problem.settings["conv_stride"][0] + 1

    def normalised(norm: nn.GroupNorm, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        values = inputs[0].float()  # (rows, channels, frames)
        real = (torch.arange(values.shape[-1], device=values.device) < frames[:, None])[:, None]
        count = frames[:, None, None]
        mean = (values * real).sum(-1, keepdim=True) / count
        spread = ((values - mean).square() * real).sum(-1, keepdim=True) / count
        scale = norm.weight.float()[:, None] * torch.rsqrt(spread + norm.eps)
        found: torch.Tensor = ((values - mean) * scale + norm.bias.float()[:, None]).to(output.dtype)
        return found

    over_time = [one for one in model.modules() if isinstance(one, nn.GroupNorm) and one.num_groups == one.num_channels]
    hooks = [norm.register_forward_hook(normalised) for norm in over_time]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def probe_sample(logits: torch.Tensor) -> torch.Tensor:
    """Some of the values of each row, evenly spread, `(rows, values)`: all of them would be megabytes."""
    flat = logits.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // PROBE_VALUES)]
