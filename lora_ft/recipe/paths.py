"""Makes the paths of a recipe absolute and expands the patterns of its data files."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_ft.recipe.draft import Draft, reads_media
from lora_ft.recipe.faults import Fault, KeyPath, nearest
from lora_ft.recipe.peek import AUDIO_SUFFIXES, IMAGE_SUFFIXES, SUFFIXES, suffix_of

NEAR = 0.6
SYNONYM_SUFFIXES = (".dat", ".tsv", ".jsonl")
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def resolve_paths(draft: Draft) -> list[Fault]:
    """Makes every path of a draft absolute: relative ones start at the recipe's folder, overrides' too.

    Args:
        draft: The recipe; its values are changed, and a path with a fault is removed.

    Returns:
        Folders and files that do not exist, patterns without a match, unknown kinds of file.
    """
    faults: list[Fault] = []
    for path, make in SINGLE_PATHS.items():
        text = draft.value(*path)
        if isinstance(text, str):
            section, key = path
            try:
                draft.values[section][key] = make(text, draft.folder)
            except (_PathError, OSError) as error:
                del draft.values[section][key]
                faults.append(Fault(path, _reason(error)))
    files = draft.value("dataset", "data_files")
    if files is not None:
        _resolve_files(draft, files, faults)
    weights = draft.value("preparation", "mixing_weights")
    if weights is not None:
        _resolve_weights(draft, weights, faults)
    return faults


def _reason(error: _PathError | OSError) -> str:
    return f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


class _PathError(Exception):
    """What is wrong with one path."""


def _absolute(text: str, folder: Path) -> Path:
    if not text.strip() or "\0" in text:
        raise _PathError("expected a path")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise _PathError(f"the home folder in {text!r} is not known. Write the whole path") from None
    return Path(os.path.normpath(folder / path))


def _hub_or_folder(text: str, folder: Path) -> str:
    """A folder if it looks like one or exists beside the recipe, else a hub id."""
    path = _absolute(text, folder)
    if path.is_dir():
        return str(path)
    if text.startswith((".", "~")) or Path(text).is_absolute():
        raise _PathError(f"there is no such folder.{_near(path, text)}")
    if not HUB_ID.fullmatch(text):
        near = _near(path, text)
        raise _PathError(f"it is neither a folder beside the recipe nor a hub id ('owner/name').{near}")
    return text


def _base(text: str, folder: Path) -> str:
    resolved = _hub_or_folder(text, folder)
    if Path(resolved).is_absolute() and not (Path(resolved) / "config.json").is_file():
        if (Path(resolved) / "adapter_config.json").is_file():
            raise _PathError("this folder holds an adapter. Expected the folder of a base model")
        raise _PathError("this folder has no config.json. Expected the folder of a base model")
    return resolved


def _output(text: str, folder: Path) -> str:
    output = _absolute(text, folder)
    for path in (output, *output.parents):
        if path.is_file():
            what = "it is a file" if path == output else f"{path} is a file"
            raise _PathError(f"{what}. Expected a folder, which is made if it does not exist")
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                what = "it" if path == output else str(path)
                raise _PathError(f"{what} may not be written to. Give another folder, or the right to write there")
            break
    return str(output)


def _folder(text: str, folder: Path) -> str:
    path = _absolute(text, folder)
    if not path.is_dir():
        what = "it is a file. Expected a folder" if path.is_file() else f"there is no such folder.{_near(path, text)}"
        raise _PathError(what)
    return str(path)


def _json_file(text: str, folder: Path) -> str:
    if text.startswith("{"):
        return text
    path = _absolute(text, folder)
    if not path.is_file():
        raise _PathError(f"there is no such file.{_near(path, text)}")
    return str(path)


def _synonyms(text: str, folder: Path) -> str:
    path = _json_file(text, folder)
    if Path(path).suffix.lower() not in SYNONYM_SUFFIXES:
        raise _PathError(
            f"expected a file of synonyms: {', '.join(SYNONYM_SUFFIXES)}; docs/augmentation.md says what is in it"
        )
    return path


def _template(text: str, folder: Path) -> str:
    return text if "{" in text else _json_file(text, folder)


SINGLE_PATHS: dict[tuple[str, str], Callable[[str, Path], str]] = {
    ("model", "pretrained_model_name_or_path"): _base,
    ("dataset", "path"): _hub_or_folder,
    ("dataset", "media_dir"): _folder,
    ("training_args", "output_dir"): _output,
    ("training_args", "deepspeed"): _json_file,
    ("training_args", "fsdp_config"): _json_file,
    ("training_args", "accelerator_config"): _json_file,
    ("processor", "chat_template"): _template,
    ("augmentation", "synonyms"): _synonyms,
}
"""Each path with the function that makes it absolute; those of JSON and templates may also be the content itself."""


def _resolve_files(draft: Draft, files: Any, faults: list[Fault]) -> None:
    """`data_files` as split -> sorted absolute files; one file or a list alone means `train`."""
    whole: KeyPath = ("dataset", "data_files")
    splits = files if isinstance(files, dict) else {"train": files}
    resolved: dict[str, tuple[str, ...]] = {}
    for split, patterns in splits.items():
        found: list[str] = []
        several = isinstance(patterns, list)
        for index, pattern in enumerate(patterns if several else [patterns]):
            at = (*whole, split) if isinstance(files, dict) else whole
            try:
                found += _expand(pattern, draft.folder, folders=draft.task is None or reads_media(draft.task))
            except (_PathError, OSError) as error:
                faults.append(Fault((*at, index) if several else at, _reason(error)))
        if several and not patterns:
            faults.append(Fault((*whole, split), "expected at least one file"))
        if found:
            resolved[split] = tuple(dict.fromkeys(found))
    draft.values["dataset"]["data_files"] = resolved


def _resolve_weights(draft: Draft, weights: Mapping[str, float], faults: list[Fault]) -> None:
    """`mixing_weights` with absolute keys; a pattern stays one, because its files are one source."""
    resolved: dict[str, float] = {}
    for pattern, weight in weights.items():
        try:
            _expand(pattern, draft.folder, folders=draft.task is None or reads_media(draft.task))
            resolved[str(_absolute(pattern, draft.folder))] = weight
        except (_PathError, OSError) as error:
            faults.append(Fault(("preparation", "mixing_weights", pattern), _reason(error)))
    draft.values["preparation"]["mixing_weights"] = resolved


def _expand(pattern: str, folder: Path, *, folders: bool) -> list[str]:
    """The files of one name or pattern; a folder by itself where the task reads `folders` of images or sounds."""
    path = _absolute(pattern, folder)
    if path.is_dir():
        if folders:
            return [str(path)]
        raise _PathError(f"it is a folder. Expected files: write {pattern.rstrip('/')}/*.csv")
    if path.is_file():
        found = [str(path)]
    elif glob.has_magic(pattern):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(one for one in matches if Path(one).is_file())
        if not found:
            raise _PathError(f"no file matches this pattern in {path.parent}")
    else:
        raise _PathError(f"there is no such file.{_near(path, pattern)}")
    for one in found:
        suffix = suffix_of(Path(one))
        if suffix in (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES):
            raise _PathError(
                f"{Path(one).name} is one image or sound. Expected the folder whose subfolders are the classes, or a "
                "table with a column of paths"
            )
        if suffix not in SUFFIXES:
            raise _PathError(f"{Path(one).name} is no kind of file that can be read. Expected {', '.join(SUFFIXES)}")
    return found


def _like(one: str, other: str) -> bool:
    """Whether two names without their endings are near: all files of a folder may have the same ending."""
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= NEAR


def _near(path: Path, text: str) -> str:
    """The nearest name that exists, or the first folder on the way that does not."""
    if os.access(path.parent, os.R_OK):
        near = nearest(path.name, sorted(one.name for one in path.parent.iterdir() if _like(one.stem, path.stem)))
        if near:
            start = text[: len(text) - len(Path(text).name)] if text.endswith(Path(text).name) else ""
            return near.replace(" Did you mean '", f" Did you mean '{start}", 1)
        return f" Nothing in {path.parent} has a name like it"
    missing = path.parent
    while not missing.parent.is_dir():
        missing = missing.parent
    return f" The folder {missing} does not exist"
