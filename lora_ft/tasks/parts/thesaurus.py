"""Synonyms of a file: a thesaurus of LibreOffice (MyThes, some thirty languages), or a list of one's own.

One entry of th_en_US_v2.dat, meanings in the order of their line:
phone|2
(noun)|telephone|telephone set|electronic equipment (generic term)
(verb)|call|telephone|ring
One line of a table: phone<TAB>telephone<TAB>mobile; of JSON lines: {"word": "phone", "synonyms": ["telephone"]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lora_ft.errors import InputError

SHORTEST = 3
"""Shorter words of a thesaurus are mostly signs of something else (it: information technology, one: i)."""


def synonyms_of(file: Path) -> Callable[[str], Sequence[str]]:
    """Reads a file of synonyms.

    Args:
        file: `.dat` of MyThes, `.tsv` or `.jsonl`.

    Returns:
        A function from a word in lower case to its synonyms, none where the file has none.

    Raises:
        InputError: It cannot be read; the message begins with the key.
    """
    where = f"augmentation.synonyms = {file}"
    read = {".dat": _thesaurus, ".tsv": _table, ".jsonl": _json_lines}[file.suffix.lower()]
    try:
        found = read(file)
    except (OSError, UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{where}: it cannot be read: {error}. Expected {EXPECTED[file.suffix.lower()]}") from error
    except _LineError as error:
        raise InputError(f"{where}: {error}. Expected {EXPECTED[file.suffix.lower()]}") from error
    if not found:
        raise InputError(f"{where}: there is no synonym in it. Expected {EXPECTED[file.suffix.lower()]}")
    return lambda word: found.get(word, ())


EXPECTED: Mapping[str, str] = {
    ".dat": "a thesaurus of LibreOffice (MyThes): its encoding, then word|meanings and a line for each meaning",
    ".tsv": "UTF-8 lines of a word and its synonyms, a tab between them",
    ".jsonl": 'UTF-8 lines such as {"word": "phone", "synonyms": ["telephone"]}',
}


class _LineError(Exception):
    """What is wrong with a line."""


def _thesaurus(file: Path) -> dict[str, tuple[str, ...]]:
    """Word -> the single words of its first meaning; wider and opposite terms have a remark behind a blank."""
    encoding = file.open("rb").readline().decode("ascii").strip()
    found: dict[str, tuple[str, ...]] = {}
    with file.open(encoding=encoding, errors="strict") as stream:
        next(stream)
        for line in stream:
            word, _, count = line.strip().rpartition("|")
            if not count.isdigit():
                raise _LineError(f"{line.strip()[:40]!r} is no entry")
            meanings = [next(stream, "") for _ in range(int(count))]
            terms = meanings[0].strip().split("|")[1:] if meanings else []
            own = (term for term in terms if " " not in term and len(term) >= SHORTEST)
            kept = _others(word, own)
            if len(word) >= SHORTEST and kept:
                found[word.lower()] = kept
    return found


def _table(file: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            word, *terms = (cell.strip() for cell in line.split("\t"))
            if not word or not any(terms):
                raise _LineError(f"line {number} ({line[:40]!r}) has no synonym")
            found[word.lower()] = _others(word, (term for term in terms if term))
    return found


def _json_lines(file: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            word, terms = entry["word"], entry["synonyms"]
        except (ValueError, KeyError, TypeError) as error:
            raise _LineError(f"line {number} ({line[:40]!r}) has no word or no synonyms") from error
        if not isinstance(word, str) or not isinstance(terms, list) or not all(isinstance(one, str) for one in terms):
            raise _LineError(f"line {number} ({line[:40]!r}): word is no text, or synonyms is no list of texts")
        found[word.lower()] = _others(word, terms)
    return found


def _others(word: str, terms: Iterable[str]) -> tuple[str, ...]:
    """The terms that are not the word itself, each once."""
    return tuple(dict.fromkeys(one for one in terms if one.strip() and one.lower() != word.lower()))
