"""Which rows each optimizer step learns of, where the recipe gives a budget of tokens; and what batches may cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from lora_ft.assemble.prepare import Prepared
from lora_ft.data.batching import padded_lengths, padding_ratio
from lora_ft.data.token_budget import BudgetedBatches, BudgetedSteps, Order, TokenBudget
from lora_ft.errors import InputError
from lora_ft.train.weights import class_draw

EVALUATED_TOKENS = 4096
"""An evaluation may hold so many at once however small the batches of training are: it keeps no activations."""


def budgeted_batches(prepared: Prepared, arguments: transformers.TrainingArguments) -> BudgetedBatches | None:
    """The batches of this process under `lean.max_tokens_per_batch`; None without one.

    Args:
        prepared: Rows, features and recipe of the run.
        arguments: For the most rows of a batch, the batches of a step, the order and the length of the run.

    Raises:
        InputError: A row alone has more tokens than a batch may hold.
    """
    asked = prepared.recipe.lean.max_tokens_per_batch
    if asked is None:
        return None
    lengths = training_lengths(prepared)
    if int(lengths.max()) > asked:
        fits = "max_length" in prepared.problem.settings
        raise InputError(
            f"lean.max_tokens_per_batch: {asked}: the longest training row alone has {lengths.max()} tokens with its "
            f"padding. Write {lengths.max()} or more{f', or processor.max_length: {asked}' if fits else ''}"
        )
    world, seed = int(arguments.world_size), arguments.seed if arguments.data_seed is None else arguments.data_seed
    budget = TokenBudget(
        asked, rows=int(arguments.train_batch_size), pieces=world * int(arguments.gradient_accumulation_steps)
    )
    steps = BudgetedSteps(
        lengths, budget=budget, seed=int(seed), order=_order(arguments), draw=class_draw(prepared, seed=int(seed))
    )
    an_epoch = steps.an_epoch(epochs=float(arguments.num_train_epochs), max_steps=int(arguments.max_steps))
    return BudgetedBatches(steps, an_epoch=an_epoch, share=(int(arguments.process_index), world))


def training_lengths(prepared: Prepared) -> npt.NDArray[np.int64]:
    """Tokens that each training row has where it is the longest of its batch, `(rows,)`."""
    return padded_lengths(prepared.features["train"]["length"][:], prepared.problem.settings)


def evaluation_budget(
    prepared: Prepared, arguments: transformers.TrainingArguments, batches: BudgetedBatches | None
) -> TokenBudget | None:
    """What a batch of an evaluation may hold; None where rows alone count, as of images and sounds.

    Args:
        prepared: Rows, features and recipe of the run.
        arguments: For the most rows of a batch.
        batches: Of the training, where the recipe gives it a budget.
    """
    if prepared.task.lazy:
        return None
    asked = prepared.recipe.lean.max_tokens_per_eval_batch
    if asked is None:
        a_batch = (
            batches.steps.budget.tokens
            if batches is not None
            else int(training_lengths(prepared).max()) * int(arguments.train_batch_size)
        )
        asked = max(a_batch, EVALUATED_TOKENS)
    return TokenBudget(asked, rows=int(arguments.eval_batch_size), pieces=1)


def loader(batches: BudgetedBatches, rows: Any, *, collate: Any, trainer: transformers.Trainer) -> Any:
    """A data loader of batches that are this process's already; accelerate (1.15) would share them out once more.

    Args:
        batches: The batches.
        rows: What they are numbers of.
        collate: What puts a batch together.
        trainer: For the workers and the device.
    """
    arguments, accelerator = trainer.args, trainer.accelerator
    plain: Any = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=arguments.dataloader_pin_memory,
        persistent_workers=arguments.dataloader_persistent_workers,
        multiprocessing_context=arguments.dataloader_multiprocessing_context,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        in_order=arguments.dataloader_in_order,
        worker_init_fn=partial(seed_worker, num_workers=arguments.dataloader_num_workers, rank=arguments.process_index),
    )
    return prepare_data_loader(
        plain,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
    )


def figures(
    batches: Sequence[Sequence[int]], *, steps: int, lengths: Sequence[int], padded: Sequence[int]
) -> dict[str, float]:
    """What the batches of an epoch cost, for the log and the manifest.

    Args:
        batches: Row numbers of each batch of all processes.
        steps: Optimizer steps of the epoch.
        lengths: Tokens of each row.
        padded: What each row has where it is the longest.

    Returns:
        `padding`, tokens computed for each real one; and the means `rows_a_step` and `tokens_a_step`, real ones.
    """
    rows = sum(len(batch) for batch in batches)
    real = sum(lengths[row] for batch in batches for row in batch)
    return {
        "padding": round(padding_ratio(lengths, batches, padded=padded), 3),
        "rows_a_step": round(rows / max(steps, 1), 1),
        "tokens_a_step": round(real / max(steps, 1), 1),
    }


def _order(arguments: transformers.TrainingArguments) -> Order:
    order: Order = str(arguments.train_sampling_strategy)  # type: ignore[assignment]
    return order
