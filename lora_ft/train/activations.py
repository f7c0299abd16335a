"""What a forward pass keeps for the backward pass, layer by layer; a few layers are computed again instead.

    activation checkpointing: 2 of 6 layers are computed again; 16 rows x 256 tokens keep 0.31 GB, 0.42 without it

Gradients stay the same to the last bit: chance is put back before a layer is computed again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves  # torch (2.13) has no public name for it
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_ft.train.first_batch import Heaviest, as_it_was, loss_of, same_chance, size_of, worst_batches
from lora_ft.train.trainer import AdapterTrainer

logger = logging.getLogger(__name__)

RAN, KEPT = "checkpointed_layers", "kept_for_backward"
IN_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")
"""Methods whose adapter is a cache of keys and values, which a layer that is computed again is not given."""

Storages = dict[StorageWeakRef, int]
"""Storage -> its bytes; a weak reference tells storages apart even where one got the memory of another."""


@dataclass(frozen=True)
class Account:
    """What one forward pass keeps for the backward pass; parameters and buffers are not counted.

    Attributes:
        saved: Of each layer, in the order of the model, what is saved within it; nothing where it has no graph.
        inputs: Of each layer what it is given, which is all that is kept of it if it is computed again.
        outside: What is saved outside of layers, when none, one, two, ... of them have been run.
    """

    saved: tuple[Storages, ...]
    inputs: tuple[Storages, ...]
    outside: tuple[Storages, ...]

    @property
    def layers(self) -> list[int]:
        """The layers that the backward pass goes through: from the lowest one with an adapter up."""
        return [layer for layer, saved in enumerate(self.saved) if saved]

    def held_bytes(self, again: Collection[int] = ()) -> int:
        """What is kept when the forward pass is done.

        Args:
            again: The layers that are computed again.
        """
        return self._bytes(len(self.saved), again)

    def peak_bytes(self, again: Collection[int] = ()) -> int:
        """The most that is kept: after the forward pass, or when a layer is there again and all above it is gone.

        Args:
            again: The layers that are computed again.
        """
        there_again = [self._bytes(layer + 1, [one for one in again if one != layer]) for layer in again]
        return max(self.held_bytes(again), *there_again, 0)

    def choose(self, limit_bytes: float) -> list[int]:
        """The fewest layers that must be computed again for the most that is kept to be within a limit.

        So many of those that free most are tried, and so many of the lowest: when these are there again, more is gone.

        Returns:
            The layers; where no choice is within the limit, those that keep least.
        """
        frees = {layer: self.held_bytes() - self.held_bytes([layer]) for layer in self.layers}
        ranked = sorted(self.layers, key=lambda layer: (-frees[layer], layer))
        best: list[int] = []
        for count in range(1, len(ranked) + 1):
            if self.peak_bytes(best) <= limit_bytes:
                break
            best = min((best, sorted(ranked[:count]), self.layers[:count]), key=self.peak_bytes)
        return best

    def _bytes(self, layers: int, again: Collection[int]) -> int:
        """What is kept by the lowest so many layers, and outside until they have been run."""
        kept: Storages = {}
        for part in self.outside[: layers + 1]:
            kept.update(part)
        for layer in range(layers):
            kept.update(self.inputs[layer] if layer in again else self.saved[layer])
        return sum(kept.values())


class Measuring:
    """Measures what is saved while a model is run forward; nothing is kept, so it needs no more memory than inference.

    Args:
        model: The model.
        layers: Its layers, see `layers_of`.
    """

    def __init__(self, model: nn.Module, layers: list[GradientCheckpointingLayer]) -> None:
        self.layers = layers
        frozen = (*model.parameters(), *model.buffers())
        self._left_out = {_reference(one.untyped_storage()) for one in frozen}
        self._saved: list[Storages] = [{} for _ in layers]
        self._inputs: list[Storages] = [{} for _ in layers]
        self._outside: list[Storages] = [{} for _ in range(len(layers) + 1)]
        self._inside: int | None = None
        self._done = 0

    @property
    def account(self) -> Account:
        """What was saved until now."""
        return Account(tuple(self._saved), tuple(self._inputs), tuple(self._outside))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures forward passes; what they return cannot be sent backward."""
        hooks = []
        for number, layer in enumerate(self.layers):
            hooks += [
                layer.register_forward_pre_hook(partial(self._enters, number), with_kwargs=True),
                layer.register_forward_hook(partial(self._leaves, number)),
            ]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, _never):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enters(self, number: int, _: nn.Module, *given: Any) -> None:
        self._inside = number
        if torch.is_grad_enabled():
            for one in tree_leaves(given):
                if isinstance(one, torch.Tensor):
                    self._count(one, self._inputs[number])

    def _leaves(self, number: int, *_: Any) -> None:
        self._inside, self._done = None, number + 1

    def _save(self, tensor: torch.Tensor) -> None:
        self._count(tensor, self._outside[self._done] if self._inside is None else self._saved[self._inside])

    def _count(self, tensor: torch.Tensor, where: Storages) -> None:
        storage = tensor.untyped_storage()
        reference = _reference(storage)
        if reference not in self._left_out:
            where[reference] = storage.nbytes()


def _reference(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _never(_: None) -> torch.Tensor:
    raise AssertionError("what is only measured is not sent backward")


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that transformers can compute again, in the order of the model, without those within others."""
    found: dict[str, GradientCheckpointingLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(name.startswith(f"{one}.") for one in found):
            found[name] = module
    return list(found.values())


def compute_again(layers: list[GradientCheckpointingLayer], again: Collection[int]) -> None:
    """Has some layers computed again in the backward pass, and the others not.

    Args:
        layers: All layers of a model.
        again: Numbers of those that are.
    """
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number in again
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


class ActivationCheckpointing(transformers.TrainerCallback):  # type: ignore[misc]
    """Chooses which layers are computed again, by the longest batch, before the first step.

    Args:
        trainer: The trainer of the run.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Chooses: model and precision are prepared, and no row has been learned."""
        self.trainer.ran[RAN] = arrange(self.trainer)


def arrange(trainer: AdapterTrainer) -> int | str:
    """Has the layers computed again that the recipe asks for.

    `training_args.gradient_checkpointing` means all that the backward pass goes through. transformers (5.23) also asks
    gradients of the embeddings for it, which only reentrant checkpointing needs, and which draw the backward pass
    through every layer below the adapters.

    Returns:
        How many layers, or why it was left to transformers, or off.
    """
    limit_gb, arguments = trainer.prepared.recipe.lean.activation_limit_gb, trainer.args
    layers, asked = layers_of(trainer.model), bool(arguments.activation_checkpointing)
    if not asked and limit_gb is None:
        return 0
    if asked and not layers:
        return "as transformers does it"
    if asked:
        for module in trainer.model.modules():
            if isinstance(module, transformers.PreTrainedModel):
                module.disable_input_require_grads()
    off = "" if asked else _off(trainer, layers)
    if off:
        logger.warning("lean.activation_limit_gb: off, %s", off)
        return f"off: {off}"
    if _in_step(trainer):  # a layer without a graph costs nothing
        return sum(bool(layer.gradient_checkpointing) for layer in layers)
    return _all(trainer, layers) if limit_gb is None else _as_many(trainer, layers, limit_gb)


def _in_step(trainer: AdapterTrainer) -> bool:
    """Whether no process can try a batch alone."""
    return trainer.in_step or trainer.args.deepspeed_plugin is not None


def _off(trainer: AdapterTrainer, layers: list[GradientCheckpointingLayer]) -> str:
    """Why a limit cannot be kept; empty if it can."""
    if _in_step(trainer):
        return "weights or optimizer are cut into shards; training_args.gradient_checkpointing: true takes all layers"
    if not layers:
        return "transformers can compute no layer of this base again"
    method = trainer.prepared.recipe.peft_config["peft_type"]
    return f"a layer that is computed again is not given what {method} adds" if method in IN_THE_CACHE else ""


def _all(trainer: AdapterTrainer, layers: list[GradientCheckpointingLayer]) -> int:
    """Turns it off for layers below the lowest adapter, which have nothing to be computed again for."""
    account = measured(trainer, layers, Heaviest.of(trainer.train_dataset["length"][:], size=1))
    again = [number for number in account.layers if layers[number].gradient_checkpointing]
    for number in set(range(len(layers))) - set(again):
        layers[number].gradient_checkpointing = False
    logger.info("activation checkpointing: %d of %d layers are computed again", len(again), len(layers))
    return len(again)


def _as_many(trainer: AdapterTrainer, layers: list[GradientCheckpointingLayer], limit_gb: float) -> int:
    """Turns it on for as many layers as the limit asks for."""
    compute_again(layers, ())
    accounts = [(measured(trainer, layers, worst), worst) for worst in worst_batches(trainer)]
    account, worst = max(accounts, key=lambda one: one[0].held_bytes())
    again = account.choose(limit_gb * 1e9)
    compute_again(layers, again)
    peak, without = account.peak_bytes(again) / 1e9, account.held_bytes() / 1e9
    trainer.ran[KEPT] = {
        "bytes": account.peak_bytes(again), "without": account.held_bytes(), "limit": int(limit_gb * 1e9),
    }  # fmt: skip
    told = f"{len(again)} of {len(layers)} layers are computed again; {size_of(trainer, worst)} keep {peak:.3g} GB"
    logger.info("activation checkpointing: %s, %.3g without it (limit %g)", told, without, limit_gb)
    if peak > limit_gb:
        logger.warning(
            "lean.activation_limit_gb: %g cannot be kept, %.3g GB is the least for %s. Halve %s, and double "
            "gradient_accumulation_steps%s",
            limit_gb, peak, size_of(trainer, worst),
            "training_args.per_device_train_batch_size" if trainer.batches is None else "lean.max_tokens_per_batch",
            "; or lower processor.max_length" if "max_length" in trainer.prepared.problem.settings else "",
        )  # fmt: skip
    return len(again)


def measured(trainer: AdapterTrainer, layers: list[GradientCheckpointingLayer], batch: Heaviest) -> Account:
    """What a forward pass of a batch keeps for the backward pass; it leaves no trace.

    Args:
        trainer: The trainer, with model and optimizer prepared.
        layers: The model's layers.
        batch: The batch.
    """
    again = [number for number, layer in enumerate(layers) if layer.gradient_checkpointing]
    functions = {number: layers[number]._gradient_checkpointing_func for number in again}
    compute_again(layers, ())
    measuring = Measuring(trainer.model, layers)
    wrapped: Any = trainer.optimizer
    try:
        with same_chance(trainer.args.device), as_it_was(trainer.model, wrapped.optimizer), measuring.running():
            trainer.model.train()
            loss_of(trainer, batch.rows)
    finally:
        for number, function in functions.items():
            layers[number].gradient_checkpointing, layers[number]._gradient_checkpointing_func = True, function
    return measuring.account
