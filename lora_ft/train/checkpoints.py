"""Checkpoints of a run folder: which one to go on from, whether it is whole, and never one of another recipe.

    runs/shop/checkpoint-264/checkpoint.json    {"format": 1, "step": 264, "best_step": 176, "files": {...}, "run": ...}

Nothing heavy is imported here: what is wrong shows before torch is loaded. See docs/checkpoints.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.adapters.verify import MANIFEST, hash_file, verify_files
from lora_ft.errors import AdapterError, InputError
from lora_ft.recipe.reader import parse_document, read_document
from lora_ft.recipe.schema import Recipe
from lora_ft.recipe.write import resolved_yaml

RECORD, RECIPE, OPTIMIZER = "checkpoint.json", "recipe.yaml", "optimizer.pt"
FORMAT = 1
MAY_DIFFER = frozenset(
    (
        *(
            f"training_args.{key}"
            for key in ("output_dir", "disable_tqdm", "report_to", "save_total_limit", "log_level")
        ),
        "training_args.per_device_eval_batch_size",
        *(f"lean.{key}_gb" for key in ("activation_limit", "dequantized", "prefix_cache_ram", "prefix_cache_disk")),
        "lean.max_tokens_per_eval_batch",
    )
)
"""Keys that change nothing of what is learned."""
PLACES = ("dataset.data_files.", "dataset.data_dir", "model.pretrained_model_name_or_path", "checks.")
"""Beginnings of keys that may differ too: rows and base are compared themselves, see `lora_ft/train/same_run.py`."""
SAME_PRODUCT = frozenset(
    f"training_args.{name}" for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
)
"""Keys that may differ while their product with the number of processes does not; see `lora_ft/train/same_run.py`."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        folder: Where it is.
        step: The optimizer step after which it was saved.
        best_step: The step of the best checkpoint until then; None where nothing was compared.
        run: What the run was made of: processes, rows a step, base, data.
        digest: SHA-256 of its record, and so of all that it holds.
        has_optimizer: Whether a run can go on from it; `save_only_model` leaves it out.
    """

    folder: Path
    step: int
    best_step: int | None
    run: Mapping[str, Any]
    digest: str
    has_optimizer: bool


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: What to go on from; None: from the first step.
        told: What the user should know of it, a line each.
        damaged: Folders of checkpoints that are not whole; to be put aside.
    """

    checkpoint: Checkpoint | None
    told: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()


def where_to_start(recipe: Recipe, *, resume: bool, auto_resume: bool, overwrite: bool) -> Start:
    """Decides where a run begins, before anything heavy is loaded.

    Args:
        recipe: The recipe; its `output_dir` holds the checkpoints.
        resume: Whether to go on from the newest checkpoint; there must be one.
        auto_resume: Whether to go on from it if there is one.
        overwrite: Whether checkpoints of an earlier run may be given up.

    Returns:
        The newest whole checkpoint whose best one is whole too, or none.

    Raises:
        AdapterError: There is no checkpoint to resume from, it belongs to another recipe, or there are checkpoints of
            an earlier run and nobody said what to do with them.
    """
    folder = Path(recipe.training_args["output_dir"])
    steps = checkpoints_in(folder)
    if not (resume or auto_resume):
        if steps and not overwrite:
            raise AdapterError(
                f"{folder}: there are checkpoints of an earlier run (newest: {steps[max(steps)].name}). Add --resume "
                "to go on from there, --overwrite to give them up, or choose another training_args.output_dir"
            )
        return Start(None)
    if not steps and resume:
        raise AdapterError(f"{folder}: no checkpoint to resume from. Leave out --resume to start anew")
    start = _newest_whole(steps)
    if start.checkpoint is None:
        if resume:
            raise AdapterError(
                f"{folder}: no checkpoint is whole: {'; '.join(start.told)}. Start anew with --overwrite"
            )
        return start
    refuse_other_recipe(start.checkpoint.folder / RECIPE, recipe)
    if not start.checkpoint.has_optimizer:
        raise AdapterError(
            f"{start.checkpoint.folder}: holds the adapter alone, no optimizer (training_args.save_only_model: true): "
            "a run cannot go on from it. Start anew with --overwrite"
        )
    return start


def finished(recipe: Recipe) -> bool:
    """Whether the adapter of a recipe is there already, whole and made by this very recipe.

    Raises:
        AdapterError: There is one that is damaged, or that another recipe made.
    """
    adapter = Path(recipe.training_args["output_dir"]) / "adapter"
    if not (adapter / MANIFEST).is_file():
        return False
    verify_files(adapter)
    refuse_other_recipe(adapter / RECIPE, recipe)
    return True


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint's record and makes sure that all it names is there, to the last bit.

    Raises:
        AdapterError: It is not whole; says what is wrong.
        InputError: Whether it is whole cannot be said: another version wrote it, or it cannot be read.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_bytes())
        own = record.pop("sha256")
        files, step, best = record["files"], int(record["step"]), record["best_step"]
        run, written = dict(record["run"]), record["format"]
    except FileNotFoundError as error:
        raise AdapterError(f"{folder.name}: {RECORD} is missing: it was never finished") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}. Mend that, then go on") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{folder.name}: {RECORD} cannot be read ({type(error).__name__}: {error})") from error
    if own != digest_of(record):
        raise AdapterError(f"{folder.name}: {RECORD} was changed after it was written")
    if written != FORMAT:
        raise InputError(
            f"{file}: has format {written}, this version of lora_ft reads {FORMAT}. Go on with the version that wrote "
            "it, or start anew with --overwrite"
        )
    for name, expected in files.items():
        place = folder / name
        try:
            same = place.stat().st_size == expected["bytes"] and hash_file(place).sha256 == expected["sha256"]
        except FileNotFoundError as error:
            raise AdapterError(f"{folder.name}: {name} is missing") from error
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror or error}. Mend that, then go on") from error
        if not same:
            raise AdapterError(f"{folder.name}: {name} is not what was written")
    return Checkpoint(folder, step, None if best is None else int(best), run, own, OPTIMIZER in files)


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its own digest."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def step_of(folder: Path) -> int | None:
    """The step that a folder is named after; None where it is named otherwise, such as `checkpoint-8.bak`."""
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(named.group(1)) if named is not None else None


def checkpoints_in(output_dir: Path) -> dict[int, Path]:
    """Folders of a run folder that are named like checkpoints, by their step, oldest first."""
    found = {step_of(path): path for path in output_dir.glob("checkpoint-*") if path.is_dir()}
    return {step: found[step] for step in sorted(one for one in found if one is not None)}


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is, as transformers names it."""
    return output_dir / f"checkpoint-{step}"


def refuse_other_recipe(record: Path, recipe: Recipe) -> None:
    """Refuses to go on with a recipe that is not the one of a checkpoint or of an adapter.

    Args:
        record: The resolved recipe that lies within it.
        recipe: The recipe.

    Raises:
        AdapterError: It differs; with every key that does.
    """
    then = dict(_flat(read_document(record).value))
    now = dict(_flat(parse_document(resolved_yaml(recipe), name=str(recipe.file)).value))
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    keys = [key for key in keys if key not in MAY_DIFFER | SAME_PRODUCT and not key.startswith(PLACES)]
    if keys:
        changes = "; ".join(f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in keys[:5])
        raise AdapterError(
            f"{record.parent}: was made by another recipe ({changes}). Use that one, or start anew with --overwrite"
        )


def _newest_whole(steps: Mapping[int, Path]) -> Start:
    """The newest checkpoint that is whole, and whose best one is.

    Raises:
        AdapterError: There are whole ones, and the best one that they all count on is not.
    """
    told: list[str] = []
    damaged: list[Path] = []
    without_best: list[str] = []
    for step in sorted(steps, reverse=True):
        try:
            found = read_checkpoint(steps[step])
        except AdapterError as error:
            told.append(f"damaged: {error}")
            damaged.append(steps[step])
            continue
        lost = _lost_best(found)
        if lost is None:
            return Start(found, tuple(told), tuple(damaged))
        without_best.append(f"{found.folder.name} is whole, but its best one is not: {lost}")
    if without_best:
        raise AdapterError(
            f"{next(iter(steps.values())).parent}: {'; '.join(without_best)}. Put the best one back, or start anew "
            "with --overwrite"
        )
    return Start(None, tuple(told), tuple(damaged))


def _lost_best(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the best checkpoint that another one counts on; None where nothing is."""
    if checkpoint.best_step is None or checkpoint.best_step == checkpoint.step:
        return None
    try:
        read_checkpoint(checkpoint_folder(checkpoint.folder.parent, checkpoint.best_step))
    except AdapterError as error:
        return str(error)
    return None


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield ".".join(path), value
