"""What a training loop knows besides weights and optimizer: chance, sums of losses, what is still to be done."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import transformers

from lora_ft.train.trainer import AdapterTrainer


@dataclass(frozen=True)
class Pending:
    """What was due after the step of a checkpoint and had not been done; done first when the run goes on.

    Attributes:
        log: Whether the step was to be logged.
        evaluate: Whether an evaluation was due, or given up in its middle.
        save: Whether a checkpoint was due after it.
        grad_norm: Of the step.
        learning_rate: Of the step.
        ends_epoch: Whether an epoch ended with the step, and what is due then is still to come.
    """

    log: bool
    evaluate: bool
    save: bool
    grad_norm: torch.Tensor | float | None
    learning_rate: float | None
    ends_epoch: bool

    @classmethod
    def of(
        cls,
        control: transformers.TrainerControl,
        *,
        grad_norm: torch.Tensor | float | None,
        learning_rate: float | None,
        ends_epoch: bool,
    ) -> Pending:
        """What the Trainer's control says is due."""
        due = (control.should_log, control.should_evaluate, control.should_save)
        return cls(*due, grad_norm, learning_rate, ends_epoch)

    def as_state(self) -> dict[str, Any]:
        """For a checkpoint; only here a device is asked for the norm."""
        return {**asdict(self), "grad_norm": None if self.grad_norm is None else float(self.grad_norm)}


def chance(device: torch.device) -> dict[str, Any]:
    """The state of every random generator of this process.

    Args:
        device: The device of this process; the state of its generator is kept where it is a GPU.
    """
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def put_back(state: Mapping[str, Any], device: torch.device) -> None:
    """Sets every random generator of this process to a state that `chance` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def of_rank(trainer: AdapterTrainer, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What only this process knows of the loop.

    Args:
        trainer: The trainer, between two steps.
        drawn: Where its random generators were after the step.
    """
    return {
        "chance": dict(drawn),
        "loss": trainer._tr_loss.detach().cpu(),
        "watch": trainer.watch.state(),
    }


def of_run(trainer: AdapterTrainer, pending: Pending | None) -> dict[str, Any]:
    """What all processes know of the loop."""
    return {
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "stopped": bool(trainer.control.should_training_stop),
        "patience": [one.early_stopping_patience_counter for one in trainer.early_stopping],
        "pending": pending.as_state() if pending is not None else None,
        "ranks_of_adalora": adalora_state(trainer),
    }


def restore(
    trainer: AdapterTrainer, run: Mapping[str, Any], ranks: list[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Puts the loop back to where it was.

    Args:
        trainer: The trainer, at the beginning of training.
        run: What `of_run` said.
        ranks: What `of_rank` said on every process.

    Returns:
        The generators' states of this process; None where there were other processes then, whose chance is not ours.
    """
    rank, same = int(trainer.args.process_index), len(ranks) == int(trainer.args.world_size)
    losses = torch.stack([one["loss"] for one in ranks])
    # the loss that is logged is the mean over the processes
    trainer._tr_loss = (losses[rank] if same else losses.mean()).to(trainer.args.device)
    trainer._total_loss_scalar = run["total_loss"]
    trainer._globalstep_last_logged = run["last_logged"]
    for callback, counted in zip(trainer.early_stopping, run["patience"], strict=True):
        callback.early_stopping_patience_counter = counted
    trainer.watch.restore(ranks[rank if same else 0]["watch"])
    if run["ranks_of_adalora"] is not None:
        restore_adalora(trainer, run["ranks_of_adalora"])
    return ranks[rank]["chance"] if same else None


def adalora_state(trainer: AdapterTrainer) -> dict[str, Any] | None:
    """What AdaLoRA remembers of how much each rank matters, and its tensors with the ranks that it masked.

    peft (0.21) keeps the former in plain dictionaries that nobody saves, and saves the latter without what is masked.
    """
    if trainer.prepared.recipe.peft_config["peft_type"] != "ADALORA":
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    allocator = model.base_model.rankallocator
    return {
        "importance": [_on(device="cpu", values=one) for one in _importance(allocator)],
        "tensors": {name: one.detach().cpu() for name, one in model.named_parameters() if one.requires_grad},
        "pattern": model.peft_config["default"].rank_pattern,
    }


def restore_adalora(trainer: AdapterTrainer, state: Mapping[str, Any]) -> None:
    """Puts back what `adalora_state` returned."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    allocator = model.base_model.rankallocator
    for own, saved in zip(_importance(allocator), state["importance"], strict=True):
        own.clear()
        own.update(_on(device=trainer.args.device, values=saved))
    model.peft_config["default"].rank_pattern = state["pattern"]
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad:
                one.copy_(state["tensors"][name])


def _importance(allocator: Any) -> tuple[dict[str, torch.Tensor], ...]:
    return allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc


def _on(*, device: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in values.items()}
