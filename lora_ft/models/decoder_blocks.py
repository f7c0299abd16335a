"""RMSNorm and SwiGLU of decoders, computed by functions of ours wherever gradients are made.

Classes are known by name, and each module has to say the very same of a batch of the run: what transformers changes in
them one day shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

RMS_NORM, SWIGLU = "rms_norm", "swiglu"
PLAIN, ADDS_ONE = 0.0, 1.0
NORMS = {
    **dict.fromkeys(
        (
            "LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm",
            "Phi3RMSNorm", "GraniteRMSNorm",
        ),
        PLAIN,
    ),
    **dict.fromkeys(("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"), ADDS_ONE),
}  # fmt: skip
"""Class of transformers 5.23 -> what is added to its weight."""
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP", "GraniteMLP")
"""Classes of transformers 5.23 that are `down_proj(act_fn(gate_proj(x)) * up_proj(x))`."""

Way = Callable[[Any, torch.Tensor], torch.Tensor]


def use_decoder_blocks(model: nn.Module, forward: Callable[[], Any], *, kinds: Collection[str]) -> dict[str, int]:
    """Lets our functions compute the blocks of a model that they know, wherever gradients are made.

    Args:
        model: The model, with or without adapters, in evaluation mode.
        forward: Computes the outputs of a batch.
        kinds: `rms_norm`, `swiglu`, or both.

    Returns:
        How many modules of each kind.
    """
    known = {module: kind for module in model.modules() for kind in _kinds(module) if kind in kinds}
    same: dict[nn.Module, bool] = {}

    def compare(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        found = WAYS[known[module]](module, *arguments)
        same[module] = same.get(module, True) and found.dtype == output.dtype and torch.equal(found, output)

    hooks = [module.register_forward_hook(compare) for module in known]
    try:
        with torch.no_grad():
            if hooks:
                forward()
    finally:
        for hook in hooks:
            hook.remove()
    taken = [module for module, equal in same.items() if equal]
    for module in taken:  # as accelerate wraps the forward of a model; no hook can stand in for a forward pass
        module.forward = partial(_with_gradients, module, WAYS[known[module]], module.forward)
    return {kind: sum(known[module] == kind for module in taken) for kind in kinds}


def _kinds(module: nn.Module) -> Iterator[str]:
    """What a module is; nothing that we know, where it learns or has a forward pass of somebody else."""
    name = type(module).__name__
    if not type(module).__module__.startswith("transformers.models.") or "forward" in vars(module):
        return
    if name in NORMS and not any(weight.requires_grad for weight in module.parameters()):
        yield RMS_NORM
    if name in GATED and isinstance(module.act_fn, SiLUActivation | nn.SiLU):
        yield SWIGLU


def _with_gradients(module: nn.Module, way: Way, plain: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """What a module computes: our way where gradients are made, else its own."""
    return way(module, x) if torch.is_grad_enabled() else plain(x)


def _normed(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What an RMSNorm says."""
    from lora_ft.ops.rms_norm import rms_norm

    offset = NORMS[type(module).__name__]
    return rms_norm(x, module.weight, eps=module.variance_epsilon if offset == PLAIN else module.eps, offset=offset)


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What a SwiGLU block says."""
    from lora_ft.ops.swiglu import swiglu

    output: torch.Tensor = module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))
    return output


WAYS: dict[str, Way] = {RMS_NORM: _normed, SWIGLU: _gated}
