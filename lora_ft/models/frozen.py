"""Freezes a base: no gradients, and no running statistics that move while an adapter is trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import transformers
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lora_ft.models.head import is_inside

WAVEFORM_FAMILIES = (
    "wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-conformer", "sew", "sew-d",
)  # fmt: skip
"""Families that ask for gradients of the waveform itself in training mode, frozen or not (transformers 5.23): the
backward pass then goes down through all convolutions for nothing, a quarter of a step and half of its memory."""


def freeze(model: nn.Module, *, head: Collection[str]) -> int:
    """Freezes all parameters of a model, and the running statistics of all norms outside of its head.

    Batch norms in training mode normalise by the batch and write its statistics into the base: the base would not be
    the one on the disk any more, and an adapter would answer otherwise once it is put on that one. The guard is asked
    at every forward pass, so no later `model.train()` takes it off.

    Args:
        model: The base with its head; changed in place.
        head: Full names of the modules of the head, whose statistics are trained and saved with them.

    Returns:
        How many norms are guarded.
    """
    model.requires_grad_(False)
    if isinstance(model, transformers.PreTrainedModel) and model.config.model_type in WAVEFORM_FAMILIES:
        model.freeze_feature_encoder()
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats and not is_inside(name, head)
    ]
    for module in norms:
        module.register_forward_pre_hook(_stay_in_eval)
    return len(norms)


def _stay_in_eval(module: nn.Module, _inputs: Any) -> None:
    """Normalises by the running statistics, whatever mode the model around it is in."""
    module.training = False
