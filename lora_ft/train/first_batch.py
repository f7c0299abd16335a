"""The worst real batch before the first step: too little memory shows in seconds, and nothing else is left of it."""

from __future__ import annotations

import copy
import gc
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lora_ft.assemble.answer import on_device
from lora_ft.data.batching import padded_lengths
from lora_ft.data.token_budget import TokenBudget
from lora_ft.errors import GateError
from lora_ft.models.precision import autocast_context
from lora_ft.ops.shards import let_go, piece
from lora_ft.train.measure import Split
from lora_ft.train.told import first_told
from lora_ft.train.trainer import AdapterTrainer

logger = logging.getLogger(__name__)

GATE = "worst-batch-first"
STEPS_IN_BACKWARD = ("lomo", "adalomo", "schedule_free", "layerwise")
"""Parts of names of optimizers that step within the backward pass, or not before they are told to."""


@dataclass(frozen=True)
class Heaviest:
    """A batch of one process.

    Attributes:
        rows: Numbers of its features, the longest first.
        length: What the longest of them costs; all others are padded to it.
    """

    rows: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, lengths: Sequence[int], *, size: int) -> Heaviest:
        """The longest features in one batch: padded, no batch of any epoch is larger, however rows are drawn.

        Args:
            lengths: What each feature costs.
            size: Features a batch.
        """
        rows = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")[:size].tolist()
        return cls(tuple(rows), int(lengths[rows[0]]))

    @classmethod
    def under(cls, lengths: Sequence[int], budget: TokenBudget) -> list[Heaviest]:
        """The batch of the longest rows that a budget allows, and, where another has more tokens, that one too.

        Attention costs most in the first, all else in the second.

        Args:
            lengths: Padded tokens of each feature.
            budget: What a batch may hold.
        """
        costs = np.asarray(lengths, dtype=np.int64)
        order = np.argsort(-costs, kind="stable")
        fits = np.clip(budget.tokens // costs[order], 1, budget.rows)
        counts = np.minimum(fits, np.arange(len(order), 0, -1))
        starts = dict.fromkeys((0, int(np.argmax(counts * costs[order]))))
        return [cls(tuple(order[at : at + counts[at]].tolist()), int(costs[order[at]])) for at in starts]


class WorstBatchFirst(transformers.TrainerCallback):  # type: ignore[misc]
    """Runs the longest rows in one batch forward, backward and through the optimizer before the first step.

    Every process runs the same batch by itself, without a word to the others but whether it fitted, so that none waits
    for one that failed. Parameters, buffers, gradients, optimizer and chance are afterwards as they were.

    Args:
        trainer: The trainer of the run.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Tries it: model, optimizer and precision are prepared, and no row has been learned."""
        if self.trainer.in_step:
            try_evaluation(self.trainer)
        by_deepspeed = args.deepspeed_plugin is not None
        if by_deepspeed or any(part in str(args.optim.value) for part in STEPS_IN_BACKWARD):
            logger.info("worst batch first: not with %s", "deepspeed" if by_deepspeed else args.optim.value)
            return
        try_training(self.trainer)


def worst_batches(trainer: AdapterTrainer) -> list[Heaviest]:
    """The training batches than which none of any epoch needs more."""
    if trainer.batches is None:
        return [Heaviest.of(trainer.train_dataset["length"][:], size=int(trainer.args.train_batch_size))]
    return Heaviest.under(trainer.batches.steps.lengths.tolist(), trainer.batches.steps.budget)


def try_training(trainer: AdapterTrainer) -> None:
    """Runs the worst training batch; leaves no trace.

    Raises:
        GateError: It does not fit into memory; with a batch size that was tried and fits.
    """
    arguments = trainer.args
    wrapped: Any = trainer.optimizer
    optimizer = wrapped.optimizer  # below accelerate's, which would speak to the other processes

    def attempt(rows: Sequence[int]) -> None:
        with as_it_was(trainer.model, optimizer):
            _train(trainer, rows, optimizer)

    for worst in worst_batches(trainer):
        with same_chance(arguments.device):
            started = time.perf_counter()
            failed = _try(trainer, attempt, worst.rows)
            if failed is None:
                seconds = time.perf_counter() - started
                trainer.worst_step_s = max(seconds, trainer.worst_step_s or 0.0)
                told = f"{size_of(trainer, worst)}: forward, backward and a step in {seconds:.2f} s"
                logger.info("worst batch first: %s%s", told, peak(arguments.device))
                continue
            failed += peak(arguments.device)
            size = len(worst.rows) if trainer.batches is not None else int(arguments.train_batch_size)
            sizes = divisors(size, size * int(arguments.gradient_accumulation_steps))
            fits = _largest(trainer, attempt, worst.rows, sizes) if not trainer.in_step else None
        raise _refusal(trainer, worst, failed, fits=fits, training=True)


def worst_evaluated(trainer: AdapterTrainer, split: Split) -> list[Heaviest]:
    """The batches of a split than which none of its evaluations needs more."""
    lengths = split.features["length"][:]
    if trainer.evaluation_budget is None:
        return [Heaviest.of(lengths, size=int(trainer.args.eval_batch_size))]
    padded = padded_lengths(lengths, trainer.prepared.problem.settings)
    return Heaviest.under(padded.tolist(), trainer.evaluation_budget)


def try_evaluation(trainer: AdapterTrainer) -> None:
    """Runs the longest batch of each split that is measured, forward alone; leaves no trace.

    Raises:
        GateError: It does not fit into memory; with a batch size that was tried and fits.
    """
    task, problem = trainer.prepared.task, trainer.prepared.problem
    model = trainer.accelerator.unwrap_model(trainer.model)
    for split in trainer.splits.values():

        def attempt(rows: Sequence[int], features: Any = split.features) -> None:
            batch = on_device(task.collator(problem)([features[row] for row in rows]), trainer.args.device)
            model.eval()
            with torch.no_grad(), autocast_context(trainer.precision):
                task.loss(task.forward(model, batch, problem), batch, problem, items=1)

        for worst in worst_evaluated(trainer, split):
            with same_chance(trainer.args.device):
                failed = _try(trainer, attempt, worst.rows)
                if failed is not None:
                    failed += peak(trainer.args.device)
                    sizes = divisors(len(worst.rows), len(worst.rows))
                    fits = _largest(trainer, attempt, worst.rows, sizes) if not trainer.in_step else None
                    raise _refusal(trainer, worst, failed, fits=fits, training=False)


@contextmanager
def as_it_was(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Puts trainable parameters, buffers, gradients and the optimizer back, to the last bit.

    Args:
        model: The model, not wrapped.
        optimizer: torch's optimizer, not accelerate's.
    """
    let_go(model)
    trainable = [one for one in model.parameters() if one.requires_grad]
    tensors = [piece(one.detach()) for one in (*trainable, *model.buffers())]
    kept = [one.to("cpu", copy=True) for one in tensors]  # not where memory is being measured
    state = {key: copy.deepcopy(values) for key, values in optimizer.state.items()}
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    mode = model.training
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in zip(tensors, kept, strict=True):
                one.copy_(value)
        for one in trainable:
            one.grad = None
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            for name in group.keys() - before.keys() - {"params"}:
                del group[name]
            group.update(before)
        model.train(mode)


@contextmanager
def same_chance(device: torch.device) -> Iterator[None]:
    """Puts every random generator back."""
    plain, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)


def _train(trainer: AdapterTrainer, rows: Sequence[int], optimizer: torch.optim.Optimizer) -> None:
    """A step as a later one is: gradients and the optimizer's moments lie in memory while the batch is computed."""
    model = trainer.model
    model.train()
    for one in model.parameters():
        if one.requires_grad:
            one.grad = torch.zeros_like(one)
    optimizer.step()
    loss_of(trainer, rows).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def loss_of(trainer: AdapterTrainer, rows: Sequence[int]) -> torch.Tensor:
    """The loss of a batch of training rows as a step computes it, on this process alone.

    Args:
        trainer: The trainer, with its model in training mode.
        rows: Numbers of the features.
    """
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row] for row in rows]))
    items = trainer.prepared.task.totals(batch).to(trainer.args.device)
    with trainer.compute_loss_context_manager():
        loss: torch.Tensor = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
    return loss


def _try(trainer: AdapterTrainer, attempt: Callable[[Sequence[int]], None], rows: Sequence[int]) -> str | None:
    """What the first process said whose memory was too small for a batch; None if all had enough.

    With `auto_find_batch_size` the Trainer wants to see the failure itself.
    """
    told = None
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.args.device)
    try:
        attempt(rows)
    except (RuntimeError, MemoryError) as error:
        if trainer.args.auto_find_batch_size or not out_of_memory(error):
            raise
        told = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    gc.collect()
    clear_device_cache()
    if trainer.in_step:
        return told  # the others wait for this process where they would need its piece, not here
    return first_told(told, world_size=trainer.args.world_size)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small, on an accelerator or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )


def divisors(size: int, total: int) -> list[int]:
    """Batch sizes to try, each at most half of the one before, with which accumulation keeps `total` rows a step."""
    found: list[int] = []
    while size > 1:
        size = max(one for one in range(1, size // 2 + 1) if total % one == 0)
        found.append(size)
    return found


def _largest(
    trainer: AdapterTrainer, attempt: Callable[[Sequence[int]], None], rows: Sequence[int], sizes: Sequence[int]
) -> int | None:
    """The first of some batch sizes that fits; None if not even one row does."""
    return next((size for size in sizes if _try(trainer, attempt, rows[:size]) is None), None)


def size_of(trainer: AdapterTrainer, batch: Heaviest) -> str:
    """How large a batch is, `8 rows x 512 tokens`; what images cost is no number that a user knows."""
    rows = f"{len(batch.rows)} {'row' if len(batch.rows) == 1 else 'rows'}"
    return rows if trainer.prepared.task.lazy else f"{rows} x {batch.length} tokens"


def peak(device: torch.device) -> str:
    """The peak of memory since it was last reset; nothing on a CPU."""
    if device.type != "cuda":
        return ""
    peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f", peak {peak / 1e9:.2f} of {whole / 1e9:.2f} GB"


def _refusal(trainer: AdapterTrainer, batch: Heaviest, failed: str, *, fits: int | None, training: bool) -> GateError:
    """The error with settings that fit, and other ways to need less."""
    arguments = trainer.args
    key, most = f"training_args.per_device_{'train' if training else 'eval'}_batch_size", len(batch.rows)
    batches, ways = trainer.batches if training else None, []
    if batches is not None:
        key, most = "lean.max_tokens_per_batch", batches.steps.budget.tokens
    if fits is None:
        less = f"set {key} below {most} (not tried: no process can try one without the others)"
        ways.append(less if trainer.in_step else "not even a batch of one row fits")
    elif batches is not None:
        tokens = max(fits * batch.length, int(batches.steps.lengths.max()))
        accumulated = int(arguments.gradient_accumulation_steps) * len(batch.rows) // fits
        ways.append(
            f"set {key}: {tokens} (tried: {fits} x {batch.length} fits), and "
            f"training_args.gradient_accumulation_steps: {accumulated} for steps of about as many tokens"
        )
    elif not training:
        ways.append(f"set {key}: {fits} (tried: it fits)")
    else:
        accumulated = int(arguments.train_batch_size) * int(arguments.gradient_accumulation_steps) // fits
        total = accumulated * fits * int(arguments.world_size)
        ways.append(
            f"set {key}: {fits} and training_args.gradient_accumulation_steps: {accumulated} (tried: it fits, and a "
            f"step still learns of {total} rows)"
        )
    others = less_memory(trainer, training=training)
    what = "batch of the run" if training else "batch of the evaluation"
    told = f"memory: the longest {what}, {size_of(trainer, batch)}, does not fit ({failed}): "
    leads = "It takes" if fits is None and not trainer.in_step else "Other ways"
    also = f". {leads}: {', '.join(others)}" if others else ""
    return GateError(f"{told}{'; '.join(ways)}{also}", gate=GATE)


def less_memory(trainer: AdapterTrainer, *, training: bool) -> list[str]:
    """Settings other than the batch size with which a run needs less memory."""
    others, arguments = [], trainer.args
    if "max_length" in trainer.prepared.problem.settings:
        others.append(f"processor.max_length below {trainer.prepared.problem.settings['max_length']}")
    if training and trainer.prepared.recipe.lean.activation_limit_gb is not None:
        others.append("a lower lean.activation_limit_gb")
    elif training and not (arguments.gradient_checkpointing or arguments.activation_checkpointing):
        others.append("training_args.gradient_checkpointing: true")
    if trainer.prepared.recipe.quantization_config is None:
        others.append("quantization_config: {load_in_4bit: true}")
    return others
