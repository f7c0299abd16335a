"""transformers' Trainer with the few things it cannot do: our batches, our loss and metrics, a look at every loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import convert_to_fp32
from transformers.trainer_utils import EvalLoopOutput

from lora_ft.adapters.optimizers import make_optimizer
from lora_ft.assemble.encode import EncodedRows
from lora_ft.assemble.known_prefix import KnownPrefix, passed_over
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.balancing import DrawnSampler
from lora_ft.data.batching import LengthGroupedSampler
from lora_ft.data.encode import LazySplit
from lora_ft.data.filled import GHOST, NUMBER, FilledRows, FilledSampler
from lora_ft.data.token_budget import BudgetedBatches
from lora_ft.models.precision import Precision, autocast_context
from lora_ft.ops.shards import whole
from lora_ft.tasks.parts.labelled import LabelLoss
from lora_ft.train.batches import evaluation_budget, figures, loader, training_lengths
from lora_ft.train.chance import TrainingCollator
from lora_ft.train.gates import GradientGate
from lora_ft.train.gates_loss import LossWatch
from lora_ft.train.measure import Split, measure
from lora_ft.train.standing import Standing
from lora_ft.train.weights import class_draw, training_loss

ORDERS = LengthGroupedSampler | DrawnSampler | torch.utils.data.RandomSampler | torch.utils.data.SequentialSampler
"""What can be filled up; `batch_rebalance` hands out whole batches, as many as there are processes."""


class RankAllocation(transformers.TrainerCallback):  # type: ignore[misc]
    """Lets AdaLoRA give its rank budget to the modules that need it; nobody else calls it in the Trainer's loop.

    Source: Zhang et al., AdaLoRA (ICLR 2023), algorithm 1; peft's `AdaLoraModel.update_and_allocate`.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks at weights and gradients after each optimizer step, while the gradients are still there."""
        context["model"].base_model.update_and_allocate(state.global_step + 1)


class EpochOfRows(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells rows that are encoded as they are read, and batches put together by chance, which epoch it is.

    accelerate 1.15 tells a dataset only where its sampler does not want to know, and on several processes ours does.

    Args:
        rows: The training rows.
        collate: What puts batches together.
    """

    def __init__(self, rows: EncodedRows, collate: TrainingCollator) -> None:
        self.rows = rows
        self.collate = collate

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Says it before the first row of an epoch is read."""
        self.collate.set_epoch(int(state.epoch))
        if isinstance(self.rows, LazySplit):
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
        ran: What of the recipe's `lean` took effect so far; what is found out later is added.
        batches: The batches of this process, where the recipe gives them a budget of tokens.
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
        ran: Mapping[str, Any],
        batches: BudgetedBatches | None = None,
        **arguments: Any,
    ) -> None:
        validation, task, problem = splits.get("validation"), prepared.task, prepared.problem
        collate = TrainingCollator(
            task.collator(problem, training=True), seed=problem.seed if task.collates_by_chance(problem) else None
        )
        super().__init__(
            train_dataset=FilledRows(prepared.features["train"]),
            eval_dataset=validation.features if validation else None,
            data_collator=collate,
            processing_class=problem.processor,
            **arguments,
        )
        self.collate = collate
        self.add_callback(EpochOfRows(prepared.features["train"], collate))
        self.label_loss = LabelLoss() if prepared.recipe.lean.label_loss and not self.in_step else None
        self.prepared = prepared = replace(prepared, problem=replace(problem, label_loss=self.label_loss))
        self.precision = precision
        self.splits = splits
        self.class_weight = class_weight
        self.ran = dict(ran)
        self.known: dict[str, KnownPrefix] = {}  # by split; `prefix` fills it
        self.batches = batches
        self.evaluation_budget = evaluation_budget(prepared, self.args, batches)
        if self.evaluation_budget is not None:
            self.ran["max_tokens_per_eval_batch"] = self.evaluation_budget.tokens
        self.standing = Standing()
        self._trained: list[torch.nn.Parameter] | None = None
        self._flops_a_value: int | None = None  # of what a batch is made of, tokens or pixels
        self.worst_step_s: float | None = None  # of one batch; `first_batch` measures it
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
        """The order of an epoch; on several processes with ghosts at its end, see `FilledSampler`."""
        order = self._order()
        if self.args.world_size == 1 or self.args.dataloader_drop_last or not isinstance(order, ORDERS):
            return order
        if isinstance(order, torch.utils.data.RandomSampler):  # as accelerate makes it of a sampler that it can see
            order = SeedableRandomSampler(order.data_source, data_seed=self._data_seed)
        multiple = int(self._train_batch_size) * int(self.args.world_size)
        return FilledSampler(order, rows=len(self.train_dataset), multiple=multiple)

    def _order(self) -> torch.utils.data.Sampler[int] | None:
        """The order of the rows of an epoch, the same on all processes."""
        if self.args.train_sampling_strategy != "group_by_length":
            if self.draw is not None:
                return DrawnSampler(self.draw)
            return super()._get_train_sampler(self.prepared.features["train"])  # type: ignore[no-any-return]
        return LengthGroupedSampler(
            self.train_dataset["length"][:],
            global_batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self._data_seed,
            draw=self.draw,
        )

    @property
    def _data_seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def get_train_dataloader(self) -> Any:
        """The batches of this process; see `BudgetedBatches` for those that are cut by a budget of tokens."""
        if self.batches is None:
            return super().get_train_dataloader()
        return loader(self.batches, self.train_dataset, collate=self.data_collator, trainer=self)

    def batch_figures(self) -> dict[str, float]:
        """What the batches of the first epoch cost, see `batches.figures`; of images and sounds, their rows alone."""
        size, accumulated = int(self.args.train_batch_size), int(self.args.gradient_accumulation_steps)
        a_step = size * accumulated * int(self.args.world_size)
        if self.prepared.task.lazy:
            return {"rows_a_step": float(a_step)}
        lengths = self.train_dataset["length"][:]
        if self.batches is not None:
            batches, steps = [one.tolist() for one in self.batches.every(0)], self.batches.an_epoch
        else:
            order = list(self._order() or range(len(lengths)))
            batches = [order[start : start + size] for start in range(0, len(order), size)]
            steps = -(-len(order) // a_step)
        return figures(batches, steps=steps, lengths=lengths, padded=training_lengths(self.prepared).tolist())

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
        counts = [self.prepared.task.totals(batch) * int(GHOST not in batch) for batch in batch_samples]
        totals = own = _sent(torch.stack(counts).sum(0), device)
        if self.args.world_size > 1:
            self.standing.at("reduction")
            totals = self._reduced(own.flatten()).view_as(own)
            self.watch.weigh(own, totals, processes=self.args.world_size)
        for gate in self._gates:
            if gate.watches:  # afterwards nobody has to wait for the accelerator here
                gate.passes_over_next = not bool(totals.all())
        return totals

    def _reduced(self, totals: torch.Tensor) -> torch.Tensor:
        """The sums over all processes of what each says of a step, `(numbers,)`."""
        sums: torch.Tensor = self.accelerator.reduce(totals, reduction="sum")
        return sums

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The task's loss; times the processes, because DDP averages gradients over them; of a ghost, nothing."""
        task, problem = self.prepared.task, self.training_problem
        counts = 0 if GHOST in inputs else self.args.world_size
        rows = inputs.get(NUMBER)
        inputs = {name: value for name, value in inputs.items() if name not in (GHOST, NUMBER)}
        with passed_over(self.known.get("train"), rows, inputs):
            outputs = self._outputs(model, inputs)
        loss = task.loss(
            outputs,
            inputs,
            problem,
            items=task.totals(inputs) if num_items_in_batch is None else num_items_in_batch,
            class_weight=self.class_weight,
            label_smoothing=self.args.label_smoothing_factor,
        )
        loss = loss * counts
        return (loss, outputs) if return_outputs else loss

    def _outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The task's forward pass in training; accelerate (1.15) puts no autocast around what FSDP cuts."""
        task, problem = self.prepared.task, self.training_problem
        if not self.is_fsdp_enabled:
            outputs = task.forward(model, inputs, problem)
            self._tell_label_loss()
            return outputs
        with autocast_context(self.precision):
            return convert_to_fp32(task.forward(model, inputs, problem))

    def _tell_label_loss(self) -> None:
        """Notes whether logits were made at labelled positions alone; a task of another loss says nothing."""
        off = "the weights are cut into shards" if self.in_step else "lean.label_loss is false"
        told = f"off: {off}" if self.label_loss is None else self.label_loss.told
        if told is not None:
            self.ran["label_loss"] = told

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward; every loss is looked at, on an accelerator without waiting for it each step."""
        self.standing.takes(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        own = None if GHOST in inputs else loss
        self.watch.add(own, last_of_step=self.accelerator.gradient_state.sync_gradients)
        if self.watch.due:
            self.look_at_losses()
        return loss

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """What transformers says a batch costs; its parameters are counted once, and not at every batch."""
        name: str = self.model.main_input_name
        if name not in inputs:
            return 0
        values = int(inputs[name].numel())
        if self._flops_a_value is None:
            self._flops_a_value = int(super().floating_point_ops(inputs)) // values
        return values * self._flops_a_value

    @property
    def in_step(self) -> bool:
        """Whether a forward pass is a collective, because each process has but a piece of the weights."""
        plugin = self.accelerator.state.deepspeed_plugin
        return bool(self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))

    def known_of(self, split: Split) -> KnownPrefix | None:
        """What is known of the rows of one of the splits that are measured."""
        return next((self.known.get(name) for name, one in self.splits.items() if one is split), None)

    def given_up(self) -> bool:
        """Whether an evaluation is to be given up in its middle."""
        return False

    @property
    def early_stopping(self) -> list[transformers.EarlyStoppingCallback]:
        """The callbacks that count evaluations without progress."""
        return [one for one in self.callback_handler.callbacks if isinstance(one, transformers.EarlyStoppingCallback)]

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best one: by its metric, and of equal ones by its loss.

        transformers keeps the earliest of equal ones, which has often learned least.
        """
        if super()._determine_best_metric(metrics=metrics, trial=trial):
            return True
        state, loss = self.state, "eval_loss"
        name = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        if not state.best_global_step or loss not in metrics or metrics.get(name) != state.best_metric:
            return False
        best = [one[loss] for one in state.log_history if one["step"] == state.best_global_step and loss in one]
        if best and metrics[loss] < best[-1]:
            state.best_global_step = state.global_step
            return True
        return False

    def look_at_losses(self) -> None:
        """Stops a run whose losses went wrong; see `LossWatch.look`."""
        asked = float(self.args.learning_rate)
        self.watch.look(step=self.state.global_step, learning_rate=self._get_learning_rate(), asked_rate=asked)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips what trains; transformers walks through all parameters at every step."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        if self._trained is None:
            self._trained = [one for one in model.parameters() if one.requires_grad]
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = whole(norm) if isinstance(norm, torch.Tensor) else norm
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
            precision=self.precision, arguments=self.args, budget=self.evaluation_budget, in_step=self.in_step,
            known=self.known_of(split), advance=advance, given_up=self.given_up,
        )  # fmt: skip
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.metrics.items()}
        return EvalLoopOutput(np.empty(0), None, metrics, len(split.rows))


def _sent(totals: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers on a device; a GPU gets them when it comes to it, and nobody waits for what it does before.

    Args:
        totals: On the CPU.
        device: Where they go.
    """
    if device.type != "cuda":
        return totals.to(device)
    return totals.pin_memory().to(device, non_blocking=True)
