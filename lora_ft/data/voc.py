"""Boxes in the XML of Pascal VOC, one file for each image -> one row for each file.

One row: <annotation><filename>cells.jpg</filename><object><name>WBC</name><bndbox><xmin>69</xmin><ymin>316</ymin>
<xmax>286</xmax><ymax>480</ymax></bndbox></object></annotation>
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lora_ft.data.rows import FileRows
from lora_ft.data.values import BadValue

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_rows(files: Sequence[Path], *, media_dir: Path | None) -> FileRows:
    """The images that some files are about, with their boxes.

    VOC counts pixels from 1 and a box includes its last pixel: xmin 69 to xmax 286 are 218 pixels that begin at 68.

    Args:
        files: The .xml files.
        media_dir: Where the images are; None: beside each file.

    Returns:
        `image` and `objects`; a file that is broken is a fault of its row.
    """
    columns: dict[str, list[Any]] = {"image": [], "objects": []}
    faults: list[tuple[int, str]] = []
    for position, file in enumerate(files):
        image, objects = None, None
        try:
            name, objects = _read(file)
            image = str((media_dir or file.absolute().parent) / name)
        except BadValue as error:
            faults.append((position, str(error)))
        columns["image"].append(image)
        columns["objects"].append(objects)
    return FileRows(columns, range(1, len(files) + 1), ours=True, files=[str(file) for file in files], faults=faults)


def _read(file: Path) -> tuple[str, dict[str, list[Any]]]:
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except OSError as error:
        raise BadValue(f"objects: the file cannot be read ({error.strerror or error})") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise BadValue(f"objects: the file is not XML ({error})") from error
    name = (root.findtext("filename") or "").strip()
    if root.tag != "annotation" or not name:
        raise BadValue("image: the file is no VOC annotation, expected <annotation> with a <filename>")
    boxes, categories = [], []
    for number, entry in enumerate(root.findall("object"), start=1):
        boxes.append(_box(entry.find("bndbox"), number))
        categories.append((entry.findtext("name") or "").strip())
    return name, {"bbox": boxes, "category": categories}


def _box(bounds: Any, number: int) -> list[float]:
    """Corners, 1-based and inclusive -> x, y, width, height."""
    texts = {corner: bounds.findtext(corner) if bounds is not None else None for corner in CORNERS}
    try:
        left, top, right, bottom = (float(texts[corner] or "") for corner in CORNERS)
    except ValueError as error:
        told = ", ".join(f"{corner} {text!r}" for corner, text in texts.items())
        raise BadValue(f"objects: <bndbox> of object {number} has {told}, expected four numbers") from error
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
