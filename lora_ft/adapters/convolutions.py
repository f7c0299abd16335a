"""Which convolutions a PEFT method can adapt, in words why not, and what of them must still show when adapted."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
GEOMETRY = ("kernel_size", "stride", "padding", "dilation")

NOT_1D = ("ADALORA", "BOFT", "HRA", "IA3", "OFT")
NOT_DILATED = ("BOFT", "HRA", "LORA", "OFT")
NOT_GROUPED = ("ADALORA", "BOFT", "HIRA", "HRA")
"""Methods of peft 0.21 that know convolutions, but not these; tried, see tests/adapters/test_convolutions.py."""


def why_not(module: nn.Module, name: str, config: Any) -> str | None:
    """Why peft (0.21) cannot adapt a convolution with a method; None if it can.

    Args:
        module: An `nn.Conv1d` or `nn.Conv2d`.
        name: Its full name; decides its rank where the config has a `rank_pattern`.
        config: The peft config.

    Returns:
        The reason, as a noun phrase in the plural: `depthwise ones, whose 32 groups do not divide r = 8`.
    """
    assert isinstance(module, CONVOLUTIONS)
    method = config.peft_type.value
    if "weight" not in dict(module.named_parameters(recurse=False)):
        return "whose weight is computed (weight norm)"
    if method in NOT_1D and isinstance(module, nn.Conv1d):
        return f"over one dimension, which peft's {method} does not know"
    kind = "depthwise ones" if module.groups == module.in_channels else "grouped ones"
    if module.groups > 1 and method in NOT_GROUPED:
        return f"{kind}, which peft's {method} does not know"
    if method == "LORA" and _rank(name, config) % module.groups:
        return f"{kind}, whose groups do not divide the rank (r = {_rank(name, config)})"
    if method in NOT_DILATED and any(step != 1 for step in module.dilation):
        return f"with dilation, which peft's {method} leaves out of its own branch"
    return None


def show_geometry(model: nn.Module) -> None:
    """Gives peft's wrappers of convolutions the geometry of what they wrap.

    MobileNet pads each image by the stride and kernel size that it asks its convolutions for (`apply_tf_padding`), and
    peft's wrappers (0.21) have neither: the first forward pass would end in an AttributeError.

    Args:
        model: An adapted model; changed in place.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), CONVOLUTIONS):
            for name in GEOMETRY:
                setattr(module, name, vars(module.get_base_layer())[name])


def _rank(name: str, config: Any) -> int:
    """The rank of a LoRA pair on a module."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    return int(rank)
