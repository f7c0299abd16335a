"""What each kind of column holds: any accepted form of a value -> the one form that tasks read.

| kind | one value |
|---|---|
| text | "Broke after a week." |
| texts, labels | ["EU", "rejects"], ["B-ORG", "O"] |
| spans | [{"start": 0, "end": 2, "label": "ORG"}] |
| answers | {"text": ["308"], "answer_start": [34]}; both lists empty: unanswerable |
| messages | [{"role": "user", "content": "Hi"}] |
| image, audio | {"bytes": None, "path": "/photos/apple.jpg"} |
| objects | {"bbox": [[68.0, 315.0, 218.0, 165.0]], "category": ["WBC"]}: x, y, width, height in pixels |
| key | "customer 17", "2024-05-01T00:00:00": what rows are grouped or ordered by, and no task reads |
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from lora_ft.data.media import MEDIA, media_value
from lora_ft.data.values import BadValue, canonical_label, json_kind, label_of, text_of
from lora_ft.recipe.schema import ColumnKind

TEXT = datasets.Value("string")
WHOLE = datasets.Value("int64")
FEATURES: dict[ColumnKind, Any] = {
    "text": TEXT,
    "texts": datasets.List(TEXT),
    "labels": datasets.List(TEXT),
    "spans": datasets.List({"start": WHOLE, "end": WHOLE, "label": TEXT}),
    "answers": {"text": datasets.List(TEXT), "answer_start": datasets.List(WHOLE)},
    "messages": datasets.List({"role": TEXT, "content": TEXT}),
    "image": MEDIA,
    "audio": MEDIA,
    "objects": {"bbox": datasets.List(datasets.List(datasets.Value("float64"))), "category": datasets.List(TEXT)},
    "key": TEXT,
}
"""The Arrow type of a column of each kind; the type of a label column follows from all its labels."""

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
UNKNOWN_START = -1
TURN = "role and content"


def reader_of(kind: ColumnKind, *, cells: bool = False, folder: Path | None = None) -> Callable[[Any], Any]:
    """The function from a value of the data to the canonical value of a kind.

    Args:
        kind: Any kind but `label`, whose type is settled over all rows.
        cells: Whether values are text cells (CSV): lists of texts are split at white space, the rest is JSON.
        folder: Where relative paths of images and sounds start.

    Returns:
        A function that raises `BadValue` with the reason if a value is not of that kind; the reason reads on after
        the name of the column.
    """
    readers: dict[ColumnKind, Callable[[Any], Any]] = {
        "text": _text,
        "texts": lambda value: _texts(value, cells=cells),
        "labels": lambda value: _labels(value, cells=cells),
        "spans": lambda value: _spans(value, cells=cells),
        "answers": lambda value: _answers(value, cells=cells),
        "messages": lambda value: _messages(value, cells=cells),
        "image": lambda value: media_value(value, folder=folder),
        "audio": lambda value: media_value(value, folder=folder),
        "objects": lambda value: _objects(value, cells=cells),
        "key": _key_of_row,
    }
    return readers[kind]


def _key_of_row(value: Any) -> str:
    """A text, a number or a moment as a text; nothing else tells which rows belong together or which is the newer."""
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadValue("is empty or null, expected a text, a number or a date")
    if not isinstance(value, str | int | float):
        raise BadValue(f"is {json_kind(value)}, expected a text, a number or a date")
    return str(value)


def class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the ClassLabel in a feature of `datasets`, however deep; None if there is none."""
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names) if feature.names else None
    if isinstance(feature, datasets.List | datasets.LargeList):
        return class_names(feature.feature)
    if isinstance(feature, Mapping):
        found = (class_names(inner) for inner in feature.values())
        return next((names for names in found if names is not None), None)
    return None


def with_class_names(value: Any, feature: Any) -> Any:
    """A value with the numbers of a ClassLabel as names; -1, the Hub's mark for "not labelled", as None."""
    if value is None:
        return None
    if isinstance(feature, datasets.ClassLabel):
        return feature.names[value] if value >= 0 else None
    if isinstance(feature, datasets.List | datasets.LargeList):
        return [with_class_names(part, feature.feature) for part in value]
    if isinstance(feature, Mapping):
        if isinstance(value, list):  # a legacy Sequence of objects lies in Arrow as a list of them
            inner = {name: part.feature for name, part in feature.items()}
            return [with_class_names(part, inner) for part in value]
        return {name: with_class_names(value.get(name), part) for name, part in feature.items()}
    return value


def box_fault(box: Any) -> str | None:
    """Why a value is no box, read on after its name; None if it is one."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return f"= {box!r}: expected [x, y, width, height] in pixels"
    if box[2] <= 0 or box[3] <= 0:
        return f"= {box!r}: the box has no area, expected width and height above 0"
    return None


def _text(value: Any) -> str:
    text = text_of(value)
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and {"role", "content"} <= set(value[0]):
        raise BadValue(
            "is a chat (messages with role and content), expected a text; `lora-ft tasks` names columns for chats"
        )
    if text is None:
        raise BadValue("is a list or an object" if isinstance(value, list | dict) else "is null")
    return text


def _texts(value: Any, *, cells: bool) -> list[str]:
    texts = [text_of(part) for part in _listed(value, "texts", cells=cells)]
    if None in texts:
        position = texts.index(None)
        raise BadValue(f"[{position}] is {json_kind(value[position])}, expected a text")
    return [text for text in texts if text is not None]


def _labels(value: Any, *, cells: bool) -> list[str]:
    labels = [label_of(part) for part in _listed(value, "labels", cells=cells)]
    for position, label in enumerate(labels):
        if label is None or isinstance(label, list):
            raise BadValue(f"[{position}] is {'empty or null' if label is None else 'a list'}, expected a label")
    return [canonical_label(label) for label in labels]


def _listed(value: Any, what: str, *, cells: bool) -> Sequence[Any]:
    if cells and isinstance(value, str):
        return value.split()
    if not isinstance(value, list | tuple):
        raise BadValue(f"is {json_kind(value)}, expected a list of {what}")
    return value


def _spans(value: Any, *, cells: bool) -> list[dict[str, Any]]:
    value = _parsed(value, cells=cells)
    if isinstance(value, list) and value and all(isinstance(part, list | tuple) and len(part) == 3 for part in value):
        value = [dict(zip(("start", "end", "label"), part, strict=True)) for part in value]
    spans = []
    for index, record in enumerate(_records(value, ("start", "end", "label"))):
        start, end = (_whole(_key(record, name, index), f"[{index}].{name}") for name in ("start", "end"))
        if not 0 <= start < end:
            raise BadValue(f"[{index}] goes from {start} to {end}, expected 0 <= start < end, in characters")
        spans.append({"start": start, "end": end, "label": _name(_key(record, "label", index), f"[{index}].label")})
    return spans


def _answers(value: Any, *, cells: bool) -> dict[str, list[Any]]:
    if cells and isinstance(value, str):
        parsed = _json_or_none(value)
        value = parsed if _looks_like_answers(parsed) else value
    if isinstance(value, str):
        text = value.strip()
        return {"text": [text], "answer_start": [UNKNOWN_START]} if text else {"text": [], "answer_start": []}
    texts: list[str] = []
    starts: list[int] = []
    for index, record in enumerate(_records([] if value is None else value, ("text", "answer_start"))):
        text = _key(record, "text", index)
        if not isinstance(text, str) or not text.strip():
            told = "empty" if isinstance(text, str) else json_kind(text)
            raise BadValue(f".text[{index}] is {told}, expected the text of the answer")
        start = _whole(record.get("answer_start", UNKNOWN_START), f".answer_start[{index}]")
        if start < UNKNOWN_START:
            raise BadValue(f".answer_start[{index}] = {start}: expected a position in the context, in characters")
        texts.append(text)
        starts.append(start)
    return {"text": texts, "answer_start": starts}


def _looks_like_answers(parsed: Any) -> bool:
    """Whether a cell was JSON of answers and not an answer in brackets, such as `[1]`."""
    records = parsed if isinstance(parsed, list) else [parsed]
    return all(isinstance(record, dict) and "text" in record for record in records)


def _messages(value: Any, *, cells: bool) -> list[dict[str, str]]:
    messages = []
    parsed = _parsed(value, cells=cells, told=TURN)
    for index, record in enumerate(_records(parsed, ("role", "content", "from", "value"), told=TURN)):
        if "from" in record and "role" not in record:
            sender, content = record["from"], _key(record, "value", index)
            role = SHAREGPT_ROLES.get(str(sender))
            if role is None:
                raise BadValue(f"[{index}].from = {sender!r}: expected one of {', '.join(SHAREGPT_ROLES)}")
        else:
            role, content = _name(_key(record, "role", index), f"[{index}].role"), _key(record, "content", index)
        if not isinstance(content, str):
            raise BadValue(f"[{index}] has {json_kind(content)} as its content, expected a text")
        messages.append({"role": role, "content": content})
    if not messages:
        raise BadValue("is empty, expected at least one message")
    return messages


def _objects(value: Any, *, cells: bool) -> dict[str, list[Any]]:
    boxes, names = [], []
    for index, record in enumerate(_records(_parsed(value, cells=cells), ("bbox", "category"))):
        box = _key(record, "bbox", index)
        told = box_fault(box)
        if told is not None:
            raise BadValue(f".bbox[{index}] {told}")
        boxes.append([float(side) for side in box])
        names.append(_name(_key(record, "category", index), f".category[{index}]"))
    return {"bbox": boxes, "category": names}


def _parsed(value: Any, *, cells: bool, told: str = "") -> Any:
    if not cells or not isinstance(value, str):
        return value
    parsed = _json_or_none(value)
    if not isinstance(parsed, list | dict):
        more = f" with {told}" if told else ""
        raise BadValue(f"= {value[:60]!r}: a cell of this column is JSON, expected a list of objects{more}")
    return parsed


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _records(value: Any, keys: Sequence[str], *, told: str = "") -> list[Mapping[str, Any]]:
    """A list of objects: as it is, or an object of lists turned round, or one object alone; `told` names its keys."""
    told = told or ", ".join(keys[:3])
    if isinstance(value, Mapping):
        picked = {key: value[key] for key in keys if key in value}
        if not any(isinstance(part, list) for part in picked.values()):
            return [value]
        if not all(isinstance(part, list) for part in picked.values()):
            raise BadValue(f"mixes lists and single values, expected lists of equal length: {', '.join(picked)}")
        if len({len(part) for part in picked.values()}) > 1:
            told = ", ".join(f"{len(part)} of {key}" for key, part in picked.items())
            raise BadValue(f"has lists of different lengths: {told}")
        return [dict(zip(picked, parts, strict=True)) for parts in zip(*picked.values(), strict=True)]
    if not isinstance(value, list | tuple):
        raise BadValue(f"is {json_kind(value)}, expected a list of objects with {told}")
    for index, part in enumerate(value):
        if not isinstance(part, Mapping):
            raise BadValue(f"[{index}] is {json_kind(part)}, expected an object with {told}")
    return list(value)


def _key(record: Mapping[str, Any], key: str, index: int) -> Any:
    if key not in record:
        raise BadValue(f"[{index}] has no {key!r}, it has: {', '.join(map(str, record)) or 'nothing'}")
    return record[key]


def _name(value: Any, where: str) -> str:
    label = label_of(value)
    if label is None or isinstance(label, list):
        raise BadValue(f"{where} is {'empty or null' if label is None else 'a list'}, expected a name")
    return canonical_label(label)


def _whole(value: Any, where: str) -> int:
    if _is_number(value) and float(value).is_integer():
        return int(value)
    raise BadValue(f"{where} = {value!r}: expected a whole number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
