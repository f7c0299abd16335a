r"""Files of tagged words: one word a line with its tag in the last column, a blank line between sentences.

One row: `EU\tB-ORG\nrejects\tO\n` -> tokens ["EU", "rejects"], tags ["B-ORG", "O"].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.data.rows import FileRows
from lora_ft.errors import DataError

SPACES = re.compile(r"[ \t]+")
DOCUMENT_MARK = "-DOCSTART-"
Line = tuple[int, list[str]]


def conll_rows(file: Path, text: str) -> FileRows:
    """The sentences of a file.

    Fields are separated by tabs where a line has one, else by spaces; the first is the word, the last the tag. Lines
    that begin with `#` and have another number of fields are comments; `-DOCSTART-` lines are left out.

    Args:
        file: Its name, for messages.
        text: What it holds.

    Returns:
        `tokens` and `tags`, numbered by the line of the first word; only `tokens` where no line has a tag.

    Raises:
        DataError: There is no sentence in it.
    """
    lines = list(_lines(text))
    width = next((len(fields) for _, fields in lines if fields and not fields[0].startswith("#")), 0)
    if not width:
        raise DataError(f"{file}: there is no word in it. Expected one word a line, its tag in the last column")
    sentences: list[list[Line]] = [[]]
    for number, fields in lines:
        if not fields:
            sentences.append([])
        elif fields[0] != DOCUMENT_MARK and not (fields[0].startswith("#") and len(fields) != width):
            sentences[-1].append((number, fields))
    kept = [sentence for sentence in sentences if sentence]
    faults = []
    for position, sentence in enumerate(kept):
        reason = _fault(sentence, width)
        if reason is not None:
            faults.append((position, reason))
    columns = {"tokens": [[fields[0] for _, fields in sentence] for sentence in kept]}
    if width > 1:
        columns["tags"] = [[fields[-1] for _, fields in sentence] for sentence in kept]
    line, (word, *_) = kept[0][0]
    untagged = (
        f"{file}:{line}: the line has one field ({word!r}) where two are needed: a word, and its tag in the last one"
    )
    return FileRows(
        columns, [sentence[0][0] for sentence in kept], ours=True, faults=faults, lacks="" if width > 1 else untagged
    )


def _lines(text: str) -> Iterator[Line]:
    """The fields of each line, none for a blank one."""
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.removesuffix("\r")
        if not line.strip():
            yield number, []
        elif "\t" in line:
            yield number, [field.strip() for field in line.split("\t")]
        else:
            yield number, SPACES.split(line.strip(" "))


def _fault(sentence: list[Line], width: int) -> str | None:
    for number, fields in sentence:
        if len(fields) != width:
            return f"tags: line {number} has {len(fields)} fields, most others have {width}"
        if not fields[0]:
            return f"tokens: line {number} has no word"
    return None
