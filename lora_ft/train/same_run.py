"""What a run is made of besides its recipe, and whether a checkpoint may go on with what there is now."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import transformers

from lora_ft.assemble.encode import without_media
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.feature_cache import rows_digest
from lora_ft.data.token_budget import BudgetedBatches
from lora_ft.errors import AdapterError
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.tasks.base import Task
from lora_ft.train.checkpoints import Checkpoint, Start
from lora_ft.train.told import first_told, told_by_each

logger = logging.getLogger(__name__)

MEASURED_ON = ("train", "validation")
"""Splits that decide what is learned, and which checkpoint is the best; `test` decides nothing."""


def agreed_start(
    start: Start,
    prepared: Prepared,
    arguments: transformers.TrainingArguments,
    *,
    batches: BudgetedBatches | None,
    cache_dir: Path | None,
) -> dict[str, Any]:
    """Makes sure that all processes begin at the same place, with what the checkpoint was made of.

    Returns:
        What checkpoints of this run remember; empty on the processes that do not write.

    Raises:
        AdapterError: They do not, or it is another run.
    """
    agree_on(start.checkpoint, world_size=arguments.world_size)
    now, told = {}, None
    if arguments.process_index == 0:
        now = made_of(prepared, arguments, batches=batches, cache_dir=cache_dir)
        told = other_run(start.checkpoint, now) if start.checkpoint is not None else None
        for line in start.told if told is None else ():
            logger.info("%s", line)
        if told is None and start.checkpoint is not None:
            logger.info("going on after step %d, from %s", start.checkpoint.step, start.checkpoint.folder)
    told = first_told(told, world_size=arguments.world_size)
    if told is not None:
        raise AdapterError(told)
    return now


def made_of(
    prepared: Prepared,
    arguments: transformers.TrainingArguments,
    *,
    batches: BudgetedBatches | None,
    cache_dir: Path | None,
) -> dict[str, Any]:
    """What a checkpoint remembers of its run, to compare with what there is when it goes on.

    Args:
        prepared: Rows, and the base.
        arguments: For the processes and the rows of a step.
        batches: Those that are cut by a budget of tokens, or None.
        cache_dir: Where fingerprints of bases are remembered.

    Returns:
        `world_size`, `rows_a_step`, `batches`, `base` (its fingerprint) and `data` (a digest of each split).
    """
    return {
        "world_size": int(arguments.world_size),
        "rows_a_step": rows_a_step(arguments),
        "batches": None if batches is None else batches.made_of(),
        "base": asdict(fingerprint(prepared.base, cache_dir=cache_dir)),
        "data": {
            split: split_digest(prepared.rows[split], prepared.task) for split in MEASURED_ON if split in prepared.rows
        },
    }


def rows_a_step(arguments: transformers.TrainingArguments) -> int:
    """Rows that one optimizer step learns of, over all processes and accumulated batches."""
    return int(arguments.train_batch_size) * int(arguments.gradient_accumulation_steps) * int(arguments.world_size)


def split_digest(rows: datasets.Dataset, task: Task) -> str:
    """SHA-256 over the rows of a split; of images and sounds that are files, over their names and sizes."""
    plain = without_media(rows, task)
    digest = hashlib.sha256(rows_digest(plain).encode())
    for name in rows.column_names:
        if name in plain.column_names:
            continue
        for start in range(0, len(rows), 1_000):
            for value in rows.with_format("arrow")[start : start + 1_000][name].to_pylist():
                digest.update(_of_file(value))
    return digest.hexdigest()


def other_run(checkpoint: Checkpoint, now: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot go on: other data, another base, or steps of another size.

    Args:
        checkpoint: What to go on from.
        now: What `made_of` says today.

    Returns:
        In what it differs, and what to do; None where it can go on.
    """
    then, where = checkpoint.run, checkpoint.folder
    anew = "Start anew with --overwrite, or choose another training_args.output_dir"
    for split in sorted(then["data"].keys() | now["data"].keys()):
        if then["data"].get(split) != now["data"].get(split):
            return (
                f"{where}: the {split} rows are not those of the checkpoint (files, columns, preparation or label "
                f"names differ). Put them back, or: {anew}"
            )
    changed = differences(Fingerprint(**then["base"]), Fingerprint(**now["base"]))
    if changed:
        return f"{where}: the base is not the one of the checkpoint ({'; '.join(changed)}). Give that one, or: {anew}"
    if now["batches"] is not None and then["batches"] != now["batches"]:
        rows, count = then["batches"]["most_rows"], then["batches"]["batches_a_step"]
        return (
            f"{where}: a step of the checkpoint was {count} batches of {rows} rows at most on {then['world_size']} "
            f"processes, now it would be {now['batches']['batches_a_step']} of {now['batches']['most_rows']} on "
            f"{now['world_size']}; lean.max_tokens_per_batch cuts others then. Set "
            f"training_args.per_device_train_batch_size: {rows}, and gradient_accumulation_steps so that its product "
            f"with the number of processes is {count}"
        )
    if then["rows_a_step"] != now["rows_a_step"]:
        return (
            f"{where}: a step of the checkpoint learned of {then['rows_a_step']} rows on {then['world_size']} "
            f"processes, now it would be {now['rows_a_step']} on {now['world_size']}. Set "
            "training_args.per_device_train_batch_size and gradient_accumulation_steps so that their product with "
            f"the number of processes is {then['rows_a_step']}, or start as many processes as then"
        )
    return None


def agree_on(checkpoint: Checkpoint | None, *, world_size: int) -> None:
    """Makes sure that all processes see the same checkpoint, before any of them reads it.

    Args:
        checkpoint: What this process found, or None.
        world_size: Number of processes.

    Raises:
        AdapterError: They do not; names the first that differs, and its machine.
    """
    if world_size == 1:
        return
    mine = None if checkpoint is None else (checkpoint.folder.name, checkpoint.digest)
    found = told_by_each((mine, socket.gethostname()), world_size=world_size)
    first, first_host = found[0]
    for rank, (seen, host) in enumerate(found):
        if seen != first:
            raise AdapterError(
                f"rank {rank} on {host} sees {_named(seen)} in training_args.output_dir, rank 0 on {first_host} sees "
                f"{_named(first)}. It must be on a file system that all machines share"
            )


def _named(seen: tuple[str, str] | None) -> str:
    return "no checkpoint" if seen is None else f"{seen[0]} ({seen[1][:8]})"


def _of_file(value: Any) -> bytes:
    """What stands for an image or a sound: its bytes where the rows hold them, else its name and size."""
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return hashlib.sha256(value["bytes"]).digest()
    path = value.get("path") if isinstance(value, Mapping) else value
    size = Path(path).stat().st_size if isinstance(path, str) and Path(path).is_file() else -1
    return f"{Path(str(path)).name} {size}\n".encode()
