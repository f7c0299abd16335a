"""What a PEFT method needs before it is put on a base: its config object, and the traps peft leaves open."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.initial import changes_base
from lora_ft.adapters.targets import SHORTHANDS
from lora_ft.errors import InputError, closest

NEEDS_DATA = ("eva", "corda", "lora_ga", "loftq")  # initialisations that peft leaves to a script of their own
UNFIT = {
    "ADAPTION_PROMPT": "it works on LLaMA and Mistral for text generation only, and saves no head",
    "CARTRIDGE": "its key-value cache is distilled from documents by a script of its own",
    "MULTITASK_PROMPT_TUNING": "it needs task_ids in each batch",
    "POLY": "it needs task_ids in each batch",
    "SHADOW": "its second network takes the place of the base's output and knows no heads",
    "XLORA": "it mixes finished adapters and saves no head",
}


def build_config(
    peft_config: Mapping[str, Any], *, task_type: str | None, head: Sequence[str], total_steps: int | None
) -> Any:
    """Makes the peft config object of a method, with task type and head filled in.

    Args:
        peft_config: `peft_type` and the method's fields, as in the recipe.
        task_type: peft's TaskType, or None.
        head: Modules that are trained in full.
        total_steps: Optimizer steps of the run, for AdaLoRA.

    Returns:
        An instance of the method's config class.

    Raises:
        InputError: The method or a field does not exist, cannot save a head, or peft refuses a value.
    """
    given = copy.deepcopy(dict(peft_config))
    name = str(given.pop("peft_type", "LORA")).upper()
    known = {kind.value: kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    if name not in known:
        raise InputError(
            f"peft_config.peft_type = {name!r}: peft {peft.__version__} has no such method."
            f"{closest(name, known)} Expected one of {', '.join(sorted(known))}."
        )
    if name in UNFIT:
        raise InputError(f"peft_config.peft_type = {name!r}: {UNFIT[name]}. Choose another method, LORA for one.")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[known[name]]
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = [key for key in given if key not in fields]
    if unknown:
        raise InputError(
            f"peft_config.{unknown[0]} = {given[unknown[0]]!r}: {config_class.__name__} "
            f"(peft {peft.__version__}) has no field {unknown[0]!r}.{closest(unknown[0], fields)}"
        )
    if head and "modules_to_save" not in fields:
        raise InputError(
            f"peft_config.peft_type = {name!r}: {config_class.__name__} (peft {peft.__version__}) has no "
            f"modules_to_save, so the trained head {list(head)} could not be saved. Choose another method."
        )
    if name == "ADALORA" and given.get("total_step") is None:
        if total_steps is None:
            raise InputError(
                "peft_config.total_step: AdaLoRA plans its ranks by the optimizer steps of the run, which "
                "are unknown. Give peft_config.total_step."
            )
        given["total_step"] = total_steps
    if "modules_to_save" in fields:
        given["modules_to_save"] = list(dict.fromkeys([*head, *(given.get("modules_to_save") or ())])) or None
    if str(given.get("target_modules")).lower() in SHORTHANDS:
        # as a list: peft takes no layers_to_transform beside a string
        given["target_modules"] = [given["target_modules"].lower()]
    try:
        return config_class(**given, task_type=task_type)
    except (ValueError, TypeError) as error:
        raise InputError(f"peft_config ({name}): peft {peft.__version__} refuses it: {error}") from error


def check_head(config: Any, model: nn.Module, *, head: Sequence[str]) -> None:
    """Makes sure that every module that is to be trained in full exists.

    Args:
        config: The peft config.
        model: The base.
        head: Modules that the task trains in full; the others come from the recipe.

    Raises:
        InputError: A name matches nothing, or the method does not fit a task without text.
    """
    wanted = vars(config).get("modules_to_save") or ()
    names = [name for name, _ in model.named_modules() if name]
    for one in wanted:
        if not any(name == one or name.endswith(f".{one}") for name in names):
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
            source = "the head" if one in head else "peft_config.modules_to_save"
            raise InputError(
                f"{source} = {one!r}: {type(model).__name__} has no such module.{closest(one, ends)} "
                f"Modules at the top: {', '.join(name for name, _ in model.named_children())}."
            )
    if config.is_prompt_learning and config.task_type is None:
        raise InputError(
            f"peft_config.peft_type = {config.peft_type.value!r}: virtual tokens need a text task. Choose LORA."
        )


def check_initialisation(config: Any, model: nn.Module, *, matched: Sequence[str]) -> None:
    """Refuses initialisations that would silently train from something else than the recipe says.

    Args:
        config: The peft config.
        model: The base.
        matched: Names of the modules that will be adapted.

    Raises:
        InputError: The initialisation needs data, or cannot decompose these weights.
    """
    start = vars(config).get("init_lora_weights")
    if start in NEEDS_DATA:
        raise InputError(
            f"peft_config.init_lora_weights = {start!r}: peft fills these weights from data in a pass of its "
            "own, which lora_ft does not run. Expected true, gaussian, orthogonal, pissa, pissa_niter_4 or "
            "olora."
        )
    modules = {name: model.get_submodule(name) for name in matched}
    packed = [name for name, module in modules.items() if _is_packed(module)]
    if changes_base(config) and packed:
        raise InputError(
            f"peft_config.init_lora_weights = {start!r}: it decomposes the base's weights, but {packed[0]} "
            "is quantised. Leave quantization_config out, or use init_lora_weights: true."
        )
    turned = [name for name, module in modules.items() if isinstance(module, Conv1D)]
    if start == "olora" and turned:
        raise InputError(
            f"peft_config.init_lora_weights = 'olora': peft {peft.__version__} cannot decompose "
            f"{turned[0]}, a Conv1D (the GPT-2 family). Expected pissa, orthogonal or true."
        )


def set_prompt_sizes(config: Any, model: nn.Module) -> None:
    """Fills in the sizes that virtual tokens need; peft does not know every spelling (DistilBERT's `dim`).

    Args:
        config: The config of a prompt method; changed in place.
        model: The base.

    Raises:
        InputError: Prefix tuning on a base that takes no past keys and values.
    """
    base = model.config.get_text_config()  # type: ignore[union-attr,operator]
    takes = inspect.signature(model.base_model.forward).parameters  # type: ignore[union-attr]
    if config.peft_type == "PREFIX_TUNING" and "past_key_values" not in takes:
        raise InputError(
            f"peft_config.peft_type = 'PREFIX_TUNING': {type(model).__name__} takes no past_key_values, "
            "which carry the prefix. Choose another method, LORA for one."
        )
    config.token_dim = config.token_dim or base.hidden_size
    config.num_layers = config.num_layers or base.num_hidden_layers
    config.num_attention_heads = config.num_attention_heads or base.num_attention_heads


def _is_packed(module: nn.Module) -> bool:
    """Whether the module's weight is stored in 4 or 8 bits."""
    weight = vars(module)["_parameters"].get("weight")
    return weight is not None and not weight.is_floating_point()
