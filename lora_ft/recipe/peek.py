"""Reads the column names of a data file or folder, and nothing else of it.

One real header: `review,sentiment` -> `Header(("review", "sentiment"))`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lora_ft.recipe.outline import outline

TAG_SUFFIXES = (".conll", ".bio", ".iob2")
TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", *TAG_SUFFIXES)
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet", ".xml")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")

ROWS_SEEN = 100
ENTRIES_SEEN = 10_000
FIRST_CHARACTERS = 1 << 16
MOST_CHARACTERS = 1 << 24

COCO_KEYS: Mapping[str, frozenset[str]] = {
    "images": frozenset({"file_name"}),
    "annotations": frozenset({"image_id", "category_id"}),
    "categories": frozenset({"supercategory"}),
}
"""COCO is told by any of these: the first chunk of a large file holds one of its three lists."""


ROWS_UNDER_DATA = re.compile(r'"data"\s*:\s*\[')


class PeekError(Exception):
    """A file whose columns cannot be read; the text says why and what to do."""


def suffix_of(file: Path) -> str:
    """The suffix that says the format, with `.gz` where the file is compressed; in lower case."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


@dataclass(frozen=True)
class Header:
    """The columns of a file.

    Attributes:
        names: Their names in order: the header of a table, the keys of the first 100 JSON rows, or what the format
            gives. Empty where they cannot be seen without reading much.
        ours: Whether the format gives them our names, whatever `dataset.columns` calls them in other files.
    """

    names: tuple[str, ...]
    ours: bool = False


TEXTS = Header(("text",), ours=True)
TAGGED = Header(("tokens", "tags"), ours=True)
OBJECTS = Header(("image", "objects"), ours=True)
QUESTIONS = Header(("id", "context", "question", "answers"), ours=True)
UNSEEN = Header(())


def header_of(file: Path) -> Header:
    """The columns of a file, or of a folder of images or sounds.

    Args:
        file: A file with one of `SUFFIXES`, or a folder whose subfolders are classes.

    Raises:
        PeekError: The file is empty, unreadable, or not what its suffix says.
    """
    suffix = suffix_of(file)
    try:
        if file.is_dir():
            return _folder(file)
        match suffix.removesuffix(".gz"):
            case ".parquet":
                return _parquet(file)
            case ".xml":
                return _voc(file)
        with _open(file, suffix) as stream:
            return _text_columns(stream, suffix.removesuffix(".gz"))
    except UnicodeDecodeError as error:
        raise PeekError(f"it is not UTF-8 (byte 0x{error.object[error.start]:02x}). Save it in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise PeekError(f"it cannot be read: {error}") from error
    except (csv.Error, ValueError) as error:
        raise PeekError(f"it is not {suffix.removesuffix('.gz')[1:]}: {error}") from error


def _text_columns(stream: IO[str], suffix: str) -> Header:
    match suffix:
        case ".csv":
            return _table(stream, delimiter=",")
        case ".tsv":
            return _table(stream, delimiter="\t")
        case ".json":
            return _json(stream)
        case ".txt":
            return _plain(stream)
        case _ if suffix in TAG_SUFFIXES:
            return _tags(stream)
    return _json_lines(stream)


def _open(file: Path, suffix: str) -> IO[str]:
    if suffix.endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _table(stream: IO[str], *, delimiter: str) -> Header:
    header = next(csv.reader(stream, delimiter=delimiter), [])
    if not header:
        raise PeekError("it is empty. Expected a header line with the column names")
    return Header(tuple(header))


def _plain(stream: IO[str]) -> Header:
    if not stream.read(FIRST_CHARACTERS).strip():
        raise PeekError("it is empty. Expected text")
    return TEXTS


def _tags(stream: IO[str]) -> Header:
    """One word a line with its tag behind it: `Berlin B-LOC`; a blank line between sentences."""
    lines = list(islice((line for line in stream if line.strip()), ROWS_SEEN))
    if not lines:
        raise PeekError("it is empty. Expected a word and its tag on each line")
    if all(len(line.split()) == 1 for line in lines):
        raise PeekError("expected a word and its tag on each line, with a tab or a space between them")
    return TAGGED


def _voc(file: Path) -> Header:
    with file.open("rb") as stream:
        start = stream.read(FIRST_CHARACTERS)
    if b"<annotation" not in start:
        raise PeekError("it is no Pascal VOC annotation. Expected <annotation> around everything else")
    return OBJECTS


def _folder(folder: Path) -> Header:
    """What the first image or sound is, in a subfolder (a class) or in the folder itself."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    inside = (file for entry in entries if entry.is_dir() for file in entry.iterdir())
    seen = list(islice(inside, ENTRIES_SEEN))
    for files, columns in ((seen, ("label",)), (entries, ())):
        suffixes = {file.suffix.lower() for file in files}
        for kind, known in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES)):
            if suffixes & set(known):
                return Header((kind, *columns), ours=True)
    if len(seen) == ENTRIES_SEEN:
        return UNSEEN
    names = [entry for entry in entries if suffix_of(entry) in SUFFIXES]
    instead = f", or files: write {folder.name}/*{suffix_of(names[0])}" if names else ""
    raise PeekError(
        f"it is a folder without images ({IMAGE_SUFFIXES[0]}, ...) or sounds ({AUDIO_SUFFIXES[0]}, ...). Expected a "
        f"subfolder for each class, with files in it{instead}"
    )


def _json_lines(stream: IO[str]) -> Header:
    return _keys([json.loads(line) for line in islice((line for line in stream if line.strip()), ROWS_SEEN)])


def _json(stream: IO[str]) -> Header:
    """A list of rows, `{"data": [rows]}`, COCO, or nested SQuAD."""
    text = stream.read(FIRST_CHARACTERS).lstrip()
    more = stream.read(1)
    if text.startswith("{"):
        found = outline(text)
        known = _known_layout(found, whole=not more)
        if known:
            return known
        start = ROWS_UNDER_DATA.search(text) if found.get("data") else None
        if start is None:
            return _no_layout(text, whole=not more)
        text = text[start.end() - 1 :]
    seen = outline('{"rows":' + text).get("rows", ())
    try:
        first = _first_row(text)
    except ValueError:
        if not more:
            raise
        more += stream.read(MOST_CHARACTERS)
        try:
            first = _first_row(text + more)
        except ValueError:
            if len(more) <= MOST_CHARACTERS:
                raise
            return UNSEEN
    return Header(tuple(dict.fromkeys((*first.names, *seen))))


def _first_row(text: str) -> Header:
    rest = text.removeprefix("[").lstrip()
    return _keys([json.JSONDecoder().raw_decode(rest)[0]] if rest[:1] not in ("", "]") else [])


def _known_layout(found: Mapping[str, tuple[str, ...]], *, whole: bool) -> Header | None:
    """COCO or SQuAD, by the keys of a whole object or of its beginning."""
    if "paragraphs" in found.get("data", ()):
        return QUESTIONS
    if whole:
        if "images" in found and {"annotations", "categories"} & set(found):
            return OBJECTS if "annotations" in found else Header(("image",), ours=True)
    elif any(keys & set(found.get(name, ())) for name, keys in COCO_KEYS.items()):
        return OBJECTS
    return None


def _no_layout(text: str, *, whole: bool) -> Header:
    """An object of no known layout: a fault, unless what would show it lies further on."""
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        if whole:
            raise
        return UNSEEN
    raise PeekError(
        'expected a list of rows, {"data": [rows]}, COCO or nested SQuAD; one object a line: name it .jsonl'
    )


def _keys(rows: list[Any]) -> Header:
    if not rows:
        raise PeekError("it is empty. Expected at least one row")
    if not all(isinstance(row, dict) for row in rows):
        raise PeekError("expected each row to be an object with the columns as keys")
    return Header(tuple(dict.fromkeys(key for row in rows for key in row)))


def _parquet(file: Path) -> Header:
    import pyarrow as pa  # 60 ms, and only parquet needs it
    import pyarrow.parquet as pq

    try:
        return Header(tuple(pq.read_schema(file).names))
    except pa.ArrowException as error:
        raise PeekError(f"it is not parquet: {error}") from error


def saved_columns(folder: Path) -> tuple[str, ...]:
    """The columns of a folder written by `save_to_disk`; empty where they cannot be seen."""
    first = next(iter(sorted(folder.glob("dataset_info.json")) + sorted(folder.glob("*/dataset_info.json"))), None)
    if first is None:
        return ()
    try:
        features = json.loads(first.read_text(encoding="utf-8")).get("features")
    except (OSError, ValueError, AttributeError):
        return ()
    return tuple(features) if isinstance(features, dict) else ()
