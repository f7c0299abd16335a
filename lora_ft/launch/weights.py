"""How much memory a base will want on a device, read from the headers of its safetensors files where they lie here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_ft.recipe.schema import Recipe

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
OTHER_BYTES = 4
HALF_BYTES = 2
NF4_BYTES = 4.5 / 8
"""Four bits and a scale of 32 bits for every 64 numbers."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NOT_QUANTISED = re.compile(r"embed|wte|wpe|shared|lm_head|classifier|score")
MOST_HEADER_BYTES = 100_000_000  # as safetensors itself has it


def weight_bytes(recipe: Recipe, environment: Mapping[str, str]) -> int | None:
    """The bytes that the frozen base of a recipe takes on its device.

    Args:
        recipe: The recipe: base, quantisation, `model.dtype`.
        environment: Where the hub's cache is.

    Returns:
        Bytes, good to a few percent; None where the base is not on this disk, or has no safetensors (the run says so).
    """
    folder = base_folder(recipe.model.pretrained_model_name_or_path, recipe.model.revision, environment)
    if folder is None:
        return None
    try:
        headers = [read_header(file) for file in weight_files(folder)]
    except (OSError, ValueError):
        return None
    bits = quantised_bits(recipe.quantization_config)
    dtype = recipe.model.dtype
    total = 0.0
    for header in headers:
        for name, entry in header.items():
            count = math.prod(entry["shape"])
            if bits is not None:
                large = len(entry["shape"]) == 2 and NOT_QUANTISED.search(name) is None
                total += count * (HALF_BYTES if not large else NF4_BYTES if bits == 4 else 1)
            else:
                each = DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else ITEM_BYTES.get(entry["dtype"], OTHER_BYTES)
                total += count * each
    return round(total) if headers else None


def quantised_bits(settings: Mapping[str, Any] | None) -> int | None:
    """4, 8, or None for a base that is not quantised.

    Args:
        settings: The recipe's `quantization_config`.
    """
    given = settings or {}
    return 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else None


def base_folder(name: str, revision: str | None, environment: Mapping[str, str]) -> Path | None:
    """Where a base lies on this disk: the folder itself, or its snapshot in the hub's cache.

    Args:
        name: A folder, absolute, or a hub id.
        revision: Branch, tag or commit of a hub id; None: main.
        environment: `HF_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME`, in the hub's order.
    """
    if Path(name).is_absolute():
        return Path(name)
    home = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache")
    home = Path(environment.get("HF_HOME") or home / "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = cache / "snapshots" / (commit or "main")
    return folder if folder.is_dir() else None


def weight_files(folder: Path) -> Iterator[Path]:
    """The files that `from_pretrained` reads: those that the index names, or the one, or all there are."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        yield whole
    elif index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        yield from (folder / name for name in sorted(names))
    else:
        others = (file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith("consolidated"))
        yield from (file for file in others if not file.name.endswith(".fp16.safetensors"))


def read_header(file: Path) -> dict[str, Any]:
    """`{tensor: {"dtype": "F32", "shape": [...], "data_offsets": [...]}}` of a safetensors file; not its tensors.

    Raises:
        ValueError: It is no safetensors file.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"{file}: no safetensors header")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{file}: no safetensors header")
    header.pop("__metadata__", None)
    return header
