"""A text as words and signs with what stands between them, so that single words can be taken out, moved and changed.

"My phone, it broke."  ->  My | phone | , | it | broke | .   of which the signs never vary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_ft.tasks.parts.words import split_words

if TYPE_CHECKING:
    import numpy as np

JOINERS = "'\u2019-"
"""Signs that make one word of two where there is no blank: don't, well-made."""

SHORTEST_NOISY = 3
"""A word of fewer letters is another word with each typing error."""

KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Piece:
    """A word or a sign of a text.

    Attributes:
        before: The white space between the piece before it and this one.
        text: The piece itself.
        varies: Whether it is a word that may be taken out, moved or changed.
        tag: What is to be learned of it and moves with it; empty where a text has no tags.
    """

    before: str
    text: str
    varies: bool
    tag: str = ""


Edit = Callable[[Sequence[Piece], float, "np.random.Generator"], "list[Piece] | None"]
"""Pieces, the share of them to change and a generator -> the pieces changed; None where nothing can be changed."""


def pieces_of(
    text: str, *, keep: Callable[[str], bool], fixed: Iterable[tuple[int, int]] = ()
) -> tuple[list[Piece], str]:
    """Cuts a text.

    Args:
        text: Any text.
        keep: Whether a word must stay as it is.
        fixed: Start and end, in characters, of what must stay as it is; both lie between words.

    Returns:
        The pieces, each part of `fixed` one of them, and the white space after the last.
    """
    spans = sorted(fixed)
    pieces: list[Piece] = []
    at = 0
    for start, end in _words(text, spans):
        inside = (start, end) in spans
        word = text[start:end]
        varies = not inside and any(char.isalpha() for char in word) and not keep(word)
        pieces.append(Piece(text[at:start], word, varies))
        at = end
    return pieces, text[at:]


def joined(pieces: Iterable[Piece], tail: str = "") -> str:
    """The text of pieces."""
    return "".join(piece.before + piece.text for piece in pieces) + tail


def _words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and end of each piece; what a joiner joins is one word, and each span is one piece."""
    words: list[tuple[int, int]] = []
    joins = False  # whether the piece before is a joiner right after a word
    for start, end in _outside(split_words(text, numbers_apart=bool(spans)), spans):
        touches = bool(words) and words[-1][1] == start and words[-1] not in spans and (start, end) not in spans
        if joins and touches and text[start].isalnum():
            words[-2:] = [(words[-2][0], end)]
            joins = False
            continue
        joins = touches and text[start:end] in JOINERS and text[start - 1].isalnum()
        words.append((start, end))
    return words


def _outside(words: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The words outside of spans, and the spans."""
    free = [(start, end) for start, end in words if not any(left < end and start < right for left, right in spans)]
    return sorted([*free, *spans])


def delete_words(pieces: Sequence[Piece], share: float, rng: np.random.Generator) -> list[Piece] | None:
    """Takes a share of the words out, at least one, never the last one that varies.

    Source:
        Wei and Zou, EDA (2019), arXiv:1901.11196, section 2, random deletion; the number of words is fixed here.
    """
    free = _varying(pieces)
    if len(free) < 2:
        return None
    gone = {free[at] for at in rng.choice(len(free), size=min(_count(share, len(free)), len(free) - 1), replace=False)}
    left: list[Piece] = []
    at_start = False  # whether what comes next stands where a word without white space before it was
    for at, piece in enumerate(pieces):
        if at in gone:
            at_start = at_start or not piece.before
            continue
        left.append(replace(piece, before="") if at_start else piece)
        at_start = False
    return left


def swap_words(pieces: Sequence[Piece], share: float, rng: np.random.Generator) -> list[Piece] | None:
    """Lets two words change places, as often as a share of the words says, at least once.

    Source:
        Wei and Zou, EDA (2019), arXiv:1901.11196, section 2, random swap.
    """
    moved, free = list(pieces), _varying(pieces)
    if len({pieces[at].text for at in free}) < 2:
        return None
    for _ in range(_count(share, len(free))):
        one, other = (free[at] for at in rng.choice(len(free), size=2, replace=False))
        first, second = moved[one], moved[other]
        moved[one] = replace(first, text=second.text, tag=second.tag)
        moved[other] = replace(second, text=first.text, tag=first.tag)
    return moved


def replace_synonyms(
    pieces: Sequence[Piece], share: float, rng: np.random.Generator, *, synonyms: Callable[[str], Sequence[str]]
) -> list[Piece] | None:
    """Replaces a share of the words, at least one, by a synonym in the same case; words that have none stay.

    Source:
        Wei and Zou, EDA (2019), arXiv:1901.11196, section 2, synonym replacement.
    """
    free = _varying(pieces)
    known = [at for at in free if synonyms(pieces[at].text.lower())]
    if not known:
        return None
    changed = list(pieces)
    for index in rng.choice(len(known), size=min(_count(share, len(free)), len(known)), replace=False):
        piece = pieces[known[index]]
        found = synonyms(piece.text.lower())
        changed[known[index]] = replace(piece, text=_in_case_of(piece.text, found[int(rng.integers(len(found)))]))
    return changed


def mistype(pieces: Sequence[Piece], share: float, rng: np.random.Generator) -> list[Piece] | None:
    """Makes typing errors in a share of the letters, at least one: a neighbouring key, one too few, twice, swapped."""
    letters = [
        (at, where)
        for at in _varying(pieces)
        if len(pieces[at].text) >= SHORTEST_NOISY
        for where, char in enumerate(pieces[at].text)
        if char.isalpha()
    ]
    if not letters:
        return None
    changed = list(pieces)
    chosen = rng.choice(len(letters), size=_count(share, len(letters)), replace=False)
    for at, where in sorted((letters[one] for one in chosen), reverse=True):
        changed[at] = replace(changed[at], text=_mistyped(changed[at].text, where, rng))
    return changed


def _mistyped(word: str, at: int, rng: np.random.Generator) -> str:
    """One typing error at one letter of a word."""
    char = word[at]
    near = _neighbours(char)
    swaps = at + 1 < len(word) and word[at + 1] != char
    kinds = ["double", *(["drop"] if len(word) > 1 else []), *(["near"] if near else []), *(["swap"] if swaps else [])]
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "near":
        return word[:at] + near[int(rng.integers(len(near)))] + word[at + 1 :]
    if kind == "swap":
        return word[:at] + word[at + 1] + char + word[at + 2 :]
    return word[:at] + (char * 2 if kind == "double" else "") + word[at + 1 :]


def _neighbours(char: str) -> str:
    """The keys beside a letter, in its case; none of letters that an English keyboard has not."""
    for row in KEY_ROWS:
        at = row.find(char.lower())
        if at >= 0:
            found = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
            return found.upper() if char.isupper() else found
    return ""


def _varying(pieces: Sequence[Piece]) -> list[int]:
    return [at for at, piece in enumerate(pieces) if piece.varies]


def _count(share: float, of: int) -> int:
    """How many of so many a share is; at least one."""
    return min(of, max(1, round(share * of)))


def _in_case_of(word: str, other: str) -> str:
    """Another word in capitals or with a capital where the word is."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
