"""A folder of images or sounds, or of one folder for each class -> one row for each file.

One row: apples/001.jpg -> image "apples/001.jpg", label "apples".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_ft.data.media import ENDINGS
from lora_ft.data.rows import FileRows
from lora_ft.errors import DataError


def folder_rows(folder: Path) -> FileRows:
    """The images or sounds of a folder, sorted by name.

    Args:
        folder: Its subfolders are classes; or it has no subfolders with such files, and there are no labels.

    Returns:
        `image` or `audio`, and `label`.

    Raises:
        DataError: It has no such files, files of both kinds, or folders within the folders of classes.
    """
    entries = _entries(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    files: list[Path] = []
    labels: list[str | None] = []
    for entry in entries:
        inside = _entries(entry) if entry in classes else [entry]
        found = [file for file in inside if media_kind(file) is not None and file.is_file()]
        for inner in inside:
            if entry in classes and inner.is_dir() and any(media_kind(file) for file in _entries(inner)):
                raise DataError(
                    f"{inner}: is a folder within {entry.name!r}, which would be a class. Expected the files of a "
                    f"class in its folder: give {entry} as the data of one split, or move the files up"
                )
        files += found
        labels += [entry.name if entry in classes else None] * len(found)
    rows = media_rows(files, where=folder)
    if all(label is None for label in labels):
        return rows
    columns: dict[str, Sequence[Any]] = {**rows.columns, "label": labels}
    order = tuple(sorted({label for label in labels if label is not None}))
    return FileRows(columns, rows.numbers, ours=True, files=rows.files, label_names=order)


def media_rows(files: Iterable[Path], *, where: Path) -> FileRows:
    """Images or sounds without labels.

    Args:
        files: The files.
        where: Where they are from, for messages.

    Raises:
        DataError: There are none, or some of each kind.
    """
    paths = [str(file.absolute()) for file in files]
    kinds = {media_kind(Path(path)) for path in paths}
    if not kinds:
        known = " ".join(ending for endings in ENDINGS.values() for ending in endings)
        raise DataError(f"{where}: there are no images or sounds in this folder. Expected files such as {known}")
    if len(kinds) > 1:
        raise DataError(f"{where}: has images and sounds. Expected files of one kind: keep them in two folders")
    (kind,) = kinds
    return FileRows({str(kind): paths}, range(1, len(paths) + 1), ours=True, files=paths)


def media_kind(file: Path) -> str | None:
    """`image` or `audio` by the ending of a file, else None."""
    ending = file.suffix.lower()
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; not what is hidden."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}. Check the path") from error
