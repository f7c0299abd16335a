"""Adapter and optimizer, whole, out of a trainer and back, whoever has cut them into shards: FSDP2, DeepSpeed, nobody.

What is gathered is gathered tensor by tensor, of what trains alone, never of the base. A whole optimizer state is that
of torch's `Optimizer.state_dict`, whatever it came from, so that a run can go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from lora_ft.ops.shards import cut_like, is_cut, let_go, piece, whole
from lora_ft.train.trainer import AdapterTrainer

WRAPPED = "_checkpoint_wrapped_module."
"""What FSDP's activation checkpointing puts into the names of parameters."""


def adapter_state(trainer: AdapterTrainer) -> dict[str, torch.Tensor] | None:
    """Adapter and head, whole, on the CPU of the main process; None on the others, which have to call it too."""
    found = {}
    for name, tensor in _parts(trainer).items():
        gathered = _whole_parameter(trainer, tensor)
        if trainer.args.should_save:
            found[name] = gathered.detach().to("cpu", copy=True).contiguous()
    return found if trainer.args.should_save else None


def restore_adapter(trainer: AdapterTrainer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts adapter and head back; all processes give the same tensors."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not (is_cut(model) or trainer.is_deepspeed_enabled):
        set_peft_model_state_dict(model, dict(tensors))
        return
    let_go(model)
    with torch.no_grad():
        for name, part in _parts(trainer).items():
            if trainer.is_deepspeed_enabled and part.requires_grad:
                _set_in_deepspeed(part, tensors[name])
            else:
                piece(part).copy_(piece(cut_like(tensors[name].to(part.dtype), part)))


def optimizer_state(trainer: AdapterTrainer) -> dict[str, Any] | None:
    """The optimizer's state, whole, on the main process; None on the others, which have to call it too."""
    if trainer.is_deepspeed_enabled:
        state = _deepspeed_state(trainer)
    else:
        assert trainer.optimizer is not None
        state = dict(trainer.optimizer.state_dict())
        state["state"] = {index: _all_whole(values) for index, values in state["state"].items()}
    return state if trainer.args.should_save else None


def restore_optimizer(trainer: AdapterTrainer, state: Mapping[str, Any]) -> None:
    """Puts the optimizer's state back; all processes give the same."""
    assert trainer.optimizer is not None
    if trainer.is_deepspeed_enabled:
        _restore_deepspeed(trainer, state)
        return
    parameters = [one for group in trainer.optimizer.param_groups for one in group["params"]]
    cut = {index: _cut_like(values, parameters[index]) for index, values in state["state"].items()}
    trainer.optimizer.load_state_dict({**state, "state": cut})


def trained(trainer: AdapterTrainer) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value, whole, of all that trains; all processes have to go through it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    let_go(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(WRAPPED, ""), _whole_parameter(trainer, parameter)


def _parts(trainer: AdapterTrainer) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are saved, as they are in the model, by peft's names."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    held = model.state_dict(keep_vars=True)
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, state_dict=held, save_embedding_layers=False)
    return found


def _whole_parameter(trainer: AdapterTrainer, tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of the model; of what DeepSpeed trains, the numbers in 32 bits that it trains."""
    if not trainer.is_deepspeed_enabled:
        return whole(tensor)
    import deepspeed

    if tensor.requires_grad:
        gathered: torch.Tensor = deepspeed.utils.safe_get_full_fp32_param(tensor)
        return gathered
    with deepspeed.zero.GatheredParameters([tensor]):  # does nothing to what is not cut
        return tensor.detach().clone()


def _all_whole(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: whole(value).to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _cut_like(values: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
    """What an optimizer remembers of a parameter, cut as that is, where it has its shape."""
    return {
        name: cut_like(value, parameter)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }


def _set_in_deepspeed(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Sets the numbers in 32 bits that DeepSpeed trains, and those that the model computes with."""
    import deepspeed

    value = value.to(parameter.device)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)
    deepspeed.utils.safe_set_full_fp32_param(parameter, value.float())


@dataclass(frozen=True)
class Flat:
    """What DeepSpeed has made of some parameters: one vector, of which each process trains a piece.

    Attributes:
        piece: That piece, which torch's optimizer knows instead of the parameters.
        parameters: Those of the model, in their order.
        group: Number of the optimizer's group that they belong to.
    """

    piece: torch.Tensor
    parameters: Sequence[torch.Tensor]
    group: int


def _flats(trainer: AdapterTrainer) -> tuple[Any, list[Flat]]:
    """The optimizer of torch within that of DeepSpeed (0.19), and all that it trains."""
    wrapped: Any = trainer.optimizer
    zero = wrapped.optimizer
    if trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        pieces, parameters, groups = zero.fp32_partitioned_groups_flat, zero.fp16_groups, zero.sub_group_to_group_id
    else:
        pieces, parameters = zero.single_partition_of_fp32_groups, zero.bit16_groups
        groups = range(len(pieces))
    return zero.optimizer, [Flat(one, parameters[index], groups[index]) for index, one in enumerate(pieces)]


def _deepspeed_state(trainer: AdapterTrainer) -> dict[str, Any]:
    """What torch's optimizer would say of itself if DeepSpeed had not joined and cut its parameters."""
    from deepspeed.utils import safe_get_full_optimizer_state

    inner, flats = _flats(trainer)
    _link(trainer, inner, flats)
    groups = [{name: value for name, value in one.items() if name != "params"} for one in inner.param_groups]
    indices: list[list[int]] = [[] for _ in groups]
    state: dict[int, dict[str, Any]] = {}
    for flat in flats:
        for parameter in flat.parameters:
            indices[flat.group].append(len(state))
            state[len(state)] = {
                name: safe_get_full_optimizer_state(parameter, name).to("cpu", copy=True)
                if _is_of_each_number(value)
                else value
                for name, value in inner.state[flat.piece].items()
            }
    return {"state": state, "param_groups": [{**one, "params": own} for one, own in zip(groups, indices, strict=True)]}


def _restore_deepspeed(trainer: AdapterTrainer, state: Mapping[str, Any]) -> None:
    """Puts back what `_deepspeed_state` returned, or the state of an optimizer that DeepSpeed had not cut."""
    from deepspeed.utils import safe_set_full_optimizer_state

    inner, flats = _flats(trainer)
    for settings, saved in zip(inner.param_groups, state["param_groups"], strict=True):
        settings.update({name: value for name, value in saved.items() if name != "params"})
    for flat in flats:
        remembered = state["state"].get(state["param_groups"][flat.group]["params"][0], {})
        inner.state[flat.piece].update(
            {name: torch.zeros_like(flat.piece) for name, value in remembered.items() if _is_of_each_number(value)}
        )
    _link(trainer, inner, flats)
    left = [iter(group["params"]) for group in state["param_groups"]]
    for flat in flats:
        for parameter in flat.parameters:
            for name, value in state["state"].get(next(left[flat.group]), {}).items():
                if _is_of_each_number(value):
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)
                else:
                    inner.state[flat.piece][name] = value


def _link(trainer: AdapterTrainer, inner: Any, flats: Sequence[Flat]) -> None:
    """Has DeepSpeed find the state of each parameter; by itself (0.19) it looks after the step of the first group."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if trainer.accelerator.state.deepspeed_plugin.zero_stage < 3:
        for flat in flats:
            lazy_init_hp_params_optimizer_state(flat.parameters, flat.piece, inner.state)


def _is_of_each_number(value: Any) -> bool:
    """Whether an optimizer remembers it of each number of a parameter, not of all of them together, as of steps."""
    return isinstance(value, torch.Tensor) and value.ndim > 0
