"""Texts in a script that the rest of the rows is not in, and words that mix look-alike letters of several.

One row: among English reviews "Отличная книга, советую" is CYRILLIC; in "pаypal" the second letter is a Cyrillic one.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from functools import cache

import numpy as np

from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.stream import Batch

FAMILIES = (
    ("LATIN",), ("CYRILLIC",), ("GREEK",), ("ARABIC",), ("HEBREW",), ("DEVANAGARI",), ("BENGALI",), ("TAMIL",),
    ("TELUGU",), ("THAI",), ("GEORGIAN",), ("ARMENIAN",), ("ETHIOPIC",), ("HANGUL",), ("CJK", "HIRAGANA", "KATAKANA"),
    ("GUJARATI",), ("GURMUKHI",), ("KANNADA",), ("MALAYALAM",), ("SINHALA",), ("KHMER",), ("LAO",), ("MYANMAR",),
    ("TIBETAN",), ("MONGOLIAN",),
)  # fmt: skip
"""Scripts as the names of characters in Unicode begin; Japanese is written in three of them at once."""
NUMBER = {word: index for index, words in enumerate(FAMILIES) for word in words}
NONE = -1
LOOKED_AT = 400
LEAST_LETTERS = 4
USUAL = 0.05
"""A script that this share of the rows is in belongs to the data."""
ALIKE = r"[\u0400-\u04ff\u0391\u0392\u0395-\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf]"
LOOKALIKE = re.compile(f"[A-Za-z]{ALIKE}|{ALIKE}[A-Za-z]")
"""A Latin letter beside a Cyrillic one, or a Greek one that looks Latin (not beta or mu, which science writes)."""


@cache
def script_of(character: str) -> int:
    """The number of a letter's script in `FAMILIES`; -1 of what is no letter, or of a script that is not there."""
    if not character.isalpha():
        return NONE
    return NUMBER.get(unicodedata.name(character, "").split(" ")[0].split("-")[0], NONE)


def main_script(text: str) -> int:
    """The script of most letters at the beginning of a text; -1 where there are too few letters to tell."""
    head = text[:LOOKED_AT]
    if head.isascii():
        return 0 if sum(map(str.isalpha, head[:40])) >= LEAST_LETTERS else NONE
    counts = Counter(map(script_of, head))
    counts.pop(NONE, None)
    script, most = counts.most_common(1)[0] if counts else (NONE, 0)
    return script if most >= (2 if script == NUMBER["CJK"] else LEAST_LETTERS) else NONE


class ScriptCheck:
    """Keeps one byte for each row: its main script."""

    NAMES = ("unexpected-script", "mixed-script-words")

    def __init__(self) -> None:
        self.scripts: dict[str, array[int]] = {}
        self.rows: dict[str, array[int]] = {}
        self.mixed: dict[str, array[int]] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        self.scripts.setdefault(batch.split, array("b")).extend(map(main_script, batch.inputs))
        self.rows.setdefault(batch.split, array("q")).extend(range(batch.start, batch.start + len(batch.inputs)))
        mixed = self.mixed.setdefault(batch.split, array("q"))
        for at, text in enumerate(batch.inputs):
            if not text.isascii() and LOOKALIKE.search(text):
                mixed.append(batch.start + at)

    def findings(self) -> list[Finding]:
        """See `Check`."""
        total = Counter(script for scripts in self.scripts.values() for script in scripts)
        known = sum(count for script, count in total.items() if script != NONE)
        usual = {script for script, count in total.items() if script != NONE and count >= USUAL * known}
        found = []
        for split, scripts in self.scripts.items():
            numbers = np.array(scripts, dtype=np.int64)
            strange = (numbers != NONE) & ~np.isin(numbers, sorted(usual))
            rows, of = np.array(self.rows[split], dtype=np.int64), len(numbers)
            if strange.any():
                told = ", ".join(f"{name_of(one)} {n}" for one, n in Counter(numbers[strange].tolist()).most_common())
                expected = ", ".join(map(name_of, sorted(usual)))
                found.append(
                    Finding(
                        "unexpected-script", by_share(int(strange.sum()), of), split, int(strange.sum()), of,
                        f"are written in another script than the rest ({told}; the rest: {expected})",
                        "Take them out, or add more of them if the model is to read them; a base for one language "
                        "knows few of these tokens: look at `unknown-tokens`",
                        rows=rows[strange],
                    )
                )  # fmt: skip
            mixed = np.array(self.mixed[split], dtype=np.int64)
            if len(mixed):
                found.append(
                    Finding(
                        "mixed-script-words", by_share(len(mixed), of), split, len(mixed), of,
                        "have words with letters of several scripts that look alike (a Cyrillic \u0430 in p\u0430ypal)",
                        "Replace the look-alikes: to a tokenizer they are other letters", rows=mixed,
                    )
                )  # fmt: skip
        return found


def name_of(script: int) -> str:
    """What a script is called: `Latin`, `Cjk/Hiragana/Katakana`."""
    return "/".join(word.capitalize() if word != "CJK" else "Chinese" for word in FAMILIES[script])
