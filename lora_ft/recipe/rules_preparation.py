"""The rules on the preparation of texts and rows, and on how shares of the training rows are split off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.recipe.draft import Draft, has_split, reads_media, sets_of
from lora_ft.recipe.faults import Fault, nearest
from lora_ft.recipe.mixing import source_of
from lora_ft.recipe.peek import PeekError, header_of
from lora_ft.recipe.rules_columns import MOST_FILES_PEEKED
from lora_ft.recipe.rules_data import SHARES, files_of, short_path
from lora_ft.recipe.schema import TEXT_STEPS
from lora_ft.recipe.words import LENGTHS

KEYS = ("group", "time")
ROW_STEPS = ("deduplicate", *LENGTHS, "languages", "decontaminate")
"""Steps that read the texts of training rows."""

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def text_steps_have_free_texts(draft: Draft) -> Iterator[Fault]:
    """Rewriting the texts of a task that has none, or whose labels point into them."""
    task = draft.task
    if task is None:
        return
    if not task.free_texts:
        kinds = {column.kind for column in task.columns}
        reason = (
            "the labels of {} are places in its texts, and rewriting a text would move them"
            if kinds & {"spans", "answers", "labels"}
            else "{} has no texts that may be rewritten"
        ).format(task.name)
    elif sets_of(draft) and not any(set(names) & set(task.free_texts) for names in sets_of(draft).values()):
        reason = "the rows are chats, whose turns are kept as they are"
    else:
        return
    for word in TEXT_STEPS:
        if draft.section("preparation").get(word) not in (None, False, ()):
            yield Fault(("preparation", word), f"{reason}. Leave it out, or mend the texts in the file")


def row_steps_have_texts(draft: Draft) -> Iterator[Fault]:
    """Filters that read texts where a model is given images or sounds."""
    if draft.task is None or not reads_media(draft.task):
        return
    for word in ROW_STEPS:
        if draft.section("preparation").get(word) not in (None, ()):
            yield Fault(("preparation", word), f"{draft.task.name} is not given texts to look at. Leave it out")


def replacements_compile(draft: Draft) -> Iterator[Fault]:
    """A regular expression that is none, or a replacement that names a group that it has not."""
    for number, (pattern, replacement) in enumerate(draft.section("preparation").get("replace", ())):
        try:
            re.compile(pattern).sub(replacement, "")
        except (re.error, IndexError, OverflowError) as error:  # the latter: no such group name, a repetition too large
            yield Fault(
                ("preparation", "replace", number),
                f"{pattern!r} -> {replacement!r} is no replacement by Python's `re`: {error}. Mend it; in YAML a "
                "pattern in single quotes needs no doubled backslashes",
            )


def lengths_leave_room(draft: Draft) -> Iterator[Fault]:
    """A least length above the greatest."""
    for least, most in zip(LENGTHS[::2], LENGTHS[1::2], strict=True):
        low, high = draft.value("preparation", least), draft.value("preparation", most)
        if low is not None and high is not None and low > high:
            yield Fault(("preparation", least), f"it is above {most} = {high}, and no row would be left. Lower it")


def languages_are_codes(draft: Draft) -> Iterator[Fault]:
    """Names of languages instead of codes, or a threshold without languages."""
    section = draft.section("preparation")
    for number, code in enumerate(section.get("languages", ())):
        if not LANGUAGE_CODE.fullmatch(code):
            yield Fault(
                ("preparation", "languages", number), "expected the code of a language, as en, de or zh (ISO 639)"
            )
    if "language_threshold" in section and not section.get("languages"):
        yield Fault(("preparation", "language_threshold"), "it needs preparation.languages. Leave it out")


def decontamination_has_rows(draft: Draft) -> Iterator[Fault]:
    """Taking out what is measured on, where nothing is."""
    if draft.value("preparation", "decontaminate") is not None:
        splits = [has_split(draft, split) for split in SHARES]
        if all(found is False for found in splits):
            yield Fault(
                ("preparation", "decontaminate"),
                "there is neither a validation nor a test split to compare with. Leave it out, or write one",
            )


def sample_is_rows_or_a_share(draft: Draft) -> Iterator[Fault]:
    """A number of rows that is not whole."""
    sample = draft.number("preparation", "sample")
    if sample > 1 and sample != int(sample):
        yield Fault(("preparation", "sample"), "expected a whole number of rows, or below 1 a share of them")


def mixing_weights_name_the_training_files(draft: Draft) -> Iterator[Fault]:
    """Weights of no file, files without a weight, one source alone, weights that draw nothing."""
    at = ("preparation", "mixing_weights")
    weights = draft.value(*at)
    if not weights:
        if draft.given("preparation", "stopping_strategy") and not draft.given(*at):
            yield Fault(("preparation", "stopping_strategy"), "it needs preparation.mixing_weights. Leave it out")
        return
    for key, weight in weights.items():
        if weight <= 0:
            yield Fault((*at, _written(draft, key)), "expected a weight above 0; to leave a file out, take it out")
    if draft.given("dataset", "path"):
        yield Fault(at, "it weighs the training files, and the rows come from dataset.path. Leave it out")
        return
    files = files_of(draft).get("train", ())
    if not files:
        return
    found = {file: source_of(file, weights) for file in files}
    for file, key in found.items():
        if key is None:
            yield Fault(at, f"{short_path(draft, file)} has no weight. Give each training file one")
    for key in weights:
        if key not in found.values():
            near = nearest(short_path(draft, key), [short_path(draft, file) for file in files])
            yield Fault((*at, _written(draft, key)), f"it is none of the training files.{near} Take it out")
    if len(weights) == 1:
        yield Fault(at, "one source alone is not mixed. Give several files a weight, or leave it out")


def _written(draft: Draft, key: str) -> str:
    """A key of `mixing_weights` as the recipe has it."""
    written = draft.document.find(("preparation", "mixing_weights"))[1]
    asked = Path(key)
    return next((one for one in written or () if (draft.folder / Path(one).expanduser()) == asked), key)


def keys_split_shares_off(draft: Draft) -> Iterator[Fault]:
    """A column to split by where nothing is split off, two of them, or one that a file does not have."""
    given = [key for key in KEYS if draft.value("dataset", key) is not None]
    if len(given) == 2:
        yield Fault(("dataset", "time"), "group and time exclude each other. Keep the one that new rows will differ by")
    for key in given:
        if not any(draft.given("dataset", share) for share in SHARES):
            yield Fault(
                ("dataset", key),
                "it says how rows are split off, and none are. Write dataset.validation or dataset.test as a share, "
                "or leave it out",
            )
            continue
        for file in files_of(draft).get("train", ())[:MOST_FILES_PEEKED]:
            try:
                header = header_of(Path(file))
            except PeekError:
                continue  # another rule says it
            name = draft.value("dataset", key)
            if header.names and name not in header.names:
                listed = f" Its columns: {', '.join(header.names[:20])}{', ...' if len(header.names) > 20 else ''}"
                near = nearest(name, header.names)
                yield Fault(("dataset", key), f"{short_path(draft, file)} has no column {name!r}.{near}{listed}")
