"""What is saved of a trained model: adapter and head, for the original base, and its config; never the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from lora_ft.adapters.initial import changes_base, config_for_original_base, for_original_base, initial_adapter
from lora_ft.adapters.targets import head_wrappers
from lora_ft.errors import AdapterError


def adapter_tensors(
    model: PeftModel, *, base_name: str, tensors: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What is saved of a trained model: adapter and head, for the original base, on the CPU.

    Args:
        model: The trained model.
        base_name: What goes into `base_model_name_or_path`.
        tensors: Adapter and head by peft's names, where a process has but pieces of them; None: those of the model.

    Returns:
        Tensors by peft's names, and the content of `adapter_config.json`.

    Raises:
        AdapterError: Weights of the base are among them.
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False) if tensors is None else dict(tensors)
    config = copy.deepcopy(model.peft_config["default"])
    if changes_base(config):
        state = for_original_base(state, initial_adapter(model))
        config_for_original_base(config)
    refuse_base_weights(model, state)
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, _minimal(config, model)


def refuse_base_weights(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Makes sure that only the adapter and its head are saved.

    Args:
        model: The trained model.
        state: What is to be saved.

    Raises:
        AdapterError: A frozen weight of the base is among it, named with its size.
    """
    heads = tuple(head_wrappers(model))
    frozen = {
        name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and ".original_module." not in name
    }
    plain = {name: name.removeprefix("base_model.").removeprefix("model.") for name in state}
    intruders = {
        name: state[name].nbytes
        for name, short in plain.items()
        if short in frozen and not any(short.startswith(f"{head}.") for head in heads)
    }
    if intruders:
        largest = max(intruders, key=lambda name: intruders[name])
        raise AdapterError(
            f"adapter: {len(intruders)} frozen tensors of the base would be saved, "
            f"{sum(intruders.values()) / 1e6:.2f} MB (largest: {largest}). An adapter folder never holds "
            "the base."
        )


def _minimal(config: Any, model: PeftModel) -> dict[str, Any]:
    """The config without what is off, so that an older peft without a new option still reads it."""
    content = {key: _jsonable(value) for key, value in config.to_dict().items()}
    if config.task_type is None:
        base_class = type(model.get_base_model())
        content["auto_mapping"] = {
            "base_model_class": base_class.__name__,
            "parent_library": base_class.__module__,
        }
    # without feedforward_modules, be it empty, peft cannot load an IA3 of a family that it does not know
    kept = ("task_type", "modules_to_save", "target_modules", "inference_mode", "feedforward_modules")
    return {key: value for key, value in content.items() if key in kept or value not in (None, False, {}, [])}


def _jsonable(value: Any) -> Any:
    """Sets as sorted lists, enums as their values."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
