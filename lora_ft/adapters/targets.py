"""Which modules an adapter goes on: `all-linear`, each method's default, an error when nothing matches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.errors import InputError, closest

LINEAR = (nn.Linear, Conv1D)  # bitsandbytes' Linear4bit and Linear8bitLt are subclasses of nn.Linear

ALL_LINEAR = "all-linear"


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
    if config.target_modules in (ALL_LINEAR, {ALL_LINEAR}, [ALL_LINEAR]):
        config.target_modules = set(_all_linear(config, model))
    matched = [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]
    if not matched:
        raise InputError(_nothing_matched(config, model))
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


def _all_linear(config: Any, model: nn.Module) -> list[str]:
    """Every linear module of the frozen base: never head, pooler or output embeddings, only the asked layers.

    peft's own `all-linear` leaves out one classifier alone (not a pooler or pre_classifier without
    `modules_to_save`), and forgets `layers_to_transform`: full names match before the layer is looked at.
    A pooler is one layer right before the head, which is trained in full: an adapter there only makes the
    folder larger. Who wants one names it in `target_modules`.
    """
    outputs = model.get_output_embeddings()  # type: ignore[operator]  # every transformers model has it
    left_out = (*(config.modules_to_save or ()), "pooler")
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, LINEAR)]
    names = [name for name, module in linear if module is not outputs and not inside(name, left_out)]
    layers = vars(config).get("layers_to_transform")
    if layers is None:
        return names
    wanted = {layers} if isinstance(layers, int) else set(layers)
    patterns = vars(config).get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = ((name, _layer_index(name, patterns)) for name in names)
    return [name for name, index in found if index in wanted]


def _layer_index(name: str, patterns: Sequence[str]) -> int | None:
    """The number of the layer a module lies in, `bert.encoder.layer.1.output.dense` -> 1."""
    for pattern in patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if match:
            return int(match.group(1))
    return None


def _default_targets(config: Any, model: nn.Module) -> tuple[Any, bool]:
    """What peft adapts by default in this family (and that it does), else every norm or linear module."""
    known = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].target_module_mapping
    family = model.config.model_type  # type: ignore[union-attr]
    if family in known:
        return list(known[family]), True
    if config.peft_type == "LN_TUNING":
        names = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        return [name for name in names if not inside(name, config.modules_to_save or ())], False
    return ALL_LINEAR, False


def _feedforward(config: Any, model: nn.Module, *, matched: Sequence[str]) -> list[str]:
    """The targets of IA3 that lead down from the wide feed-forward layer; IA3 scales their input."""
    hidden = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
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


def _nothing_matched(config: Any, model: nn.Module) -> str:
    """The message for a recipe whose `target_modules` matches nothing."""
    given = config.target_modules
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    free = [name for name in linear if not inside(name, config.modules_to_save or ())]
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in free))
    wanted = [given] if isinstance(given, str) else sorted(given)
    hint = next((near for near in (closest(one, [*ends, *free]) for one in wanted) if near), "")
    shown = wanted if len(wanted) <= 4 else [*wanted[:4], f"... {len(wanted)} names"]
    return (
        f"peft_config.target_modules = {shown}: no module of {type(model).__name__} matches.{hint} "
        f"Expected names of modules outside the head, or all-linear. There are: {', '.join(ends)} "
        f"(in full: {', '.join(free[:3])}, ...)."
    )
