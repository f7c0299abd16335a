"""Checkpoints of a run folder: which one to go on from, and never from one of another recipe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_ft.errors import AdapterError
from lora_ft.recipe.reader import parse_document, read_document
from lora_ft.recipe.schema import Recipe
from lora_ft.recipe.write import resolved_yaml

RECORD = "recipe.yaml"
MAY_DIFFER = frozenset(
    f"training_args.{name}" for name in ("output_dir", "disable_tqdm", "report_to", "save_total_limit", "log_level")
)
"""Keys that change nothing of what is learned."""


def checkpoint_to_resume(recipe: Recipe, *, resume: bool, overwrite: bool) -> Path | None:
    """Decides where a run begins, before anything heavy is loaded.

    Args:
        recipe: The recipe; its `output_dir` holds the checkpoints.
        resume: Whether to go on from the newest checkpoint.
        overwrite: Whether checkpoints of an earlier run may be given up.

    Returns:
        The checkpoint to go on from, or None: from the start.

    Raises:
        AdapterError: There is no checkpoint to resume from, it belongs to another recipe, or there are checkpoints of
            an earlier run and nobody said what to do with them.
    """
    folder = Path(recipe.training_args["output_dir"])
    found = newest_checkpoint(folder)
    if resume:
        if found is None:
            raise AdapterError(f"{folder}: no checkpoint to resume from. Leave out --resume to start anew")
        refuse_other_recipe(folder / RECORD, recipe)
        return found
    if found is not None and not overwrite:
        raise AdapterError(
            f"{folder}: there are checkpoints of an earlier run (newest: {found.name}). Add --resume to go on "
            "from there, --overwrite to give them up, or choose another training_args.output_dir"
        )
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step, `checkpoint-264`; as transformers finds it, without importing it."""
    found = {
        path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*") if path.is_dir()
    }
    steps = {path: int(match.group(1)) for path, match in found.items() if match is not None}
    return max(steps, key=steps.__getitem__, default=None)


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


def begin_run_folder(recipe: Recipe, *, resumed: bool) -> None:
    """Records the recipe in the run folder; a run from the start first gives up the checkpoints of the one before."""
    folder = Path(recipe.training_args["output_dir"])
    if not resumed:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    temporary = folder / f".{RECORD}.tmp"
    temporary.write_text(resolved_yaml(recipe), encoding="utf-8")
    temporary.replace(folder / RECORD)


def refuse_other_recipe(record: Path, recipe: Recipe) -> None:
    """Refuses to go on with a recipe that is not the one of the checkpoints.

    Raises:
        AdapterError: It differs; with every key that does, or the record is missing.
    """
    if not record.is_file():
        raise AdapterError(
            f"{record}: missing, so nobody knows which recipe made the checkpoints. Start anew with --overwrite"
        )
    then = dict(_flat(read_document(record).value))
    now = dict(_flat(parse_document(resolved_yaml(recipe), name=str(recipe.file)).value))
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key) and key not in MAY_DIFFER)
    if keys:
        changes = "; ".join(f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in keys[:5])
        raise AdapterError(
            f"{record}: the checkpoints were made by another recipe ({changes}). Use that one, or start anew with "
            "--overwrite"
        )


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield ".".join(path), value
