"""A folder of adapters -> names and folders, and whether they can be one pool; read without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.verify import find_adapters, read_manifest
from lora_ft.errors import AdapterError, InputError

PLAIN = ("adapter", "run")
"""Last parts of a path that `train` makes, and that say nothing of an adapter: `books/run/adapter` is called books."""


Identity = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change in ns and inode of every file of a folder."""


@dataclass(frozen=True)
class PoolFolder:
    """Adapters below a folder that can be one pool.

    Attributes:
        root: The folder.
        folders: Name of each -> its folder.
        first: Manifest of the first one; task and base are those of all.
    """

    root: Path
    folders: Mapping[str, Path]
    first: Manifest


def is_pool(path: Path) -> bool:
    """Whether a path is a folder of several adapters, not an adapter or a run itself."""
    return path.is_dir() and not (path / "adapter_config.json").exists() and not (path / "adapter").is_dir()


def read_pool(root: Path, *, mixed_quantization: bool = False, without: Collection[Path] = ()) -> PoolFolder:
    """Finds the adapters below a folder and makes sure that they belong together.

    Args:
        root: Where to look.
        mixed_quantization: Whether they may have been trained on differently quantised copies of the base.
        without: Folders that are left out.

    Returns:
        Names and folders.

    Raises:
        AdapterError: There is none.
        AdapterRefused: A manifest is damaged.
        InputError: Two have the same name, or another task, base or quantisation.
    """
    found = [folder for folder in find_adapters(root) if folder not in without]
    if not found:
        raise AdapterError(f"{root}: there is no adapter below this folder (a folder with a manifest.json).")
    folders: dict[str, Path] = {}
    for folder in found:
        name = name_of(folder, root=root)
        if name in folders:
            raise InputError(f"{folder}: is called {name!r}, as is {folders[name]}. Rename one of the folders.")
        folders[name] = folder
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    (first_name, first), *others = manifests.items()
    for name, other in others:
        reason = _stranger(first, other, mixed_quantization=mixed_quantization)
        if reason is not None:
            raise InputError(
                f"{folders[name]}: {reason}, that of {folders[first_name]}. One pool has one task and one base: move "
                "one of them to another folder."
            )
    return PoolFolder(root=root, folders=folders, first=first)


def name_of(folder: Path, *, root: Path) -> str:
    """What an adapter is called: its path below `root` without the parts that `train` makes, joined by dots."""
    parts = list(folder.relative_to(root).parts)
    while len(parts) > 1 and parts[-1] in PLAIN:
        parts.pop()
    return ".".join(parts) or root.name


def _stranger(first: Manifest, other: Manifest, *, mixed_quantization: bool) -> str | None:
    """Why an adapter cannot be in one pool with another; None if it can."""
    if other.task != first.task:
        return f"its task is {other.task}, not {first.task}"
    told = ("weights", "shapes", "config", "tokenizer", "inputs")
    mine, theirs = first.base.fingerprint, other.base.fingerprint
    if any(mine.get(key, "none") != theirs.get(key, "none") for key in told):
        return f"its base is {other.base.name} (another fingerprint), not {first.base.name}"
    if other.quantization != first.quantization and not mixed_quantization:
        return (
            f"its base was loaded as {other.quantization or 'not quantised'}, not as {first.quantization or 'such'} "
            "(--quantization decides for all)"
        )
    return None


def identity_of(folder: Path) -> Identity:
    """What tells a changed folder from an unchanged one without reading it.

    Raises:
        AdapterError: It is gone.
    """
    try:
        found = [(file, file.lstat()) for file in sorted(folder.rglob("*"))]
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be read: {error}. Was it moved?") from error
    if not found:
        raise AdapterError(f"{folder}: is gone, or empty. Was it moved?")
    return tuple((file.name, info.st_size, info.st_mtime_ns, info.st_ino) for file, info in found)
