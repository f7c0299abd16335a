"""The safetensors files of a base: which they are, whether they are whole, and what their headers say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lora_ft.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Attributes:
        name: Name in the state dict.
        dtype: safetensors' word for the type: `F32`, `BF16`.
        shape: Sizes.
        file: The file it lies in.
        offset_bytes: Where its bytes begin, from the start of the file.
        size_bytes: How many bytes it has.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset_bytes: int
    size_bytes: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a base: one file, or the shards that the index names.

    Args:
        folder: Folder of the base.

    Returns:
        The files, sorted by name; each exists.

    Raises:
        ModelError: There are no safetensors weights, or shards of the index are missing.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = ", ".join(sorted(file.name for file in folder.glob("*.bin"))[:3])
    found = f" (pickled ones: {pickled})" if pickled else ""
    raise ModelError(
        f"{folder}: no safetensors weights{found}. Expected {SINGLE} or {INDEX}: lora_ft reads safetensors"
        " only, because unpickling *.bin runs code from the file. Convert pickled weights once, on a machine"
        " that trusts them: load the base with transformers and call save_pretrained."
    )


def _shards(folder: Path) -> tuple[Path, ...]:
    """The shards that the index names."""
    try:
        weight_map: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / INDEX}: not an index of shards ({error!r}). Download the base again.") from error
    if odd := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{folder / INDEX}: {odd[0]!r} is not a file of this folder. Download the base again.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. The download was interrupted: start it again online."
        )
    return tuple(folder / name for name in names)


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of a base as its headers describe it, without reading the weights.

    Args:
        folder: Folder of the base.

    Returns:
        All tensors, sorted by name.

    Raises:
        ModelError: No safetensors weights, a file that is not one, or one that is shorter or longer than its
        header says.
    """
    return sorted((tensor for file in weight_files(folder) for tensor in _header(file)), key=lambda tensor: tensor.name)


def _header(file: Path) -> list[StoredTensor]:
    """The tensors of one file.

    Source: safetensors format: 8 bytes little-endian header size, JSON header, data.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        start = 8 + header_bytes
        if size < 8 or header_bytes > MAX_HEADER_BYTES or start > size:
            raise _damaged(file, "its header is cut off")
        raw = stream.read(header_bytes)
    try:
        entries = json.loads(raw)
        tensors = [
            _entry(name, entry, file=file, start=start) for name, entry in entries.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"its header cannot be read ({error!r})") from error
    end = max((tensor.offset_bytes + tensor.size_bytes for tensor in tensors), default=start)
    if end != size:
        raise _damaged(file, f"it has {size:,} bytes, its header says {end:,}")
    return tensors


def _entry(name: str, entry: dict[str, Any], *, file: Path, start: int) -> StoredTensor:
    """One line of a header; ValueError if shape and bytes disagree."""
    first, last = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if (last - first) * 8 != prod(shape) * DTYPE_BITS[dtype]:
        raise ValueError(f"{name}: {last - first} bytes for shape {shape} of {dtype}")
    return StoredTensor(
        name=name, dtype=dtype, shape=shape, file=file, offset_bytes=start + first, size_bytes=last - first
    )


def _damaged(file: Path, what: str) -> ModelError:
    return ModelError(f"{file}: the weights are damaged: {what}. Download or copy the base again.")


def stored_dtype(tensors: list[StoredTensor]) -> str:
    """The type in which most bytes of a base are stored, in safetensors' word (`F32`, `BF16`, `F16`)."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return max(sorted(sizes), key=lambda dtype: sizes[dtype]) if sizes else "F32"
