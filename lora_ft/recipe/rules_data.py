"""The rules on the rows: their source and their splits; `rules_columns.py` has those on their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_ft.recipe.draft import Draft, reads_media
from lora_ft.recipe.faults import Fault
from lora_ft.recipe.peek import suffix_of

SHARES = ("validation", "test")


def one_source(draft: Draft) -> Iterator[Fault]:
    """No source of rows, or two."""
    if "dataset" not in draft.values:
        return
    path, files = draft.given("dataset", "path"), draft.given("dataset", "data_files")
    if path and files:
        yield Fault(("dataset", "path"), "path and data_files exclude each other. Keep one of them")
    elif not path and not files:
        yield Fault(
            ("dataset",),
            "there are no rows. Write data_files: {train: FILE}, or path: with a hub id or a saved folder",
        )


def options_fit_the_source(draft: Draft) -> Iterator[Fault]:
    """Options that only a `path` understands."""
    if draft.given("dataset", "path") or not draft.given("dataset", "data_files"):
        return
    for key in ("name", "revision", "split"):
        if draft.given("dataset", key):
            remedy = "name the files of each split in data_files" if key == "split" else "leave it out"
            yield Fault(("dataset", key), f"it needs dataset.path, and the rows come from data_files: {remedy}")


def sample_by_has_texts(draft: Draft) -> Iterator[Fault]:
    """A way to cut text files where there are none."""
    if not draft.given("dataset", "sample_by"):
        return
    files = [Path(file) for split in files_of(draft).values() for file in split]
    written = str(draft.document.find(("dataset", "data_files"))[1])
    if ".txt" not in written and not any(suffix_of(file).removesuffix(".gz") == ".txt" for file in files):
        yield Fault(("dataset", "sample_by"), "it says how .txt files become rows, and there is none. Leave it out")


def media_dir_has_media(draft: Draft) -> Iterator[Fault]:
    """A folder for images or sounds where the task reads neither."""
    if draft.value("dataset", "media_dir") is not None and draft.task is not None and not reads_media(draft.task):
        yield Fault(("dataset", "media_dir"), f"the task {draft.task.name} reads no images or sounds. Leave it out")


def there_is_a_training_split(draft: Draft) -> Iterator[Fault]:
    """Splits without one to train on."""
    for key in ("data_files", "split"):
        splits = draft.document.find(("dataset", key))[1]
        if isinstance(splits, dict) and not draft.given("dataset", key, "train"):
            yield Fault(("dataset", key), f"there is nothing to train on. Write dataset.{key}.train")


def a_split_comes_from_one_place(draft: Draft) -> Iterator[Fault]:
    """A split that is given and split off as well."""
    for split in SHARES:
        for key in ("data_files", "split"):
            if draft.given("dataset", split) and draft.given("dataset", key, split):
                yield Fault(
                    ("dataset", split),
                    f"dataset.{key}.{split} already gives the {split} split. Keep one of them",
                )


def shares_leave_training_rows(draft: Draft) -> Iterator[Fault]:
    """Shares that take all training rows."""
    shares = [draft.number("dataset", split) for split in SHARES]
    if all(0 < share < 1 for share in shares) and sum(shares) >= 1:
        yield Fault(
            ("dataset", "test"),
            f"validation and test take {sum(shares):g} of the rows and leave none to train on",
        )


def a_file_is_in_one_split(draft: Draft) -> Iterator[Fault]:
    """A file that is trained on and measured on."""
    seen: dict[str, str] = {}
    for split, files in files_of(draft).items():
        for file in files:
            if seen.setdefault(file, split) != split:
                yield Fault(
                    ("dataset", "data_files", split),
                    f"{Path(file).name} is in the {seen[file]} split too. Give each split files of its own",
                )
    folders = {file for file in seen if Path(file).is_dir()} if draft.task and reads_media(draft.task) else set()
    for file, split in seen.items():
        around = next((str(one) for one in Path(file).parents if str(one) in folders), "") if folders else ""
        if around and seen[around] != split:
            yield Fault(
                ("dataset", "data_files", split),
                f"{Path(file).name} lies in {short_path(draft, around)}, which is the {seen[around]} split. Give each "
                "split a folder of its own",
            )


def files_of(draft: Draft) -> Mapping[str, tuple[str, ...]]:
    """The files of each split, as far as they are right."""
    files = draft.section("dataset").get("data_files")
    return files if isinstance(files, dict) else {}


def short_path(draft: Draft, file: str) -> str:
    """A path as the recipe would write it."""
    path = Path(file)
    return str(path.relative_to(draft.folder)) if path.is_relative_to(draft.folder) else file
