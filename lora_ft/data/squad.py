"""Nested JSON of SQuAD, v1 and v2 -> one row for each question.

One row: {"id": "56be", "context": "The Panthers gave up just 308 points.", "question": "How many points did the
Panthers give up?", "answers": [{"text": "308", "answer_start": 26}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_ft.data.rows import FileRows
from lora_ft.data.values import json_kind
from lora_ft.errors import DataError


def is_squad(content: Any) -> bool:
    """Whether parsed JSON is `{"data": [{"paragraphs": [...]}]}`."""
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), list) or not content["data"]:
        return False
    first = content["data"][0]
    return isinstance(first, Mapping) and "paragraphs" in first


def squad_rows(file: Path, content: Mapping[str, Any]) -> FileRows:
    """The questions of a file, numbered from 1 in its order.

    Args:
        file: Its name, for messages.
        content: Its JSON.

    Returns:
        `id`, `context`, `question`, and `answers` unless no question has any (a file to predict).

    Raises:
        DataError: It is not nested as SQuAD is.
    """
    columns: dict[str, list[Any]] = {"id": [], "context": [], "question": [], "answers": []}
    answered = False
    for context, question in _questions(file, content):
        answered |= "answers" in question or "is_impossible" in question
        columns["id"].append(question.get("id"))
        columns["context"].append(context)
        columns["question"].append(question.get("question"))
        columns["answers"].append([] if question.get("is_impossible") else question.get("answers"))
    if not answered:
        del columns["answers"]
    return FileRows(columns, range(1, len(columns["id"]) + 1), ours=True)


def _questions(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Each context with each of its questions."""
    for number, article in enumerate(content["data"]):
        for at, paragraph in enumerate(_list(article, "paragraphs", f"{file}: data[{number}]")):
            where = f"{file}: data[{number}].paragraphs[{at}]"
            for index, question in enumerate(_list(paragraph, "qas", where)):
                if not isinstance(question, Mapping):
                    raise DataError(f"{where}.qas[{index}]: is {json_kind(question)}. Expected an object, as in SQuAD")
                yield paragraph.get("context"), question


def _list(parent: Any, key: str, where: str) -> list[Any]:
    inner = parent.get(key) if isinstance(parent, Mapping) else None
    if not isinstance(inner, list):
        raise DataError(f"{where}: has no list {key!r}. Expected data > paragraphs > qas, as in SQuAD")
    return inner
