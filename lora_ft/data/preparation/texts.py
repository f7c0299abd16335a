"""Steps that rewrite texts, in one order: the same in training and, by what the manifest says, at predict time.

One text: "<b>GREAT</b> phone!!  see http://shop.example/1" -> "great phone!! see http", by `strip_html`,
`replace_urls: http`, `lowercase` and `collapse_whitespace`.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import datasets
import ftfy

from lora_ft.data.preparation.html_text import text_of_html
from lora_ft.data.progress import WATCHED_ROWS, quiet
from lora_ft.recipe.schema import TEXT_STEPS, PreparationSection

Step = tuple[str, Callable[[str], str]]
"""A word of the recipe, and what it does to a text."""

URL = re.compile(r"(?i)\b(?:https?://|ftp://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]")
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
MENTION = re.compile(r"(?<![\w@/.])@\w+")
WORD = re.compile(r"\w+(?:['’]\w+)*\s*")
MASKS = {"[MASK]": "\ue000", "<mask>": "\ue001"}
"""Masks of known tokenizers, which no step may touch: a text to fill in has one. Signs of no script stand for them."""
BATCH_ROWS = 1_000


def text_settings(section: PreparationSection) -> dict[str, Any]:
    """The steps that rewrite texts as plain JSON, complete in itself: a list of stop words has all its words.

    Args:
        section: `preparation` of a recipe.

    Returns:
        Word of the recipe -> its value, in the order in which the steps run; empty: texts stay as they are.
    """
    words: Iterable[str] = section.stop_words or ()
    if section.stop_words == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: scikit-learn takes 40 MB

        words = sorted(ENGLISH_STOP_WORDS)
    given = {
        "fix_encoding": section.fix_encoding,
        "strip_html": section.strip_html,
        "normalization": section.normalization,
        "replace_urls": section.replace_urls,
        "replace_emails": section.replace_emails,
        "replace_mentions": section.replace_mentions,
        "replace": [list(pair) for pair in section.replace],
        "lowercase": section.lowercase,
        "stop_words": list(words),
        "collapse_whitespace": section.collapse_whitespace,
    }
    return {name: value for name, value in given.items() if value not in (None, False, [])}


def text_steps(settings: Mapping[str, Any]) -> list[Step]:
    """The steps behind what `text_settings` gave, in their order whatever that of the mapping."""
    makers: dict[str, Callable[[Any], Callable[[str], str]]] = {
        "fix_encoding": lambda _: _mended,
        "strip_html": lambda _: text_of_html,
        "normalization": lambda form: partial(unicodedata.normalize, form),
        "replace_urls": partial(_replacing, URL),
        "replace_emails": partial(_replacing, EMAIL, sign="@"),
        "replace_mentions": partial(_replacing, MENTION, sign="@"),
        "replace": _by_rules,
        "lowercase": lambda _: str.lower,
        "stop_words": _without_words,
        "collapse_whitespace": lambda _: _collapsed,
    }
    return [(name, makers[name](settings[name])) for name in TEXT_STEPS if name in settings]


def prepared_text(text: str, steps: Sequence[Step], *, counted: Counter[str] | None = None) -> str:
    """A text after all steps.

    Args:
        text: The text as it was given.
        steps: What `text_steps` made.
        counted: Gets one more for each step that changed the text.
    """
    masked = [mask for mask in MASKS if mask in text]
    for mask in masked:
        text = text.replace(mask, MASKS[mask])
    for name, step in steps:
        new = step(text)
        if counted is not None and new != text:
            counted[name] += 1
        text = new
    for mask in masked:
        text = text.replace(MASKS[mask], mask)
    return text


def prepared_row(row: Mapping[str, Any], columns: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """One row with its texts prepared; see `prepared_rows`."""
    steps = text_steps(settings)
    return {name: prepared_text(value, steps) if name in columns else value for name, value in row.items()}


def prepared_rows(
    rows: datasets.Dataset,
    columns: Sequence[str],
    settings: Mapping[str, Any],
    *,
    counted: Counter[str] | None = None,
) -> datasets.Dataset:
    """Rows with their texts prepared, in memory; without steps or texts, the same object.

    Args:
        rows: Rows under our column names.
        columns: The columns that may be rewritten, `Task.free_texts`; those that are not there do not matter.
        settings: What `text_settings` gave, or the manifest.
        counted: Gets for each step the number of rows that it changed.
    """
    names = [name for name in columns if name in rows.column_names]
    if not settings or not names:
        return rows
    steps = text_steps(settings)

    def prepare(batch: Mapping[str, list[str]]) -> dict[str, list[str]]:
        changed = [Counter[str]() for _ in batch[names[0]]]
        made = {
            name: [prepared_text(text, steps, counted=one) for text, one in zip(batch[name], changed, strict=True)]
            for name in names
        }
        if counted is not None:
            for one in changed:
                counted.update(one.keys())  # a row with two texts is one row
        return made

    with quiet(unless=len(rows) >= WATCHED_ROWS):
        return rows.map(
            prepare,
            batched=True,
            batch_size=BATCH_ROWS,
            keep_in_memory=True,
            new_fingerprint=uuid.uuid4().hex,
            desc=f"prepare {len(rows)} texts",
        )


def _mended(text: str) -> str:
    """Encoding damage, and nothing else that ftfy could do."""
    mended: str = ftfy.fix_text(text, _ftfy_settings())
    return mended


@cache
def _ftfy_settings() -> Any:
    return ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization=None,
    )


def _replacing(pattern: re.Pattern[str], word: str, *, sign: str = "") -> Callable[[str], str]:
    """Puts a word in the place of each match; only looked for in texts with the sign that each match has."""
    return lambda text: pattern.sub(lambda _: word, text) if sign in text else text  # a word is no template


def _by_rules(rules: Sequence[Sequence[str]]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def replace(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return replace


def _without_words(words: Sequence[str]) -> Callable[[str], str]:
    """Takes words out whole, whatever their case, with the blank after them."""
    out = frozenset(word.casefold() for word in words)

    def keep(found: re.Match[str]) -> str:
        return "" if found[0].rstrip().casefold() in out else found[0]

    return lambda text: WORD.sub(keep, text)


def _collapsed(text: str) -> str:
    return " ".join(text.split())
