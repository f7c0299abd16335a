"""Writes a checkpoint at once or not at all, by the main process alone; reads what a checkpoint holds."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from lora_ft.adapters.folder import at_once
from lora_ft.adapters.verify import WEIGHTS, hash_file
from lora_ft.errors import AdapterError
from lora_ft.recipe.schema import Recipe
from lora_ft.train.checkpoints import FORMAT, RECORD, Start, checkpoints_in, digest_of

LOOP, SCHEDULER, SCALER, STATE = "loop.pt", "scheduler.pt", "scaler.pt", "trainer_state.json"


def write_checkpoint(
    target: Path, fill: Callable[[Path], None], *, step: int, best_step: int | None, run: Mapping[str, Any]
) -> None:
    """Writes a checkpoint under a temporary name, syncs it, and renames it; one that is there gives way to it.

    Args:
        target: The folder to be.
        fill: Writes its files into a folder.
        step: The optimizer step.
        best_step: The step of the best checkpoint until now.
        run: What the run is made of.

    Raises:
        AdapterError: It cannot be written; what was there is untouched.
    """
    with at_once(target) as temporary:
        fill(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        record = {
            "format": FORMAT,
            "step": step,
            "best_step": best_step,
            "files": {file.relative_to(temporary).as_posix(): asdict(hash_file(file)) for file in files},
            "run": dict(run),
        }
        text = json.dumps({**record, "sha256": digest_of(record)}, indent=2)
        (temporary / RECORD).write_text(text + "\n", encoding="utf-8")


def prune(output_dir: Path, *, keep: int | None, newest: int, best_step: int | None) -> None:
    """Removes old checkpoints; the newest and the best stay whatever the limit, and the best one of each that stays.

    A checkpoint is renamed before it is removed, so that none is ever found in part.

    Args:
        output_dir: The run folder.
        keep: How many there may be; None: all.
        newest: Step of the one that has just been written.
        best_step: Step of the best one.
    """
    if keep is None:
        return
    found = checkpoints_in(output_dir)
    kept = {newest, best_step} & found.keys()
    others = [step for step in found if step not in kept]
    staying = others[len(others) - max(0, min(len(others), keep - len(kept))) :]
    needed = {_best_of(found[step]) for step in staying}
    for step in others:
        if step in staying or step in needed:
            continue
        path = found[step]
        gone = path.with_name(f".{path.name}.gone")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _best_of(checkpoint: Path) -> int | None:
    """The step of the best checkpoint that another one counts on; None where that cannot be read."""
    try:
        best: int | None = json.loads((checkpoint / RECORD).read_bytes())["best_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best


def make_run_folder(recipe: Recipe) -> None:
    """Makes the run folder, before anything heavy is loaded.

    Raises:
        AdapterError: It cannot be made.
    """
    folder = Path(recipe.training_args["output_dir"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdapterError(
            f"{folder}: cannot be made: {error.strerror}. Choose another training_args.output_dir"
        ) from error


def begin_run_folder(start: Start, output_dir: Path) -> None:
    """Removes what a killed run had half written, and checkpoints that were given up; damaged ones are put aside."""
    for folder in start.damaged:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    old = checkpoints_in(output_dir).values() if start.checkpoint is None else ()
    for folder in (*output_dir.glob(".checkpoint-*"), *output_dir.glob(".adapter.tmp-*"), *old):
        shutil.rmtree(folder)


def cannot_write(error: Exception, target: Path, *, last: Path | None) -> str:
    """What a user is told of a checkpoint that could not be written.

    Args:
        error: What went wrong: the system's error, or one that was made of it.
        target: The checkpoint.
        last: The newest checkpoint that is whole, or None.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    told = str(error)
    if isinstance(cause, OSError):
        told = cause.strerror or str(cause)
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            told += f" ({shutil.disk_usage(target.parent).free / 1e6:.1f} MB are free there)"
    if last is None:
        return (
            f"{target}: the checkpoint cannot be written: {told}. There is no earlier one, so nothing of this run is "
            "kept. Make room, or choose another training_args.output_dir, and start again"
        )
    return (
        f"{target}: the checkpoint cannot be written: {told}. {last.name} is whole: make room and go on from there by "
        "the same command with --resume"
    )


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], config: Any) -> None:
    """Writes adapter and head as plain peft reads them."""
    (folder / WEIGHTS).write_bytes(save(dict(tensors), metadata={"format": "pt"}))
    config.save_pretrained(str(folder))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Adapter and head of a checkpoint, on the CPU."""
    return dict(load_file(folder / WEIGHTS))


def write_state(folder: Path, name: str, state: Any) -> None:
    """Writes what `read_state` reads; through Python, because torch (2.13) does not say that a disk is full."""
    written = io.BytesIO()
    torch.save(state, written)
    (folder / name).write_bytes(written.getbuffer())


def read_state(folder: Path, name: str) -> Any:
    """What `torch.save` wrote into a checkpoint; nothing but tensors, numbers, texts and containers is read."""
    return torch.load(folder / name, map_location="cpu", weights_only=True)
