"""Lays `section.key=value` over a recipe, so that it is checked exactly like the file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lora_ft.recipe.faults import Document, Fault, KeyPath, Place, one_line, shown
from lora_ft.recipe.reader import RecipeYamlError, parse_value

AFTER_THE_FILE = 1_000_000_000


def lay_over(document: Document, overrides: Sequence[str]) -> Document:
    """Applies overrides in their order.

    Args:
        document: The recipe as written; it is not changed.
        overrides: `training_args.learning_rate=3e-4`, `dataset.columns.text=review`, `offline=true`. The
            value is YAML 1.2; every dot before the `=` goes one level down.

    Returns:
        A new document. A key that an override set has the override as its place; overrides that cannot be
        read are among its faults.
    """
    value = copy.deepcopy(document.value)
    places = dict(document.places)
    faults = list(document.faults)
    for index, override in enumerate(overrides):
        text = f"override {one_line(override)}"
        place = Place(AFTER_THE_FILE + index, text)
        try:
            path, new = _read(override)
            _set(value, path, new)
        except _OverrideError as fault:
            faults.append(Fault((), str(fault), place))
            continue
        places = {known: at for known, at in places.items() if known[: len(path)] != path}
        places[path] = Place(AFTER_THE_FILE + index, text, path)
    return Document(name=document.name, value=value, places=places, faults=tuple(faults))


class _OverrideError(Exception):
    """What is wrong with one override."""


def _read(override: str) -> tuple[KeyPath, Any]:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise _OverrideError("expected section.key=value, such as training_args.learning_rate=3e-4")
    try:
        return keys, parse_value(text)
    except RecipeYamlError as fault:
        raise _OverrideError(f"{fault.message}. If the value is text, put it in quotes: {name}='\"...\"'") from None


def _set(value: dict[str, Any], path: KeyPath, new: Any) -> None:
    for depth, step in enumerate(path[:-1]):
        inner = value.setdefault(str(step), {})
        if inner is None:
            inner = value[str(step)] = {}
        if not isinstance(inner, dict):
            above = ".".join(str(one) for one in path[: depth + 1])
            given = shown(inner) or "a list"
            raise _OverrideError(f"{above} is {given}, which has no keys. Override {above} as a whole")
        value = inner
    value[str(path[-1])] = new
