"""Finds the head of a loaded base: what the task names, what has fresh weights, what changes with the labels."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_ft.errors import ModelError
from lora_ft.models.resolve import KEY

logger = logging.getLogger(__name__)

UNINITIALISED = ("layer_weights",)
"""Parameters that transformers (5.23) leaves as it finds the memory: that they are all alike is chance."""

NAMES_IN_MESSAGE = 5
MASKS = frozenset(["masked_spec_embed", "mask_token"])
"""Parameters that only stand in for what training hides (SpecAugment): random ones change no answer."""

COUNTER = "num_batches_tracked"
"""A buffer of batch norms that older files lack; it only counts."""


@dataclass(frozen=True)
class Head:
    """The head of a base: what is trained in full and saved beside the adapter.

    Attributes:
        names: As peft's `modules_to_save` takes them: the last part of a name where that says enough.
        modules: The same modules by their full names.
        new: Whether it has fresh random weights, so that the base alone cannot do the task.
    """

    names: tuple[str, ...]
    modules: frozenset[str]
    new: bool


def find_head(
    model: Any, *, known: Sequence[str], fresh: Iterable[str], base: str, labelled: Callable[[], set[str]]
) -> Head:
    """Finds what must be trained in full.

    That is every module with a name that the task knows, and every module that the base has no weights for. What
    shares its weights with the base (output embeddings) is never part of it. A base that has all its weights, for a
    task that names no head (a language model), has none.

    Args:
        model: The loaded model.
        known: Names of modules that hold the head in the families of the task, in full or their last parts.
        fresh: Names of the weights that were missing in the base, or had another shape.
        base: The user's name of the base, for the error.
        labelled: Finds the modules whose shapes follow the number of labels; asked only where names do not help.

    Returns:
        The head.

    Raises:
        ModelError: The base proper lacks weights: parts of it would stay random and frozen.
    """
    missing = {key for key in fresh if not key.endswith(COUNTER)}
    trained = named_modules(model, known)
    outside, inner, lost = _sort_fresh(model, missing, named=trained)
    if lost or (known and not trained and not outside):
        wanted = labelled()
        trained |= {name for name in wanted if not trained or any(is_inside(key, [name]) for key in lost)}
        lost = {key for key in lost if not is_inside(key, wanted)}
    parts = {part for name in trained for part in _own_parts(model, name)}
    fresh_parts = {part for name in outside | inner for part in _own_parts(model, name)}
    parts |= {part for part in fresh_parts if any(is_inside(key, [part]) for key in missing)}
    parts = {part for part in parts if not is_inside(part, parts - {part})}
    _refuse_lost(model, lost, base=base)
    _refuse_random(model, {key for key in missing - lost if not is_inside(key, parts)}, base=base)
    task_parts = {part for part in parts if not is_inside(part, inner)}
    new = any(is_inside(key, task_parts) for key in missing)
    return Head(names=_as_saved(model, parts), modules=frozenset(parts), new=new)


def named_modules(model: Any, names: Iterable[str]) -> set[str]:
    """The full names of the modules that one of `names` is the name or the end of, those with parameters."""
    ends = tuple(f".{name}" for name in names)
    return {
        name
        for name, module in model.named_modules()
        if f".{name}".endswith(ends) and any(True for _ in module.parameters())
    }


def outside_modules(model: Any) -> set[str]:
    """The full names of the top modules that are not the base proper: `classifier`, `score`, `lm_head`."""
    outputs = model.get_output_embeddings()
    found = {name for name, module in model.named_modules() if module is outputs}
    if model.base_model is model:
        return found
    return found | {
        name
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    }


def label_modules(model: Any, other: Any) -> set[str]:
    """The full names of the modules whose parameters have another shape in `other`, built for another label count."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    differing = (name for name, parameter in other.named_parameters() if shapes.get(name) != parameter.shape)
    return {name.rpartition(".")[0] for name in differing} - {""}


def report_unused(model: Any, unexpected: Iterable[str], *, base: str) -> None:
    """Logs once which weights of the base proper the model does not use; another head is no news."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()}
    unused = sorted(key for key in unexpected if key.removeprefix(prefix).partition(".")[0] in parts)
    if unused:
        logger.warning("base %s: %d of its weights are not used: %s", base, len(unused), _few(unused))


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of `modules` or lies in one; full names."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _sort_fresh(model: Any, missing: set[str], *, named: Collection[str]) -> tuple[set[str], set[str], set[str]]:
    """Sorts fresh weights into modules outside of the base proper, whole new modules within (`pooler`), and the rest.

    A model that is its own base proper (T5, Whisper's classifier) has its new modules outside.
    """
    modules = {name for name, _ in model.named_modules()}
    own = "" if model.base_model is model else f"{model.base_model_prefix}."
    inside = [name for name, _ in model.named_parameters() if name.startswith(own)]
    outside: set[str] = set()
    inner: set[str] = set()
    lost: set[str] = set()
    for key in missing:
        if is_inside(key, named):
            continue
        start = own if key.startswith(own) else ""
        child = start + key.removeprefix(start).partition(".")[0]
        of_base = key.startswith(own)
        whole = child in modules and all(name in missing for name in inside if name.startswith(f"{child}."))
        if of_base and not whole:
            lost.add(key)
        elif child in modules:
            (inner if own and of_base else outside).add(child)
        else:
            outside.add(key)
    if len([name for name in inside if name in missing]) * 2 > len(inside):
        lost |= {key for key in missing if key.startswith(own)}
    return outside, inner, lost


def _own_parts(model: Any, name: str) -> Iterator[str]:
    """The largest parts of a module that peft can save: no bare lists, nothing that shares weights with the rest."""
    if name not in {known for known, _ in model.named_modules()}:
        return
    module = model.get_submodule(name)
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) and not _shares(model, name):
        if any(True for _ in module.parameters()):
            yield name
        return
    for child, _ in module.named_children():
        yield from _own_parts(model, f"{name}.{child}")


def _shares(model: Any, name: str) -> bool:
    """Whether a parameter of a module also belongs to another module, outside of it."""
    owners: dict[int, set[str]] = defaultdict(set)
    for owner, module in model.named_modules():  # each module once: two paths to one module share nothing
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].add(owner)
    return any(
        not is_inside(owner, [name])
        for names in owners.values()
        if any(is_inside(owner, [name]) for owner in names)
        for owner in names
    )


def _as_saved(model: Any, modules: Collection[str]) -> tuple[str, ...]:
    """Names as `modules_to_save` takes them: peft wraps every module whose name merely ends with one of them."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]

    def shortest(module: str) -> str:
        last = module.rpartition(".")[2]
        enough = not last.isdigit() and all(name in modules for name in names if name.endswith(last))
        return last if enough else module

    return tuple(sorted({shortest(module) for module in modules}))


def _refuse_lost(model: Any, lost: Collection[str], *, base: str) -> None:
    """Refuses a base that lacks weights which nobody would train."""
    random = sorted(key for key in lost if key.rpartition(".")[2] not in MASKS)
    if random:
        own = "" if model.base_model is model else f"{model.base_model_prefix}."
        count = sum(1 for name, _ in model.base_model.named_parameters())
        few = _few([key.removeprefix(own) for key in random])
        raise ModelError(
            f"{KEY} = {base!r}: {len(random)} of {count} weights of the base are missing or have another"
            f" shape than config.json says: {few}. Expected weights that belong to that config.json."
            " Download the base again, or find out which file was replaced."
        )


def _refuse_random(model: Any, keys: Collection[str], *, base: str) -> None:
    """Refuses fresh weights that nobody trains or saves, unless all are alike, and so the same at every load."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    random = sorted(
        key
        for key in keys
        if key in parameters
        and (
            key.rpartition(".")[2] in UNINITIALISED or not bool((parameters[key] == parameters[key].flatten()[0]).all())
        )
    )
    if random:
        raise ModelError(
            f"{KEY} = {base!r}: it has no weights for {_few(random)}, which no adapter can save: they would be random"
            " at every load. Expected a base that has them. Take one that was trained with this head."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (", ..." if len(names) > NAMES_IN_MESSAGE else "")
