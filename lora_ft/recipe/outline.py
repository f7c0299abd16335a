"""The outline of the beginning of a JSON text: its keys, without reading the rest.

One real beginning: `{"images": [{"id": 0, "file_name": "a.jpg"}, {"id": ` -> `{"images": ("id", "file_name")}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}:,]', re.DOTALL)

OBJECT_KEYS = ["{"]
ROW_KEYS = ["{", "[", "{"]


def outline(text: str) -> dict[str, tuple[str, ...]]:
    """The keys of a JSON object, and of the objects in a list under each of them.

    Args:
        text: The beginning of a JSON object; it may end anywhere.

    Returns:
        Key -> the keys of the objects in the list that is its value, in order; empty where it is no such list.

    Raises:
        ValueError: A key is no JSON.
    """
    found: dict[str, dict[str, None]] = {}
    key = ""
    for depth, name in _keys(text):
        if depth == 1:
            key = name
            found[key] = {}
        else:
            found.setdefault(key, {})[name] = None
    return {name: tuple(inner) for name, inner in found.items()}


def _keys(text: str) -> Iterator[tuple[int, str]]:
    """Each key at depth 1 (of the object) and 3 (of an object in a list in it)."""
    around: list[str] = []
    last = ""
    for match in TOKEN.finditer(text):
        token = match[0]
        if token == ":" and last and around in (OBJECT_KEYS, ROW_KEYS):
            yield len(around), str(json.loads(last))
        if token in "{[":
            around.append(token)
        elif token in "]}" and around:
            around.pop()
        last = token if token.startswith('"') else ""
