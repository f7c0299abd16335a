"""Adapter folder -> tensors laid out for a pool: one contiguous buffer for LoRA, a module of its own for each head."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.compress import float_tensors
from lora_ft.adapters.convolutions import CONVOLUTIONS
from lora_ft.adapters.tensors import read_header
from lora_ft.adapters.verify import CONFIG, weights_file
from lora_ft.errors import AdapterError, AdapterRefused

PREFIX = "base_model.model."
EMBEDDING = ".lora_embedding_A"
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
UNDERSTOOD = frozenset(
    [
        "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout",
        "init_lora_weights", "inference_mode", "peft_type", "peft_version", "task_type", "auto_mapping", "revision",
        "base_model_name_or_path", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core",
        "runtime_config", "qalora_group_size",
    ]
)  # fmt: skip
"""Keys of LoraConfig that a pool computes with, or that change nothing once an adapter is trained (peft 0.21)."""


@dataclass(frozen=True)
class Part:
    """Where the matrices of one adapted module lie in the buffer.

    Attributes:
        module: Full name of the module in the base.
        a: Shape of A, `(rank, in)`, of a convolution `(rank, in, *kernel)`.
        b: Shape of B times scaling, `(rank, out)`; of a convolution `(out, rank / groups, 1, ...)`.
        scaled: Whether `(out,)` factors of DoRA follow.
        start: First element in the buffer.
    """

    module: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    scaled: bool
    start: int

    @property
    def width(self) -> int:
        """Outputs of the module."""
        return self.b[1] if len(self.a) == 2 else self.b[0]

    def views(self, stack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A, B and factors of all adapters of a stack `(adapters, elements)`, without a copy."""
        count, middle = len(stack), self.start + math.prod(self.a)
        end = middle + math.prod(self.b)
        a = stack[:, self.start : middle].view(count, *self.a)
        b = stack[:, middle:end].view(count, *self.b)
        return a, b, stack[:, end : end + self.width] if self.scaled else None


Layout = tuple[Part, ...]
"""Adapters of one layout can be stacked."""


@dataclass(frozen=True, eq=False)
class PoolTensors:
    """The tensors of one adapter, on the device of the base.

    Attributes:
        layout: What lies where in `flat`.
        parts: The same by module.
        flat: All LoRA matrices, `(elements,)`.
        heads: Full name of a module of the base -> the trained module that takes its place.
        bytes: What all of it takes.
    """

    layout: Layout
    parts: Mapping[str, Part]
    flat: torch.Tensor
    heads: Mapping[str, nn.Module]
    bytes: int


def read_tensors(folder: Path, model: nn.Module, *, untouched: nn.Module) -> PoolTensors:
    """Reads a verified adapter folder for a pool; every tensor of the file has its place, or it is refused.

    The file is mapped and copied once: a folder that changes afterwards cannot change answers, or end the process.

    Args:
        folder: A verified adapter folder.
        model: The base.
        untouched: The same without the pool's hooks: heads are copies of its modules.

    Returns:
        The tensors, with the scaling in B, and for DoRA the magnitude over the norm in B and the factors.

    Raises:
        AdapterError: It is no LoRA adapter, or one of a kind that cannot be pooled.
        AdapterRefused: It does not fit the base, or holds numbers that are not finite.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    refuse_unpooled(config, where=folder)
    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    file = weights_file(folder)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in sorted(float_tensors(folder).items())}
    if any(name.endswith(EMBEDDING) for name in tensors):
        raise AdapterError(f"{folder}: has LoRA on an embedding, which a pool cannot mix. Open it alone.")
    names = [name.removesuffix(A) for name in tensors if name.endswith(A)]
    parts = list(_parts(names, tensors, modules, where=file))
    flat = torch.empty(parts[-1].start + _elements(parts[-1]) if parts else 0)
    with torch.no_grad():
        for part in parts:
            _fill(part, flat, tensors, modules[part.module], scaling=_scaling(part, config))
    heads = _heads(tensors, config.get("modules_to_save") or (), dict(untouched.named_modules()), where=file)
    used = {name + end for name in names for end in (A, B, MAGNITUDE)}
    used |= {f"{name}.{inner}" for name, head in heads.items() for inner in head.state_dict()}
    if strangers := sorted(set(tensors) - used):
        raise AdapterRefused(
            f"{file}: {len(strangers)} tensors have no place on {type(model).__name__} (first: {strangers[0]}). "
            "Give the base it was trained on."
        )
    for name, tensor in (
        ("LoRA", flat),
        *((key, value) for head in heads.values() for key, value in head.state_dict().items()),
    ):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterRefused(f"{file}: {name} holds numbers that are not finite. Copy the folder again.")
    heads = {name: head.to(device).eval() for name, head in heads.items()}
    flat = flat.to(device)
    size = flat.nbytes + sum(value.nbytes for head in heads.values() for value in head.state_dict().values())
    return PoolTensors(
        layout=tuple(parts), parts={part.module: part for part in parts}, flat=flat, heads=heads, bytes=size
    )


def expected_bytes(folder: Path) -> int:
    """What an adapter will take in memory, from the header of its file: everything in 32 bits."""
    tensors, _ = read_header(weights_file(folder))
    return 4 * sum(math.prod(one.shape) for one in tensors.values())


def refuse_unpooled(config: Mapping[str, Any], *, where: Path) -> None:
    """Refuses what a pool cannot compute exactly.

    Args:
        config: Content of `adapter_config.json`.
        where: The folder, for messages.

    Raises:
        AdapterError: Another method than LoRA, or a kind of LoRA that adds more than A, B and a magnitude.
    """
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{where}: is a {config.get('peft_type')} adapter; a pool holds LoRA, rsLoRA and DoRA. Open it alone."
        )
    odd = [key for key, value in config.items() if key not in UNDERSTOOD and value not in (None, False, {}, [], "none")]
    if odd:
        raise AdapterError(
            f"{where}: {', '.join(f'{key} = {config[key]!r}' for key in odd)}: a pool cannot mix such an adapter with "
            "others. Open it alone."
        )


def _parts(
    names: Iterable[str], tensors: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module], *, where: Path
) -> Iterator[Part]:
    """The adapted modules in order, each checked against the base."""
    start = 0
    for name in names:
        module = modules.get(name)
        a, b = tensors[name + A], tensors.get(name + B)
        expected = _features(module)
        if module is None or b is None or expected is None or (a.shape[1], b.shape[0]) != expected:
            raise AdapterRefused(
                f"{where}: {name}: LoRA of shapes {list(a.shape)} and {None if b is None else list(b.shape)} does not "
                f"fit {type(module).__name__} {expected or ''}. Give the base it was trained on."
            )
        conv = isinstance(module, CONVOLUTIONS)
        part = Part(
            module=name,
            a=tuple(a.shape),
            b=tuple(b.shape) if conv else (b.shape[1], b.shape[0]),
            scaled=name + MAGNITUDE in tensors,
            start=start,
        )
        start += _elements(part)
        yield part


def _elements(part: Part) -> int:
    return math.prod(part.a) + math.prod(part.b) + (part.width if part.scaled else 0)


def _features(module: nn.Module | None) -> tuple[int, int] | None:
    """Inputs and outputs of a module that a pool can adapt."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    return None


def _scaling(part: Part, config: Mapping[str, Any]) -> float:
    """As peft scales a module: its own alpha over its own rank, or over the root of it."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), part.module), config["lora_alpha"])
    rank = part.a[0]
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _fill(
    part: Part, flat: torch.Tensor, tensors: Mapping[str, torch.Tensor], module: nn.Module, *, scaling: float
) -> None:
    """Writes the matrices of a module into the buffer."""
    a, b = tensors[part.module + A].float(), tensors[part.module + B].float() * scaling
    into_a, into_b, into_factors = part.views(flat[None])
    into_a[0].copy_(a)
    if into_factors is not None:
        weight = dequantize_module_weight(module).detach().float().cpu()
        weight = weight.T if isinstance(module, Conv1D) else weight
        adapted = weight.flatten(1) + b.flatten(1) @ a.flatten(1)
        factors = tensors[part.module + MAGNITUDE].float().flatten() / adapted.norm(dim=1)
        into_factors[0].copy_(factors)
        b = b * factors.view(-1, *[1] * (b.ndim - 1))
    into_b[0].copy_(b if b.ndim > 2 else b.T)


def _heads(
    tensors: Mapping[str, torch.Tensor], saved: Collection[str], modules: Mapping[str, nn.Module], *, where: Path
) -> dict[str, nn.Module]:
    """A module for each one that was trained in full, of the shape of its tensors, whatever the base's has."""
    left = [name for name in tensors if not name.endswith((A, B, MAGNITUDE))]
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if name and any(name.endswith(one) for one in saved) and not any(name.startswith(f"{one}.") for one in found):
            own = {key.removeprefix(f"{name}."): tensors[key].clone() for key in left if key.startswith(f"{name}.")}
            if own:
                found[name] = _with_tensors(module, own, where=where, name=name)
    return found


def _with_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: Path, name: str) -> nn.Module:
    """A copy of a module with other tensors; none of the module's own is copied."""
    kept = {id(value): value for value in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, kept)
    missing = sorted(set(module.state_dict()) - set(tensors))
    if missing:
        raise AdapterRefused(f"{where}: the head {name} lacks {missing[0]}. Copy the folder again, or train again.")
    for key, value in tensors.items():
        path, _, last = key.rpartition(".")
        owner = twin.get_submodule(path)
        if last in dict(owner.named_buffers(recurse=False)):
            owner.register_buffer(last, value)
        else:
            owner.register_parameter(last, nn.Parameter(value.float(), requires_grad=False))
    return twin
