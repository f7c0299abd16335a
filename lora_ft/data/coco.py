"""Boxes in COCO's JSON -> one row for each image.

One row: {"id": 0, "file_name": "cells.jpg"} and the annotations with its id, such as {"image_id": 0,
"category_id": 2, "bbox": [68, 315, 218, 165], "iscrowd": 0}.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.data.kinds import box_fault
from lora_ft.data.rows import FileRows
from lora_ft.data.values import json_kind
from lora_ft.errors import DataError


def is_coco(content: Any) -> bool:
    """Whether parsed JSON is an object with images and either annotations or categories."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("images"), list)
        and ("annotations" in content or "categories" in content)
    )


def coco_rows(file: Path, content: Mapping[str, Any]) -> FileRows:
    """The images of a file with their boxes, those without boxes too.

    Boxes around crowds (`iscrowd`: 1) say where many things are, not where one is: they are left out and counted.

    Args:
        file: Its name, for messages.
        content: Its JSON.

    Returns:
        `image` and, where there are annotations, `objects`; the label order is that of the category ids.

    Raises:
        DataError: A key is missing, an id occurs twice, or a box belongs to no image.
    """
    images = {_key(file, entry, "id", f"images[{at}]"): at for at, entry in enumerate(content["images"])}
    names = {
        _key(file, entry, "id", f"categories[{at}]"): str(_key(file, entry, "name", f"categories[{at}]"))
        for at, entry in enumerate(content.get("categories", []))
    }
    for what, found in (("images", images), ("categories", names)):
        if len(found) < len(content.get(what, [])):
            raise DataError(
                f"{file}: {what}: {len(content[what])} entries, only {len(found)} ids. Give each its own id"
            )
    paths = [_key(file, entry, "file_name", f"images[{at}]") for at, entry in enumerate(content["images"])]
    numbers = range(1, len(paths) + 1)
    order = tuple(dict.fromkeys(names[number] for number in sorted(names, key=_by_number))) or None
    shown = [f"{file}, image {path}" for path in paths]
    if "annotations" not in content:
        return FileRows({"image": paths}, numbers, ours=True, files=shown, label_names=order)

    objects: list[dict[str, list[Any]]] = [{"bbox": [], "category": []} for _ in paths]
    faults: list[tuple[int, str]] = []
    crowds = 0
    for at, entry in enumerate(content["annotations"]):
        where = f"annotations[{at}]"
        image = images.get(_key(file, entry, "image_id", where))
        if image is None:
            raise DataError(f"{file}: {where}.image_id = {entry['image_id']!r}: there is no image of this id. Add it")
        category = _key(file, entry, "category_id", where)
        if entry.get("iscrowd"):
            crowds += 1
            continue
        told = box_fault(entry.get("bbox"))
        named = f"objects: annotation {entry['id']}" if "id" in entry else f"objects: {where}"
        if category not in names:
            faults.append((image, f"{named}: category_id = {category!r} is not among the categories"))
        elif told is not None:
            faults.append((image, f"{named}: bbox {told}"))
        else:
            objects[image]["bbox"].append(entry.get("bbox"))
            objects[image]["category"].append(names[category])
    notes = (f"{file}: {crowds} boxes around crowds (iscrowd) are left out",) if crowds else ()
    columns = {"image": paths, "objects": objects}
    return FileRows(columns, numbers, ours=True, files=shown, faults=faults, label_names=order, notes=notes)


def _by_number(number: Any) -> tuple[bool, Any]:
    return isinstance(number, str), number


def _key(file: Path, entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, Mapping):
        raise DataError(f"{file}: {where} is {json_kind(entry)}. Expected an object with {key!r}, as in COCO")
    if key not in entry:
        raise DataError(f"{file}: {where} has no {key!r}. Expected images, annotations and categories, as in COCO")
    return entry[key]
