"""Finds the head of a loaded base: what lies outside of the base proper, and what has fresh weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from lora_ft.errors import ModelError
from lora_ft.models.resolve import KEY

logger = logging.getLogger(__name__)

NAMES_IN_MESSAGE = 5


def named_modules(model: Any, names: Iterable[str]) -> set[str]:
    """The full names of the modules whose last part is one of `names`."""
    wanted = set(names)
    return {name for name, _ in model.named_modules() if name.rpartition(".")[2] in wanted}


def outside_modules(model: Any) -> set[str]:
    """The full names of the top modules that are not the base proper: `classifier`, `score`, `lm_head`."""
    if model.base_model is model:
        return set()
    return {
        name
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    }


def fresh_modules(model: Any, fresh: Iterable[str], *, base: str) -> tuple[set[str], set[str]]:
    """Sorts the weights that did not come from the base into new modules.

    Args:
        model: The loaded model.
        fresh: Names of the weights that were missing in the base, or had another shape.
        base: The user's name of the base, for the error.

    Returns:
        New modules outside of the base proper, and new modules within it (such as `pooler`), by short name.

    Raises:
        ModelError: The base proper lacks weights: parts of it would stay random and frozen.
    """
    inner = {name for name, _ in model.base_model.named_parameters()}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    outside: set[str] = set()
    missing: set[str] = set()
    for name in fresh:
        if name.startswith(prefix):
            missing.add(name.removeprefix(prefix))
        else:
            outside.add(name.partition(".")[0])
    whole = {
        module
        for module in {key.partition(".")[0] for key in missing}
        if all(key in missing for key in inner if key.partition(".")[0] == module)
    }
    lost = sorted(key for key in missing if key.partition(".")[0] not in whole)
    if len(missing & inner) * 2 > len(inner):
        lost = sorted(missing)
    if lost:
        raise ModelError(
            f"{KEY} = {base!r}: {len(lost)} of {len(inner)} weights of the base are missing or have another"
            f" shape than config.json says: {_few(lost)}. Expected weights that belong to that config.json."
            " Download the base again, or find out which file was replaced."
        )
    return outside, whole


def report_unused(model: Any, unexpected: Iterable[str], *, base: str) -> None:
    """Logs once which weights of the base proper the model does not use; another head is no news."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()}
    unused = sorted(key for key in unexpected if key.removeprefix(prefix).partition(".")[0] in parts)
    if unused:
        logger.warning("base %s: %d of its weights are not used: %s", base, len(unused), _few(unused))


def head_names(model: Any, *, known: Sequence[str], new: Iterable[str]) -> tuple[str, ...]:
    """The head as `modules_to_save` takes it: new modules, and the task's names that the model has."""
    present = {name.rpartition(".")[2] for name in named_modules(model, known)}
    return tuple(sorted({*present, *new}))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (", ..." if len(names) > NAMES_IN_MESSAGE else "")
