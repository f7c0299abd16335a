"""What `predict` and `evaluate` refuse before torch is imported: files that are not there, what a task cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_ft.errors import InputError

MEDIA = ("image", "audio")


def refuse_place(option: str, file: Path | None) -> None:
    """Refuses a file that could not be written in the end.

    Args:
        option: The option that names it.
        file: The file to be, or None.

    Raises:
        InputError: Its folder is not there, or it is a folder itself.
    """
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise InputError(f"{option} {file}: there is no folder {file.parent}. Make it, or give another file")
    if file.is_dir():
        raise InputError(f"{option} {file}: it is a folder. Expected the name of a file to write")


def refuse_question(adapter: Path, words: Sequence[str], *, stream: bool, pictures: Path | None) -> None:
    """Refuses to ask an adapter for what its task has not, or of files that are not there.

    Args:
        adapter: A whole adapter folder, or the run folder above it.
        words: Of the command line.
        stream: Whether generated text is wanted as it comes.
        pictures: Where predictions are to be drawn, or None.

    Raises:
        InputError: The task generates no text, has nothing to draw, or there is no such image or sound.
    """
    from lora_ft.adapters.verify import read_manifest, resolve_adapter
    from lora_ft.tasks.base import Task, load_task

    task = load_task(read_manifest(resolve_adapter(adapter)).task)
    if stream and type(task).stream is Task.stream:
        raise InputError(f"predict: --stream: {task.name} generates no text. Leave it out")
    if pictures is not None and type(task).draw is Task.draw:
        raise InputError(f"predict: --pictures: {task.name} has nothing to draw. Leave it out")
    kind = next((column.kind for column in task.inputs() if column.name == task.argument), "text")
    absent = [word for word in words if kind in MEDIA and not Path(word).exists()]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise InputError(
            f"predict: {absent[0]}{more}: there is no such file or folder. Expected {kind} files, or folders of them"
        )


def refuse_sources(data: Path | None, split: str | None) -> None:
    """Refuses rows that would come from two places, or from a file that is not there.

    Args:
        data: `--data`.
        split: `--split`.

    Raises:
        InputError: Both were given, or there is no such file.
    """
    if data is not None and split is not None:
        raise InputError(
            f"evaluate: --data {data} and --split {split}: rows come from a file or from the recipe. Give one of them"
        )
    if data is not None and not data.exists():
        raise InputError(f"evaluate: --data {data}: there is no such file. Expected rows with what was to be learned")


def refuse_split(adapter: Path, split: str | None) -> None:
    """Refuses a split that the recipe of an adapter has not.

    Args:
        adapter: A whole adapter folder, or the run folder above it.
        split: `--split`.

    Raises:
        InputError: There is no such split.
    """
    if split is None:
        return
    from lora_ft.adapters.verify import resolve_adapter
    from lora_ft.recipe.reader import read_document

    file = resolve_adapter(adapter) / "recipe.yaml"
    dataset = read_document(file).value["dataset"]
    named = dataset.get("data_files") or dataset.get("split")
    if not isinstance(named, dict):
        return  # the source knows
    known = [name for name in ("train", "validation", "test") if named.get(name) or dataset.get(name) is not None]
    if split not in known:
        raise InputError(
            f"evaluate: --split {split}: the recipe of this adapter ({file}) has: {', '.join(known)}. "
            "Choose one of these, or give rows with --data FILE"
        )
