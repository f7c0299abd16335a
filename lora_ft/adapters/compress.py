"""Adapters in fewer bits: bf16, or int8 with one scale for each component of the rank; and back to floating point."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lora_ft.adapters.export import INT8
from lora_ft.adapters.tensors import SCALE
from lora_ft.adapters.verify import CONFIG, WEIGHTS, WEIGHTS_INT8, weights_file

LEVELS = 127
"""Symmetric: -127 to 127, so that zero stays zero."""


def compress(tensors: Mapping[str, torch.Tensor], *, dtype: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter in a smaller type.

    Args:
        tensors: Of the adapter file, in floating point.
        dtype: `bf16`: everything. `int8`: the matrices of LoRA in int8, with their scales under `NAME.scale`; the head,
            and all that is no matrix of LoRA, in bf16: rounded to 8 bits the head moves every logit at once.

    Returns:
        Tensors by name, on the CPU.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if dtype == INT8 and _is_matrix(name, tensor):
            stored[name], stored[name + SCALE] = to_int8(tensor)
        else:
            stored[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def to_int8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a matrix to 8 bits, symmetrically around zero.

    A has a scale for each row, B for each column: those are the components of the rank, r scales for each matrix.

    Args:
        tensor: `(rank, in)` or `(out, rank)`; of a convolution with more dimensions.

    Returns:
        The same shape in int8, and the scales `(rank,)` in float32.
    """
    matrix = tensor.float().flatten(1)
    if not _by_rows(matrix.shape):
        matrix = matrix.T
    largest = matrix.abs().amax(1)  # (rank,)
    scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest))
    rounded = (matrix / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    rounded = rounded if _by_rows(tensor.flatten(1).shape) else rounded.T
    return rounded.reshape(tensor.shape).contiguous(), scale


def from_int8(rounded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The matrix that `to_int8` rounded, in float32.

    Args:
        rounded: int8.
        scale: `(rank,)`.
    """
    matrix = rounded.float().flatten(1)
    matrix = matrix * (scale[:, None] if _by_rows(matrix.shape) else scale[None, :])
    return matrix.reshape(rounded.shape).contiguous()


def float_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter in floating point, however they are stored.

    Args:
        folder: A verified adapter folder.

    Returns:
        Tensors by peft's names, as plain peft would read them of an ordinary folder.
    """
    return expand(load_file(weights_file(folder)))


def expand(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turns what `compress` made back into floating point; tensors that it left alone stay as they are.

    Args:
        stored: As in the file.
    """
    packed = {name for name, tensor in stored.items() if tensor.dtype == torch.int8 and name + SCALE in stored}
    scales = {name + SCALE for name in packed}
    return {
        name: from_int8(tensor, stored[name + SCALE]) if name in packed else tensor
        for name, tensor in stored.items()
        if name not in scales
    }


@contextmanager
def readable_folder(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Iterator[Path]:
    """A folder that peft can read: the adapter's own, or for one in int8 a copy in floating point for a moment.

    Args:
        folder: A verified adapter folder.
        tensors: What `float_tensors` gave for it.
    """
    if weights_file(folder).name != WEIGHTS_INT8:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lora_ft-") as name:
        copy = Path(name)
        shutil.copyfile(folder / CONFIG, copy / CONFIG)
        save_file(dict(tensors), copy / WEIGHTS, metadata={"format": "pt"})
        yield copy


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of LoRA's two matrices, of a linear layer, an embedding or a convolution."""
    parts = (".lora_A.", ".lora_B.", ".lora_embedding_")
    return tensor.dim() > 1 and tensor.is_floating_point() and any(part in name for part in parts)


def _by_rows(shape: Sequence[int]) -> bool:
    """Whether the rank is the first of two sizes: it is the smaller one."""
    return shape[0] <= shape[1]
