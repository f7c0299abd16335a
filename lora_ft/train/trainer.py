"""transformers' Trainer with the few things it cannot do: our batches, our loss and metrics, a look at every loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from lora_ft.adapters.optimizers import make_optimizer
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.balancing import DrawnSampler
from lora_ft.data.batching import LengthGroupedSampler, padding_ratio
from lora_ft.data.encode import LazySplit
from lora_ft.models.precision import Precision
from lora_ft.train.gates import GradientGate
from lora_ft.train.gates_loss import LossWatch
from lora_ft.train.measure import Split, measure
from lora_ft.train.weights import class_draw, training_loss


class RankAllocation(transformers.TrainerCallback):  # type: ignore[misc]
    """Lets AdaLoRA give its rank budget to the modules that need it; nobody else calls it in the Trainer's loop.

    Source: Zhang et al., AdaLoRA (ICLR 2023), algorithm 1; peft's `AdaLoraModel.update_and_allocate`.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks at weights and gradients after each optimizer step, while the gradients are still there."""
        context["model"].base_model.update_and_allocate(state.global_step + 1)


class EpochOfRows(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells rows that are encoded as they are read which epoch it is, so that they are varied anew in each.

    accelerate 1.15 tells a dataset only where its sampler does not want to know, and on several processes ours does.

    Args:
        rows: The training rows.
    """

    def __init__(self, rows: LazySplit) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Says it before the first row of an epoch is read."""
        self.rows.set_epoch(int(state.epoch))


class AdapterTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer for one adapter.

    Rows are grouped by length over the *global* batch, so that their order does not depend on the number of processes.
    Loss and metrics are the task's; evaluation decodes batch by batch, each row exactly once over all processes. peft's
    own optimizers can be named in the recipe. A loss that is not finite stops the run (transformers replaces it by the
    running mean before it is logged).

    Args:
        prepared: Task, problem, rows, features and recipe of the run.
        precision: What the model computes in.
        splits: The splits that can be measured on.
        class_weight: One weight a label, or None.
        new_head: Whether the head was initialised for this run.
        **arguments: Those of `transformers.Trainer`.
    """

    control: transformers.TrainerControl
    loss_is_scaled_for_ga = True  # the loss is a sum over the items of all accumulated batches

    def __init__(
        self,
        *,
        prepared: Prepared,
        precision: Precision,
        splits: Mapping[str, Split],
        class_weight: Sequence[float] | None,
        new_head: bool,
        **arguments: Any,
    ) -> None:
        validation = splits.get("validation")
        super().__init__(
            train_dataset=prepared.features["train"],
            eval_dataset=validation.features if validation else None,
            data_collator=prepared.task.collator(prepared.problem, training=True),
            processing_class=prepared.problem.processor,
            **arguments,
        )
        if isinstance(self.train_dataset, LazySplit):
            self.add_callback(EpochOfRows(self.train_dataset))
        self.prepared = prepared
        self.precision = precision
        self.splits = splits
        self.class_weight = class_weight
        self.training_problem = replace(
            prepared.problem, loss={**prepared.problem.loss, **training_loss(prepared)}
        )  # evaluations measure the plain loss
        self.draw = class_draw(prepared, seed=self._data_seed)
        self._gates = [one for one in self.callback_handler.callbacks if isinstance(one, GradientGate)]
        self.watch = LossWatch(
            self.args.device,
            off=prepared.recipe.checks_off,
            uniform=self._loss_of_chance(new_head=new_head),
            new_head=new_head,
        )

    def _loss_of_chance(self, *, new_head: bool) -> float | None:
        """The loss of equal probabilities; None where the first loss says nothing beside it.

        A base with classes of its own may be sure of others than the rows have, and a batch of one row then begins
        anywhere; of its vocabulary any text may ask it.
        """
        if self.class_weight is not None or (self.prepared.problem.labels and not new_head):
            return None
        return self.prepared.task.uniform_loss(self.training_problem)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            if self.draw is not None:
                return DrawnSampler(self.draw)
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        return LengthGroupedSampler(
            rows["length"][:],
            global_batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self._data_seed,
            draw=self.draw,
        )

    @property
    def _data_seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def padding(self) -> float:
        """Tokens computed over real tokens in the first epoch."""
        lengths, size = self.train_dataset["length"][:], self.args.train_batch_size
        order = list(self._get_train_sampler() or range(len(lengths)))
        return padding_ratio(lengths, (order[start : start + size] for start in range(0, len(order), size)))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Creates peft's optimizer if the recipe names one, else what `training_args.optim` says."""
        if self.optimizer is None:  # type: ignore[has-type]
            recipe = self.prepared.recipe
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = make_optimizer(
                self.model,
                recipe.optimizer,
                optimizer_class=optimizer_class,
                optimizer_kwargs={**optimizer_kwargs, "weight_decay": self.args.weight_decay},
                r=int(recipe.peft_config.get("r", 8)),
                lora_alpha=int(recipe.peft_config.get("lora_alpha", 8)),
            )
        optimizer: torch.optim.Optimizer = self.optimizer or super().create_optimizer(model)
        return optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """What the losses of all accumulated batches on all processes are averaged over."""
        totals = torch.stack([self.prepared.task.totals(batch) for batch in batch_samples]).sum(0).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        for gate in self._gates:
            if gate.watches:  # afterwards nobody has to wait for the accelerator here
                gate.passes_over_next = not bool(totals.all())
        return totals

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The task's loss; times the processes, because DDP averages gradients over them."""
        task, problem = self.prepared.task, self.training_problem
        outputs = task.forward(model, inputs, problem)
        loss = task.loss(
            outputs,
            inputs,
            problem,
            items=task.totals(inputs) if num_items_in_batch is None else num_items_in_batch,
            class_weight=self.class_weight,
            label_smoothing=self.args.label_smoothing_factor,
        )
        loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Writes adapter and head of a checkpoint, as they are saved at the end, and the arguments.

        peft (0.21) would look whether the vocabulary has grown, on the hub where it can, and fails on bases without
        embeddings of tokens (wav2vec2 with letters of its own).
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(
            str(folder), state_dict=state_dict, save_embedding_layers=False
        )
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward; every loss is looked at, on an accelerator without waiting for it each step."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.watch.add(loss, last_of_step=self.accelerator.gradient_state.sync_gradients)
        if self.watch.due:
            self.look_at_losses()
        return loss

    def look_at_losses(self) -> None:
        """Stops a run whose losses went wrong; see `LossWatch.look`."""
        asked = float(self.args.learning_rate)
        self.watch.look(step=self.state.global_step, learning_rate=self._get_learning_rate(), asked_rate=asked)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.watch.add_norm(norm)
        return norm

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Measures by the task's own functions; transformers' loop keeps the logits of all rows."""
        split = next(one for one in self.splits.values() if one.features is dataloader.dataset)
        self.callback_handler.eval_dataloader = dataloader

        def advance(_: int) -> None:
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        measured = measure(
            self.accelerator.unwrap_model(self.model), split, task=self.prepared.task, problem=self.prepared.problem,
            precision=self.precision, arguments=self.args, advance=advance,
        )  # fmt: skip
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.metrics.items()}
        return EvalLoopOutput(np.empty(0), None, metrics, len(split.rows))
