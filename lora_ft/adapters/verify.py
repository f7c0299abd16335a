"""Finds, reads and verifies an adapter folder without torch: files, checksums, labels, names and shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.adapters.manifest import FileInfo, Manifest, TensorInfo
from lora_ft.adapters.tensors import LABELS_KEY, SCALE, head_tensors, read_header
from lora_ft.errors import AdapterError, AdapterRefused, closest

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
WEIGHTS_INT8 = "adapter_model.int8.safetensors"
"""In the place of `WEIGHTS` where the matrices are stored in 8 bits: plain peft must not find what it would misread."""

CONFIG = "adapter_config.json"
REQUIRED = (CONFIG, WEIGHTS, "recipe.yaml", "metrics.json", "README.md")
READ_BY_A_LOADER = (
    *(
        ".bin",
        ".ckpt",
        ".h5",
        ".joblib",
        ".msgpack",
        ".npy",
        ".npz",
        ".onnx",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
    ),
    *(".py", ".pyc", ".so", ".safetensors"),
    *(".jinja", ".json", ".model", ".txt", ".vocab"),
)
"""Kinds of files that peft, transformers or Python would read, and that must not lie here unlisted."""

NO_OBJECT = "class_labels_classifier"
"""The classifier of DETR and YOLOS, which has one more row than labels: there is nothing here."""


def resolve_adapter(path: Path) -> Path:
    """Finds the adapter folder that a user means.

    Args:
        path: An adapter folder, or the run folder that holds `adapter/`.

    Returns:
        The adapter folder.

    Raises:
        AdapterError: There is none; with the nearest name.
    """
    if (path / MANIFEST).is_file() or (path / CONFIG).is_file():
        return path
    if (path / "adapter").is_dir():
        return path / "adapter"
    if path.is_dir():
        inside = [str(found.relative_to(path)) for found in find_adapters(path)]
        hint = f" There are: {', '.join(inside[:5])}." if inside else " lora-ft list finds adapters below a folder."
        raise AdapterError(f"{path}: no adapter here ({MANIFEST} is missing).{hint}")
    left = sorted(path.parent.glob(f".{path.name}.old-*")) if path.parent.is_dir() else []
    if left:
        raise AdapterError(
            f"{path}: no such folder, but an overwrite was interrupted: rename {left[0]} to {path.name} to "
            "get the old adapter back."
        )
    near = closest(path.name, [one.name for one in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise AdapterError(f"{path}: no such folder.{near}")


def find_adapters(root: Path) -> list[Path]:
    """All adapter folders at and below a folder, sorted; hidden folders (unfinished writes) are left out.

    Args:
        root: Where to look.

    Returns:
        Folders with a manifest.

    Raises:
        AdapterError: `root` is no folder.
    """
    if not root.is_dir():
        raise AdapterError(f"{root}: no such folder.")
    found = (path.parent for path in root.rglob(MANIFEST))
    return sorted(one for one in found if not any(part.startswith(".") for part in one.relative_to(root).parts))


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`, and nothing else.

    Args:
        folder: An adapter folder.

    Returns:
        The manifest.

    Raises:
        AdapterRefused: It is missing, edited, incomplete or of a newer format.
    """
    file = folder / MANIFEST
    if file.is_symlink():
        raise AdapterRefused(_link(file))
    if not file.is_file():
        raise AdapterRefused(
            f"{file}: missing. The folder was not written by lora-ft train, or the copy is incomplete. Copy it again."
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AdapterRefused(f"{file}: not readable as UTF-8. Copy the folder again.") from error
    return Manifest.from_json(text, where=str(file))


def verify_files(folder: Path) -> Manifest:
    """Makes sure that an adapter folder is whole and agrees with itself; needs no torch and no base.

    Args:
        folder: An adapter folder.

    Returns:
        Its manifest.

    Raises:
        AdapterRefused: With the first reason found.
    """
    manifest = read_manifest(folder)
    weights = folder / (WEIGHTS_INT8 if WEIGHTS_INT8 in manifest.files else WEIGHTS)
    for name in (weights.name if one == WEIGHTS else one for one in REQUIRED):
        if name not in manifest.files:
            raise AdapterRefused(f"{folder / MANIFEST}: files: {name} is not listed.")
    for name, info in manifest.files.items():
        _check_file(folder, name, info)
    _check_no_strangers(folder, manifest)
    tensors, metadata = read_header(weights)
    _check_config(folder / CONFIG, manifest)
    _check_tensors(weights, manifest, tensors=tensors)
    _check_scales(weights, tensors)
    _check_labels(weights, manifest, tensors=tensors, metadata=metadata)
    return manifest


def weights_file(folder: Path) -> Path:
    """The file with the tensors of an adapter, in floating point or in 8 bits.

    Args:
        folder: A verified adapter folder.
    """
    packed = folder / WEIGHTS_INT8
    return packed if packed.is_file() else folder / WEIGHTS


def refuse_other_base(manifest: Manifest, reasons: Sequence[str]) -> None:
    """Refuses a base that is not the one of the adapter.

    Args:
        manifest: Of the adapter.
        reasons: What differs between the recorded fingerprint and the base's; empty if nothing does.

    Raises:
        AdapterRefused: There is a reason.
    """
    if reasons:
        raise AdapterRefused(
            f"base: the adapter was {'adopted' if 'adopted' in manifest.run else 'trained'} on {manifest.base.name}"
            + (f" (revision {manifest.base.revision})" if manifest.base.revision else "")
            + f", and this base is another one: {'; '.join(reasons)}. Give the base it was trained on, or "
            + "train again."
        )


def hash_file(file: Path) -> FileInfo:
    """SHA-256 and size of a file.

    Args:
        file: The file.
    """
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return FileInfo(sha256=digest.hexdigest(), bytes=file.stat().st_size)


def _check_file(folder: Path, name: str, info: FileInfo) -> None:
    """One listed file: a plain file inside the folder with the recorded size and checksum."""
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise AdapterRefused(f"{folder / MANIFEST}: files: {name!r} lies outside the folder.")
    if file.is_symlink():
        raise AdapterRefused(_link(file))
    if not file.is_file():
        raise AdapterRefused(f"{file}: missing. The copy is incomplete; copy the folder again.")
    size = file.stat().st_size
    if size != info.bytes:
        raise AdapterRefused(f"{file}: {size} bytes, recorded are {info.bytes}. Copy the folder again.")
    if hash_file(file) != info:
        raise AdapterRefused(
            f"{file}: the content was changed after training (SHA-256 differs). Copy the folder again; to "
            "change something, change the recipe and train again."
        )


def _check_no_strangers(folder: Path, manifest: Manifest) -> None:
    """No unlisted file that a loader would read, no links."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink():
            raise AdapterRefused(_link(file))
        if name in manifest.files or name == MANIFEST or file.is_dir() or file.name.startswith("."):
            continue
        if file.suffix.lower() in READ_BY_A_LOADER:
            raise AdapterRefused(
                f"{file}: not part of the adapter (not in {MANIFEST}), and a loader would read it. Delete "
                "it if it is not yours."
            )


def _check_config(file: Path, manifest: Manifest) -> None:
    """`adapter_config.json` says the same as the manifest."""
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterRefused(f"{file}: not readable as JSON ({error}). Copy the folder again.") from error
    for key, expected in (("peft_type", manifest.peft_type), ("base_model_name_or_path", manifest.base.name)):
        if config.get(key) != expected:
            raise AdapterRefused(f"{file}: {key} = {config.get(key)!r}, {MANIFEST} says {expected!r}.")
    lost = [name for name in manifest.head if name not in (config.get("modules_to_save") or ())]
    if lost:
        raise AdapterRefused(
            f"{file}: modules_to_save lacks the head {lost}: peft would leave the head untrained. Train again."
        )


def _check_tensors(file: Path, manifest: Manifest, *, tensors: Mapping[str, TensorInfo]) -> None:
    """Names, shapes and dtypes of the tensors are as recorded, and the head is among them."""
    foreign = [name for name in tensors if not name.startswith("base_model.") and name != "prompt_embeddings"]
    if foreign:
        raise AdapterRefused(
            f"{file}: {len(foreign)} of {len(tensors)} tensors have a foreign prefix (first: "
            f"{foreign[0]}); peft expects base_model. and would drop them without a word. Train again."
        )
    for module in manifest.head:
        if not head_tensors(tensors, module):
            raise AdapterRefused(f"{file}: the head {module!r} is missing; peft would start it at random. Train again.")
    missing = sorted(set(manifest.tensors) - set(tensors))
    unexpected = sorted(set(tensors) - set(manifest.tensors))
    if missing or unexpected:
        raise AdapterRefused(
            f"{file}: tensors are not those recorded: {len(missing)} missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}. Copy the folder again."
        )
    for name, info in tensors.items():
        if info != manifest.tensors[name]:
            raise AdapterRefused(
                f"{file}: {name} is {info.dtype} {list(info.shape)}, recorded is "
                f"{manifest.tensors[name].dtype} {list(manifest.tensors[name].shape)}. Copy the folder again."
            )


def _check_scales(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """In the file for 8 bits, each tensor in int8 has its scales."""
    if file.name != WEIGHTS_INT8:
        return
    packed = {name for name, one in tensors.items() if one.dtype == "I8"}
    bare = sorted(name for name in packed if name + SCALE not in tensors)
    if bare or not packed:
        raise AdapterRefused(
            f"{file}: {len(bare)} tensors in int8 have no scales (first: {bare[0] if bare else 'none is in int8'}). "
            "Copy the folder again."
        )


def _check_labels(
    file: Path, manifest: Manifest, *, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> None:
    """The labels stored beside the head are those of the manifest, and the head has a row for each."""
    stored = metadata.get(LABELS_KEY)
    if stored is None or json.loads(stored) != list(manifest.labels):
        raise AdapterRefused(
            f"{file}: the labels stored with the head are {stored}, {MANIFEST} says "
            f"{list(manifest.labels)}: answers would get the wrong names. Copy the folder again."
        )
    if not manifest.labels or not manifest.head:
        return
    names = [name for module in manifest.head for name in head_tensors(tensors, module)]
    if not any(tensors[name].shape[:1] == (len(manifest.labels) + (NO_OBJECT in name),) for name in names):
        raise AdapterRefused(
            f"{file}: no tensor of the head {list(manifest.head)} has a row for each of "
            f"{len(manifest.labels)} labels. Train again."
        )


def _link(file: Path) -> str:
    """The message for a symbolic link."""
    return (
        f"{file}: a link, possibly out of the folder. An adapter folder holds plain files only: copy the "
        "file itself (from the hub with local_dir)."
    )
