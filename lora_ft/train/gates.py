"""Gates: a run that would end silently wrong stops here with one clear error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers

from lora_ft.errors import GateError
from lora_ft.ops.shards import whole

IGNORED_LABEL = -100


def check_world_size(asked: int | None, actual: int) -> None:
    """Stops a run that has not as many processes as were asked for.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing (accelerate 1.15).

    Args:
        asked: Processes asked for, or None if nobody said.
        actual: Processes there are.

    Raises:
        GateError: The two differ.
    """
    if asked is not None and asked != actual:
        raise GateError(
            f"world size: {asked} processes were asked for, {actual} started. "
            "For several processes on one CPU machine: accelerate launch --config_file launch/accelerate/cpu.yaml "
            "-m lora_ft train RECIPE",
            gate="world-size",
        )


def check_masked(labels: Iterable[Any]) -> None:
    """Stops a run whose rows teach nothing because every label is masked.

    Args:
        labels: Encoded labels of the training rows: numbers, or lists of numbers; read until one is found.

    Raises:
        GateError: All labels are masked.
    """
    seen = 0
    for row in labels:
        for value in row if isinstance(row, (list, tuple)) else (row,):
            seen += 1
            if value != IGNORED_LABEL:
                return
    raise GateError(
        f"labels: all {seen} labels of the training rows are masked ({IGNORED_LABEL}): the loss would be 0.0 "
        "and nothing would be learned. Check dataset.columns and the label column",
        gate="masked-labels",
    )


def check_alike(labels: Sequence[Any], *, labels_named: Sequence[str]) -> None:
    """Stops a run whose rows all have the same label.

    Args:
        labels: Encoded labels of the training rows: class numbers, 0/1 vectors or floats.
        labels_named: All labels in order; empty for regression.

    Raises:
        GateError: There is nothing to tell apart.
    """
    kinds = {tuple(row) if isinstance(row, (list, tuple)) else row for row in labels}
    if len(kinds) == 1:
        (only,) = kinds
        shown = labels_named[only] if isinstance(only, int) and labels_named else only
        raise GateError(
            f"labels: all {len(labels)} training rows have the same label ({shown}): there is nothing to tell apart. "
            "Check dataset.columns.label and the training files",
            gate="one-label",
        )


def check_finite(finite: bool, *, step: int, learning_rate: float) -> None:
    """Stops a run whose loss is not a number.

    Args:
        finite: Whether all losses so far were finite.
        step: The optimizer step, from 0.
        learning_rate: The learning rate at that step.

    Raises:
        GateError: A loss was NaN or infinite.
    """
    if not finite:
        raise GateError(
            f"loss: not finite at or shortly before step {step + 1} (learning rate {learning_rate:.2g}). "
            "Lower training_args.learning_rate, lengthen training_args.warmup_steps, or leave out fp16",
            gate="finite-loss",
        )


def check_moved(named_parameters: Iterable[tuple[str, torch.Tensor]], *, initially_zero: frozenset[str]) -> None:
    """Stops the saving of an adapter whose zero-initialised tensors (`lora_B`) are still all zero.

    Args:
        named_parameters: The trainable parameters at the end of the run.
        initially_zero: Names of those that were all zero before the first step.

    Raises:
        GateError: At least one never moved.
    """
    still = [name for name, tensor in named_parameters if name in initially_zero and not bool(tensor.any())]
    if still:
        raise GateError(
            f"adapter: {len(still)} of {len(initially_zero)} zero-initialised tensors are still all zero after "
            f"training (first: {still[0]}): that part of the adapter does nothing. Check that "
            "training_args.learning_rate is above 0 for at least one step, or leave these modules out of "
            "peft_config.target_modules",
            gate="moved",
        )


def zero_tensors(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
    """Names of the trainable adapter tensors that are all zero, such as `lora_B` before the first step."""
    return frozenset(
        name
        for name, tensor in named_parameters
        if tensor.requires_grad and ".modules_to_save." not in name and not bool(tensor.any())
    )


class GradientGate(transformers.TrainerCallback):  # type: ignore[misc]
    """Stops a run in which a trainable tensor gets no gradient.

    A missing gradient stops the run at the first step. A gradient of zeros is allowed while zero-initialised factors
    hide it (`lora_A` has none until `lora_B` has moved); two steps with a learning rate above zero later every
    tensor must have had a gradient that is not all zero. Steps that cannot teach every tensor do not count.

    Attributes:
        passes_over_next: Whether the next step is no proof, as its batches lack what a part of the loss is about:
            without any object, boxes get no gradient, nor does what RT-DETR learns of noisy boxes.
    """

    def __init__(self) -> None:
        self.passes_over_next = False
        self._silent: set[str] | None = None
        self._moved_steps = 0

    @property
    def watches(self) -> bool:
        """Whether there are tensors left that had no gradient yet."""
        return self._silent is None or bool(self._silent)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks at the gradients of one step."""
        if args.deepspeed_plugin is not None or not self.watches:
            return  # DeepSpeed has made its step within the backward pass, and nothing is left to look at
        if self.passes_over_next:
            return
        trainable = {name: p for name, p in context["model"].named_parameters() if p.requires_grad}
        if self._silent is None:
            missing = [name for name, tensor in trainable.items() if tensor.grad is None]
            if missing:
                raise _no_gradient(missing, len(trainable))
            self._silent = set(trainable)
        gradients = {name: whole(tensor.grad) for name, tensor in trainable.items()}
        if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            return  # with fp16 the first losses are scaled too high, and the scaler skips such a step
        self._silent -= {name for name in self._silent if bool(gradients[name].any())}
        if self._silent and self._moved_steps >= 2:
            raise _no_gradient(sorted(self._silent), len(trainable))
        rates = [group["lr"] for group in context["optimizer"].param_groups]
        self._moved_steps += int(max(rates) > 0)


def _no_gradient(names: Sequence[str], total: int) -> GateError:
    return GateError(
        f"gradients: {len(names)} of {total} trainable tensors get none (first: {names[0]}): they would never learn. "
        "Known causes: gradient checkpointing with use_reentrant: true, and target_modules that the forward pass does "
        "not use. Set training_args.gradient_checkpointing_kwargs: {use_reentrant: false}, or leave them out",
        gate="gradients",
    )
