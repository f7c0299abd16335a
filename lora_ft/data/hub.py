"""A hub id, or a folder written by `save_to_disk` -> the source's tables for our splits, by `datasets`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.cache.cache import Cache

from lora_ft.data.progress import quiet
from lora_ft.errors import DataError, closest
from lora_ft.recipe.schema import DatasetSection

logger = logging.getLogger(__name__)

SOURCE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
COMMIT = re.compile(r"[0-9a-f]{40}")


def load_tables(dataset: DatasetSection, *, offline: bool) -> dict[str, tuple[str, datasets.Dataset]]:
    """Loads the tables of our splits.

    Without `dataset.split`, our validation is the source's `validation`, `valid`, `val`, `dev` or `eval`, the
    first that exists, and likewise for train and test; the log says which.

    Args:
        dataset: With `path`: a hub id or a folder.
        offline: Only look into the cache of `datasets`.

    Returns:
        Our split -> the source's name for messages (`imdb[test]`) and its table.

    Raises:
        DataError: Not found, not cached, not readable, or without the splits that were asked for.
    """
    found = _load(dataset, offline=offline)
    tables = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    wanted = dict(dataset.split) or _usual_splits(tables)
    if "train" not in wanted:
        raise DataError(
            f"dataset.path = {dataset.path}: has no train split. Its splits are: {', '.join(tables)}. "
            f"Write `split: {{train: <one of these>}}`"
        )
    if not dataset.split:
        logger.info("%s: %s", dataset.path, ", ".join(f"{ours} is {theirs!r}" for ours, theirs in wanted.items()))
    return {
        ours: (f"{dataset.path}[{expression}]", _cut(tables, expression, key=f"dataset.split.{ours}"))
        for ours, expression in wanted.items()
    }


def _load(dataset: DatasetSection, *, offline: bool) -> datasets.Dataset | datasets.DatasetDict:
    assert dataset.path is not None
    if Path(dataset.path).is_absolute():
        return _load_folder(Path(dataset.path))
    return _load_cached(dataset) if offline else _load_hub(dataset)


def _usual_splits(tables: Mapping[str, datasets.Dataset]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for ours, names in SOURCE_NAMES.items():
        theirs = next((name for name in names if name in tables), None)
        if theirs is not None:
            wanted[ours] = theirs
    return wanted


def _cut(tables: Mapping[str, datasets.Dataset], expression: str, *, key: str) -> datasets.Dataset:
    """The rows of a split expression of `datasets`, `train[:80%]+test`."""
    lengths = {name: len(table) for name, table in tables.items()}
    try:
        pieces = datasets.ReadInstruction.from_spec(expression).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        name = re.split(r"[\[+]", expression)[0]
        near = "" if name in tables else closest(name, tables)
        raise DataError(
            f"{key} = {expression}: {str(error).strip()}.{near} The source has: {', '.join(tables)}. "
            f"Expected a split expression such as 'train' or 'train[:80%]'"
        ) from error
    return datasets.concatenate_datasets(
        [tables[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces]
    )


def _load_folder(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    if not folder.is_dir():
        raise DataError(
            f"dataset.path = {folder}: there is no such folder. Check the path, or give files as data_files"
        )
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(
            f"dataset.path = {folder}: is not a folder written by save_to_disk: {_first_line(error)}. "
            "Expected dataset_dict.json or dataset_info.json and state.json in it; give single files as "
            "data_files"
        ) from error


def _load_hub(dataset: DatasetSection) -> datasets.DatasetDict:
    assert dataset.path is not None
    try:
        return datasets.load_dataset(dataset.path, name=dataset.name, revision=dataset.revision)
    except (OSError, ValueError, RuntimeError, DatasetGenerationError) as error:
        raise DataError(
            f"dataset.path = {dataset.path}: cannot be loaded from the hub: {_first_line(error)}. "
            f"Check path, name and revision, and whether the hub can be reached; "
            f"a local folder written by save_to_disk works too"
        ) from error


def _load_cached(dataset: DatasetSection) -> datasets.DatasetDict:
    """Reads the newest copy that `datasets` has cached, without asking the hub for a newer one."""
    assert dataset.path is not None
    told = f"dataset.path = {dataset.path}: offline, and it is not in the cache of `datasets`"
    remedy = "Load it once with a network (`offline: false`), or give a folder written by save_to_disk"
    try:
        with quiet():
            builder = Cache(
                dataset_name=dataset.path.rsplit("/", maxsplit=1)[-1],
                repo_id=dataset.path,
                config_name=dataset.name,
                version="auto",
                hash="auto",
            )
            builder.download_and_prepare()
            tables = builder.as_dataset()
    except (OSError, ValueError) as error:
        raise DataError(f"{told}: {_first_line(error)}. {remedy}") from error
    if dataset.revision is not None and COMMIT.fullmatch(dataset.revision) and builder.hash != dataset.revision:
        raise DataError(f"{told} at revision {dataset.revision} (there is {builder.hash}). {remedy}")
    logger.info("%s: offline, the cached copy %s", dataset.path, builder.hash)
    return tables


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].rstrip(". ")
