"""Which families of bases transformers has a class for: what an auto class knows, read without importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.recipe.installed import SourceError, class_definition, definition, version

MODULE = "transformers.models.auto.modeling_auto"
SHOWN_FAMILIES = 40


def unknown_family(config: Mapping[str, Any], auto_classes: Sequence[str], *, task: str) -> str | None:
    """Why a base is none for a task; None if it may be one.

    Args:
        config: The base's config.json; empty where it is not known.
        auto_classes: The auto classes that build the task's models.
        task: Its name, for the message.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or config.get("auto_map") or not auto_classes:
        return None  # a timm model, or one with its own code: the auto class decides
    try:
        known = sorted({name for one in auto_classes for name in families_of(one)})
    except SourceError:
        return None
    if family in known:
        return None
    more = f", ... ({len(known)} in all)" if len(known) > SHOWN_FAMILIES else ""
    return (
        f"the base is of the family {family!r}, for which transformers {version('transformers')} has no model for "
        f"{task} ({' or '.join(auto_classes)}). Expected one of these families: {', '.join(known[:SHOWN_FAMILIES])}"
        f"{more}. Take such a base, or another task"
    )


@functools.cache
def families_of(auto_class: str) -> frozenset[str]:
    """The `model_type` of every family that an auto class of transformers knows.

    Args:
        auto_class: `AutoModelForSeq2SeqLM`.

    Raises:
        SourceError: Upstream writes it in a way that is not understood.
    """
    _, found = class_definition(MODULE, auto_class)
    assigned = {
        statement.targets[0].id: statement.value
        for statement in found.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    mapping = assigned.get("_model_mapping")
    lazy = definition(MODULE, mapping.id) if isinstance(mapping, ast.Name) else None
    names = lazy[1].args[-1] if lazy is not None and isinstance(lazy[1], ast.Call) else None
    pairs = definition(MODULE, names.id) if isinstance(names, ast.Name) else None
    if pairs is None or not isinstance(pairs[1], ast.Call):
        raise SourceError(f"{MODULE}.{auto_class}")
    try:
        return frozenset(name for name, _ in ast.literal_eval(pairs[1].args[0]))
    except (ValueError, TypeError, IndexError) as error:
        raise SourceError(f"{MODULE}.{auto_class}") from error
