"""Which modules an adapter goes on: `all-linear`, `all-conv`, each method's default, an error when nothing matches."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.convolutions import CONVOLUTIONS, why_not
from lora_ft.errors import InputError, closest

logger = logging.getLogger(__name__)

LINEAR = (nn.Linear, Conv1D)  # bitsandbytes' Linear4bit and Linear8bitLt are subclasses of nn.Linear

ALL_LINEAR = "all-linear"
ALL_CONV = "all-conv"
SHORTHANDS = {ALL_LINEAR: LINEAR, ALL_CONV: CONVOLUTIONS}
"""Words for `target_modules`, and the kinds of modules that they stand for."""

UNUSED = ("pooler",)
"""Modules that the task models either do not read, or read right before a head that is trained in full anyway."""

IDLE: dict[str, tuple[str, ...]] = dict.fromkeys(("detr", "table-transformer"), ("decoder.layers.0.self_attn",))
"""For each `model_type` the modules that compute, yet change no answer: DETR's decoder starts from zeros for every
query, so its first self-attention mixes equal values, and nothing in it ever gets a gradient."""


def set_targets(config: Any, model: nn.Module) -> list[str]:
    """Fills in what the recipe left open about the adapted modules, and makes sure that something is adapted.

    Args:
        config: A peft config with `target_modules`; changed in place. Its `modules_to_save` is complete.
        model: The base.

    Returns:
        The names of the modules that will carry an adapter.

    Raises:
        InputError: No module matches; with the nearest name and a few real ones.
    """
    fields = vars(config)
    if config.target_modules is None and fields.get("target_parameters"):
        return []
    peft_decides = False
    if config.target_modules is None:
        config.target_modules, peft_decides = _default_targets(config, model)
    given = config.target_modules
    words = {given} if isinstance(given, str) else set(given)
    if words & set(SHORTHANDS):
        found = {name for word in words & set(SHORTHANDS) for name in _all_of(word, config, model)}
        config.target_modules = found | (words - set(SHORTHANDS))
    matched = [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]
    if not matched:
        raise InputError(_nothing_matched(given, config, model))
    if "fan_in_fan_out" in fields:  # peft would warn at each load that it had to set it
        config.fan_in_fan_out = any(isinstance(model.get_submodule(name), Conv1D) for name in matched)
    if "feedforward_modules" in fields and config.feedforward_modules is None and not peft_decides:
        config.feedforward_modules = set(_feedforward(config, model, matched=matched))
    return matched


def inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a module is one of `modules` or lies inside one; the names may be the ends of full names."""
    return any(re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", name) for module in modules)


def head_wrappers(model: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    """The modules that are trained in full beside the adapter (the head), by their name in the base."""
    return {
        name.removeprefix("base_model.model.").removeprefix("base_model."): module
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def _all_of(word: str, config: Any, model: nn.Module) -> list[str]:
    """Every linear module, or every convolution, of the frozen base: never the head, only the asked layers.

    peft's own `all-linear` leaves out one classifier alone (not a pooler or pre_classifier without
    `modules_to_save`), and forgets `layers_to_transform`: full names match before the layer is looked at.
    A pooler is one layer right before the head, which is trained in full, or is not used at all: an adapter there
    only makes the folder larger. Who wants one names it in `target_modules`.
    """
    free = _free_modules(config, model, kinds=SHORTHANDS[word])
    refused = _refused(free, config) if word == ALL_CONV else {}
    layers = vars(config).get("layers_to_transform")
    wanted = {layers} if isinstance(layers, int) else set(layers or ())
    patterns = vars(config).get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    asked = [name for name in free if layers is None or _layer_index(name, patterns) in wanted]
    names = [name for name in asked if name not in refused]
    left_out = [refused[name] for name in asked if name in refused]
    if left_out:
        why = _counted(left_out)
        logger.info("all-conv: %d of %d convolutions get an adapter, without %s", len(names), len(asked), why)
    return names


def _refused(convolutions: Mapping[str, nn.Module], config: Any) -> dict[str, str]:
    """The convolutions that the method cannot adapt, with the reason."""
    reasons = {name: why_not(module, name, config) for name, module in convolutions.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _counted(reasons: Iterable[str]) -> str:
    """`17 depthwise ones, whose groups do not divide the rank (r = 8); 1 with dilation, ...`."""
    return "; ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def _free_modules(config: Any, model: nn.Module, *, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """The modules of some kinds outside the head and the output embeddings, by full name."""
    outputs = model.get_output_embeddings()  # type: ignore[operator]  # every transformers model has it
    family = str(model.config.model_type)  # type: ignore[union-attr]
    left_out = (*(vars(config).get("modules_to_save") or ()), *UNUSED, *IDLE.get(family, ()))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not outputs and not inside(name, left_out)
    }


def _layer_index(name: str, patterns: Sequence[str]) -> int | None:
    """The number of the layer a module lies in, `bert.encoder.layer.1.output.dense` -> 1."""
    for pattern in patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if match:
            return int(match.group(1))
    return None


def _default_targets(config: Any, model: nn.Module) -> tuple[Any, bool]:
    """LoRA: every linear module, or in a base without them every convolution; else what peft knows of this family.

    Returns:
        The targets, and whether they are peft's own.
    """
    linear = ALL_LINEAR if _free_modules(config, model, kinds=LINEAR) else ALL_CONV
    if config.peft_type == "LORA":
        return linear, False
    known = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].target_module_mapping
    family = model.config.model_type  # type: ignore[union-attr]
    if family in known:
        return list(known[family]), True
    if config.peft_type == "LN_TUNING":
        names = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        return [name for name in names if not inside(name, config.modules_to_save or ())], False
    return linear, False


def _feedforward(config: Any, model: nn.Module, *, matched: Sequence[str]) -> list[str]:
    """The targets of IA3 that lead down from the wide feed-forward layer; IA3 scales their input."""
    try:
        hidden = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    except AttributeError:  # a base of convolutions has no width of its own
        return []
    down = [name for name in matched if _sizes(model.get_submodule(name), hidden)]
    if isinstance(config.target_modules, str):
        return down
    targets = config.target_modules
    return [
        target
        for target in targets
        if any(name == target or name.endswith(f".{target}") for name in down)
        and all(name in down for name in matched if name == target or name.endswith(f".{target}"))
    ]


def _sizes(module: nn.Module, hidden: int) -> bool:
    """Whether a linear module leads from something wider down to the hidden size."""
    if isinstance(module, Conv1D):
        wide, narrow = module.weight.shape
        return bool(wide > hidden and narrow == hidden)
    return isinstance(module, nn.Linear) and module.in_features > hidden and module.out_features == hidden


def _nothing_matched(given: Any, config: Any, model: nn.Module) -> str:
    """The message for a recipe whose `target_modules` matches nothing."""
    modules = {word: _free_modules(config, model, kinds=kinds) for word, kinds in SHORTHANDS.items()}
    free = {word: list(found) for word, found in modules.items()}
    names = free[ALL_LINEAR] or free[ALL_CONV]
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    wanted = [given] if isinstance(given, str) else sorted(given)
    hint = next((near for near in (closest(one, [*ends, *names]) for one in wanted) if near), "")
    if ALL_LINEAR in wanted:
        hint = ""
    elif ALL_CONV in wanted:
        hint = f" It left out {_counted(_refused(modules[ALL_CONV], config).values())}." if free[ALL_CONV] else ""
    shown = wanted if len(wanted) <= 4 else [*wanted[:4], f"... {len(wanted)} names"]
    words = " or ".join(word for word, found in free.items() if found and word not in wanted) or "other names"
    count = f"{len(free[ALL_LINEAR])} linear modules, {len(free[ALL_CONV])} convolutions"
    return (
        f"peft_config.target_modules = {shown}: no module of {type(model).__name__} matches that peft can adapt.{hint} "
        f"Expected names of modules outside the head, or {words}. There are: {', '.join(ends)} "
        f"({count}; in full: {', '.join(names[:3])}, ...)."
    )
