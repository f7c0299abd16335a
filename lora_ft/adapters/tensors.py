"""Reads names, shapes and metadata of an adapter's safetensors file from its header, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from lora_ft.adapters.manifest import TensorInfo
from lora_ft.errors import AdapterRefused

LABELS_KEY = "lora_ft_labels"
"""Key in the metadata: the labels lie in the same file as the head whose rows they name."""

SCALE = ".scale"
"""End of the name of the scales of a tensor in int8, see `lora_ft.adapters.compress`."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Reads the header of a safetensors file and checks it against the file's length.

    Args:
        file: A `.safetensors` file: 8 bytes little-endian length, a JSON header, the data.

    Returns:
        Shape and dtype of each tensor, and the metadata.

    Raises:
        AdapterRefused: The header is damaged, or the data is too short or too long.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise AdapterRefused(f"{file}: the file is cut short. Copy the folder again.")
        try:
            header = json.loads(stream.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AdapterRefused(f"{file}: no safetensors header ({error}). Copy the folder again.") from error
    metadata = header.pop("__metadata__", {})
    tensors = {
        name: TensorInfo(shape=tuple(entry["shape"]), dtype=entry["dtype"]) for name, entry in sorted(header.items())
    }
    expected = 8 + length + sum(math.prod(one.shape) * ITEM_BYTES[one.dtype] for one in tensors.values())
    if expected != size:
        raise AdapterRefused(f"{file}: {size} bytes, its header says {expected}. Copy the folder again.")
    return tensors, metadata


def head_tensors(tensors: Iterable[str], module: str) -> list[str]:
    """Names of the tensors of one head module.

    Args:
        tensors: Names of tensors, `base_model.model.bert.pooler.dense.weight`.
        module: The module, `pooler`.
    """
    return [name for name in tensors if f".{module}." in name]
