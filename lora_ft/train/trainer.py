"""transformers' Trainer with the few things it cannot do: our batches, our loss, and a look at every loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from lora_ft.adapters.optimizers import make_optimizer
from lora_ft.data.batching import LengthGroupedSampler, padding_ratio
from lora_ft.recipe.schema import Recipe
from lora_ft.train.gates import check_finite

FINITE_CHECK_STEPS = 10


class RankAllocation(transformers.TrainerCallback):  # type: ignore[misc]
    """Lets AdaLoRA give its rank budget to the modules that need it; nobody else calls it in the Trainer's loop.

    Source: Zhang et al., AdaLoRA (ICLR 2023), algorithm 1; peft's `AdaLoraModel.update_and_allocate`.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks at weights and gradients after each optimizer step, while the gradients are still there."""
        context["model"].base_model.update_and_allocate(state.global_step + 1)


class AdapterTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer for one adapter.

    Rows are grouped by length over the *global* batch, so that their order does not depend on the number of processes;
    evaluation sorts them by length too; peft's own optimizers can be named in the recipe; a loss that is not finite
    stops the run (transformers replaces it by the running mean before it is logged).

    Args:
        recipe: The recipe, for the sections `optimizer` and `peft_config`.
        loss: `f(outputs, labels, num_items_in_batch)`, see `Task.loss`.
        **arguments: Those of `transformers.Trainer`.
    """

    def __init__(self, *, recipe: Recipe, loss: Callable[..., torch.Tensor], **arguments: Any) -> None:
        super().__init__(compute_loss_func=loss, **arguments)
        self.recipe = recipe
        self._finite = torch.ones((), dtype=torch.bool, device=self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        return LengthGroupedSampler(
            rows["length"][:],
            global_batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Longest rows first, like lengths together: the metrics do not depend on the order, the time does."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        lengths = eval_dataset["length"][:]
        return sorted(range(len(lengths)), key=lambda row: -int(lengths[row]))

    def padding(self) -> float:
        """Tokens computed over real tokens in the first epoch."""
        lengths, size = self.train_dataset["length"][:], self.args.train_batch_size
        order = list(self._get_train_sampler() or range(len(lengths)))
        return padding_ratio(lengths, (order[start : start + size] for start in range(0, len(order), size)))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Creates peft's optimizer if the recipe names one, else what `training_args.optim` says."""
        if self.optimizer is None:  # type: ignore[has-type]
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = make_optimizer(
                self.model,
                self.recipe.optimizer,
                optimizer_class=optimizer_class,
                optimizer_kwargs={**optimizer_kwargs, "weight_decay": self.args.weight_decay},
                r=int(self.recipe.peft_config.get("r", 8)),
                lora_alpha=int(self.recipe.peft_config.get("lora_alpha", 8)),
            )
        optimizer: torch.optim.Optimizer = self.optimizer or super().create_optimizer(model)
        return optimizer

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward; every loss is looked at, on an accelerator without waiting for it each step."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._finite &= torch.isfinite(loss).all()
        if loss.device.type == "cpu" or self.state.global_step % FINITE_CHECK_STEPS == 0:
            check_finite(bool(self._finite), step=self.state.global_step, learning_rate=self._get_learning_rate())
        return loss
