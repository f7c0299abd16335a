"""Where a value was written, and how a fault about it is worded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_ft.errors import RecipeError, closest

KeyPath = tuple[str | int, ...]
"""The way to a value: `("dataset", "columns", "label", 1)`."""

LONGEST_VALUE = 80


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Attributes:
        order: Sorts places: the line in the file; overrides come after every line.
        text: `recipes/x.yaml:9`, or `override training_args.seed=1`.
        override: The key that the override sets, or None for a place in the file.
    """

    order: int
    text: str
    override: KeyPath | None = None


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        path: The key it is about; a key that is missing is named too.
        message: What is wrong, what was expected, what to do.
        place: Given only where the key alone does not say it (the second of two equal keys).
    """

    path: KeyPath
    message: str
    place: Place | None = None


@dataclass(frozen=True)
class Document:
    """A YAML mapping, and for each of its keys and list items the place where it was written.

    Attributes:
        name: The file as the user named it.
        value: Plain dicts, lists, strings, numbers, bools and None.
        places: One for each key path that was written.
        faults: What the reader itself found wrong, such as a key written twice.
    """

    name: str
    value: dict[str, Any]
    places: Mapping[KeyPath, Place]
    faults: tuple[Fault, ...] = field(default=())

    def find(self, path: KeyPath) -> tuple[bool, Any]:
        """Whether a key was written, and its value (None if it was not)."""
        value: Any = self.value
        for step in path:
            if isinstance(step, int):
                known = isinstance(value, list) and step < len(value)
            else:
                known = isinstance(value, dict) and step in value
            if not known:
                return False, None
            value = value[step]
        return True, value

    def place(self, path: KeyPath) -> Place:
        """The place of a key, of the nearest section around it, or of the first key below that."""
        around = [path[:length] for length in range(len(path), 0, -1)]
        for known in around:
            if known in self.places:
                return self.places[known]
        for known in around:
            # An override makes a section without a place of its own.
            below = [place for one, place in self.places.items() if one[: len(known)] == known]
            if below:
                return min(below, key=lambda place: place.order)
        return Place(order=1, text=f"{self.name}:1")

    def render(self, fault: Fault) -> str:
        """One line: `recipes/x.yaml:9: section.key = value: what is wrong`."""
        place = fault.place or self.place(fault.path)
        message = fault.message.removesuffix(".")
        if not fault.path or place.override == fault.path:
            return f"{place.text}: {message}"
        written, value = self.find(fault.path)
        text = shown(value) if written and fault.place is None else ""
        return f"{place.text}: {dotted(fault.path)}{f' = {text}' if text else ''}: {message}"

    def error(self, faults: Iterable[Fault]) -> RecipeError:
        """All faults in the order of the file, each once."""
        ordered = sorted(faults, key=lambda fault: (fault.place or self.place(fault.path)).order)
        return RecipeError(tuple(dict.fromkeys(one_line(self.render(fault)) for fault in ordered)))


def dotted(path: Sequence[str | int]) -> str:
    """`("dataset", "columns", "label", 1)` as `dataset.columns.label[1]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return one_line(text)


def shown(value: Any) -> str:
    """A value as the user may have written it; empty for a list or a mapping too long for one line."""
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{one_line(key)}: {shown(item)}" for key, item in value.items()) + "}"
        return text if len(text) <= LONGEST_VALUE else ""
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
        return text if len(text) <= LONGEST_VALUE else ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def one_line(text: str) -> str:
    """Text that the user gave, so that it stays on one line."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Like `closest`, and a name that differs only in case is always near."""
    names = list(known)
    folded = {one.casefold(): one for one in names}
    if name.casefold() in folded:
        return f" Did you mean '{folded[name.casefold()]}'?"
    return closest(name, names)


def near_or_known(name: object, known: Iterable[str]) -> str:
    """The nearest name, or all of them where none is near; with a leading space."""
    names = list(known)
    near = nearest(name, names) if isinstance(name, str) else ""
    return near or f" Known: {', '.join(names)}"
