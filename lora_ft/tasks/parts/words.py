"""Words of a text by rules of our own, the same for every tokenizer: the smallest units that a tag can have.

"Order A-17 is late." -> Order, A, -, 17, is, late, .    "買了3本" -> 買, 了, 3, 本
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai, Lao; Burmese; Khmer
    (0x2E80, 0x2FDF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x20000, 0x3FFFF),  # Chinese characters, kana
)  # fmt: skip
"""Code points of scripts that put no blanks between words: there each character (with its marks) is a word."""


def split_words(text: str, *, numbers_apart: bool) -> list[tuple[int, int]]:
    """Start and end of each word in characters.

    A word is a run of letters and digits of one script; every other character that is no blank stands alone. Marks
    (accents, vowel signs) belong to the character before them.

    Args:
        text: Any text.
        numbers_apart: Whether digits and letters that touch are two words (`100ml`).
    """
    words: list[tuple[int, int]] = []
    kind_before = ""
    for at, char in enumerate(text):
        kind = _kind(char, numbers_apart=numbers_apart)
        if kind == "mark" and kind_before not in ("", "blank"):
            words[-1] = (words[-1][0], at + 1)
            continue
        if kind == kind_before and kind in ("letter", "digit"):
            words[-1] = (words[-1][0], at + 1)
        elif kind != "blank":
            words.append((at, at + 1))
        kind_before = kind
    return words


def _kind(char: str, *, numbers_apart: bool) -> str:
    if char.isspace():
        return "blank"
    category = unicodedata.category(char)
    if category[0] == "M" or char == "\u200d":
        return "mark"
    if category[0] == "N":
        return "digit" if numbers_apart else "letter"
    if category[0] != "L":
        return "sign"
    code = ord(char)
    return "alone" if any(low <= code <= high for low, high in WITHOUT_BLANKS) else "letter"


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Tokens joined by one blank, and start and end of each in that text, in characters."""
    words, at = [], 0
    for token in tokens:
        words.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), words
