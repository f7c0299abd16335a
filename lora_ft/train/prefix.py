"""Has layers below the lowest one that is trained compute each row once, where a run allows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from lora_ft.assemble.prefix_run import PrefixRun, Unknowable
from lora_ft.models.hidden_rows import HiddenRows
from lora_ft.models.prefix import find_prefix
from lora_ft.train.first_batch import same_chance
from lora_ft.train.prefix_shelf import Shelf
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.same_run import rows_a_step

logger = logging.getLogger(__name__)

WORD = "prefix_cache"
ONCE = ("train", "validation")
"""The splits that are read more than once in a run; others are kept for other runs alone."""


def know_prefix(trainer: ResumableTrainer, *, kept_in: Path | None) -> None:
    """Runs the rows through the layers below the lowest one that is trained, or reads what another run kept of it.

    Afterwards training and evaluations pass over these layers. Where that cannot be, all is as it was, and
    `trainer.ran` says why.

    Args:
        trainer: The trainer, before its first step.
        kept_in: The folder where what they computed is kept for other runs, if the recipe gives it room there; None:
            nowhere.
    """
    started = time.perf_counter()
    trainer.standing.at("layers below the lowest adapter")
    if not trainer.prepared.recipe.lean.prefix_cache_disk_gb:
        kept_in = None
    runs: dict[str, PrefixRun] = {}
    found: dict[str, HiddenRows] = {}
    others: dict[str, str] = {}
    try:
        with same_chance(trainer.args.device):
            runs = _runs(trainer, kept=kept_in is not None)
            shelf = Shelf.of(trainer, kept_in=kept_in)
            found["train"] = shelf.hidden(runs["train"])
            for split in [name for name in runs if name != "train"]:
                try:
                    found[split] = shelf.hidden(runs[split])
                except Unknowable as why:
                    others[split] = why.reason
    except Unknowable as why:
        trainer.ran[WORD] = f"off: {why.reason}"
        if runs:  # there are such layers
            logger.info("prefix cache: off: %s", why.reason)
        return
    trainer.known = {split: runs[split].known(hidden) for split, hidden in found.items()}
    trainer.collate.tells_rows = True
    trainer.add_callback(LookedAtAgain(trainer, runs["train"], shelf))
    _tell(trainer, shelf, found, others=others, seconds=time.perf_counter() - started)


def _tell(
    trainer: ResumableTrainer,
    shelf: Shelf,
    found: Mapping[str, HiddenRows],
    *,
    others: Mapping[str, str],
    seconds: float,
) -> None:
    """Says what is known, in one line and for the manifest."""
    prefix, rows = trainer.known["train"].prefix, sum(len(hidden) for hidden in found.values())
    size = sum(hidden.bytes for hidden in found.values())
    where = " and ".join(sorted(set(shelf.where.values())))
    trainer.ran[WORD] = {
        "layers": prefix.count, "of": len(prefix.layers), "rows": rows, "bytes": size, "in": where,
        "computed": shelf.computed, "seconds": round(seconds, 2), **({"off": dict(others)} if others else {}),
    }  # fmt: skip
    logger.info(
        "prefix cache: %d of %d layers are computed once: %s rows, %.0f MB in %s, %s computed in %.1f s",
        prefix.count, len(prefix.layers), f"{rows:,}", size / 1e6, where, f"{shelf.computed:,}", seconds,
    )  # fmt: skip


class LookedAtAgain(transformers.TrainerCallback):  # type: ignore[misc]
    """Computes a few rows again with each epoch, and throws away what is known where they are others.

    Args:
        trainer: The trainer.
        run: How the training rows are computed.
        shelf: Where what is known lies.
    """

    def __init__(self, trainer: ResumableTrainer, run: PrefixRun, shelf: Shelf) -> None:
        self.trainer = trainer
        self.run = run
        self.shelf = shelf

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks; no process waits for another, since passing over layers is a matter of each alone."""
        epoch = int(state.epoch)
        known = self.trainer.known.get("train")
        if known is None or not epoch:
            return
        try:
            with same_chance(args.device):
                same = self.run.agrees(known.hidden, number=epoch)
        except Unknowable:  # a row of another length than it was kept with
            same = False
        if not same:
            logger.warning("prefix cache: rows of epoch %d are no longer what was kept of them: thrown away", epoch)
            self.trainer.known = {}
            self.trainer.ran[WORD] = f"thrown away in epoch {epoch}: rows were no longer what was kept of them"
            self.shelf.throw_away()


def _runs(trainer: ResumableTrainer, *, kept: bool) -> dict[str, PrefixRun]:
    """How the rows of each split are computed.

    Raises:
        Unknowable: They cannot be passed over any layer in this run.
    """
    prepared, arguments = trainer.prepared, trainer.args
    task, problem = prepared.task, prepared.problem
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.get_base_model().config.to_dict()
    reasons = {
        "lean.prefix_cache is false": not prepared.recipe.lean.prefix_cache,
        "the weights are cut into shards": trainer.in_step,
        "rows are made anew each time they are read": task.lazy,
        "rows are drawn anew each time they are put together": task.collates_by_chance(problem),
        "training_args.torch_compile": bool(arguments.torch_compile),
        "training_args.neftune_noise_alpha": arguments.neftune_noise_alpha is not None,
        "the base has an encoder and a decoder": bool(config.get("is_encoder_decoder")),
        "layers share keys and values": bool(config.get("num_kv_shared_layers")),
        "every row is read once, and nothing is kept": not kept and _epochs(trainer) <= 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise Unknowable(reason)
    prefix = find_prefix(model)
    if prefix is None:
        raise Unknowable("no layer lies below the lowest one that is trained")
    return {
        split: PrefixRun(
            model=model, prefix=prefix, features=prepared.features[split], task=task,
            problem=replace(problem, label_loss=None),  # nobody needs logits there
            training=split == "train", precision=trainer.precision,
        )
        for split in ("train", *trainer.splits) if kept or split in ONCE
    }  # fmt: skip


def _epochs(trainer: ResumableTrainer) -> float:
    """How often the run reads its rows."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps) * rows_a_step(arguments) / len(trainer.train_dataset)
    return float(arguments.num_train_epochs)
