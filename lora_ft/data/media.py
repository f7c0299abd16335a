"""Images and sounds of a row: where their bytes are; nothing is decoded, and no file is read here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from lora_ft.data.values import BadValue, json_kind
from lora_ft.recipe.peek import AUDIO_SUFFIXES, IMAGE_SUFFIXES

ENDINGS = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
"""Of each kind of column that files fill, how their names end."""

MEDIA = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
"""The storage of the Image and Audio features of `datasets`, so that their columns are used as they lie."""


def media_value(value: Any, *, folder: Path | None) -> dict[str, Any]:
    """An image or a sound as `{"bytes", "path"}`, at least one of which is there.

    Args:
        value: A path, the bytes, or an object with `bytes` or `path`.
        folder: Where relative paths start; None: there is no such folder.

    Raises:
        BadValue: It is none of these, or there is no such file.
    """
    if isinstance(value, bytes) and value:
        return {"bytes": value, "path": None}
    if isinstance(value, str):
        return {"bytes": None, "path": _find(value, folder)}
    if not isinstance(value, Mapping):
        raise BadValue(f"is {json_kind(value)}, expected a path, or an object with bytes or a path")
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, bytes) and data:
        return {"bytes": data, "path": path if isinstance(path, str) else None}
    if not isinstance(path, str):
        raise BadValue("has neither bytes nor a path")
    return {"bytes": None, "path": _find(path, folder)}


def _find(text: str, folder: Path | None) -> str:
    """The absolute path of a file that exists."""
    if not text.strip():
        raise BadValue("is an empty path")
    if "://" in text:
        raise BadValue(f"= {text!r}: is an address, expected a file: fetch it first")
    path = Path(text)
    if not path.is_absolute():
        if folder is None:
            raise BadValue(f"= {text!r}: a relative path, say where it starts with dataset.media_dir")
        path = folder.absolute() / path
    try:
        found = path.is_file()
    except OSError:  # a text that is too long to be a name
        found = False
    if not found:
        told = "" if Path(text).is_absolute() else f" in {folder} (dataset.media_dir says where paths start)"
        raise BadValue(f"= {text!r}: there is no such file{told}")
    return str(path)


def all_have_bytes(column: pa.ChunkedArray) -> bool:
    """Whether a column is stored as an Image or Audio feature is, with bytes in every row; reads none of them."""
    if column.type != pa.struct({"bytes": pa.binary(), "path": pa.string()}) or column.null_count:
        return False
    lengths = pc.binary_length(pc.struct_field(column, "bytes"))
    return lengths.null_count == 0 and (pc.min(lengths).as_py() or 0) > 0
