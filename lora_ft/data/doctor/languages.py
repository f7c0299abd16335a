"""Texts in a language that the rest of the rows is not in, though they share its script.

One row: among English reviews "La instalación del producto fue bastante simple" is `es`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

import numpy as np

from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.scripts import NONE, USUAL, main_script
from lora_ft.data.doctor.stream import Batch
from lora_ft.data.language import SURE, languages_of

MOST_ROWS = 10_000
"""Rows of a split that are asked, evenly spaced: two seconds."""
LEAST_SURE = 20
"""With fewer rows whose language is certain nobody can say which are usual."""
NO_LANGUAGE = "zxx"
RELATED = (
    {"no", "nn", "da"}, {"hr", "bs", "sr", "sl"}, {"id", "ms", "jv"}, {"cs", "sk"}, {"pt", "gl"}, {"en", "pcm"},
    {"es", "gl", "an", "ext"}, {"zh", "yue", "wuu"}, {"ar", "ary", "arz"}, {"fr", "wa", "oc", "gcf", "gcr"},
    {"it", "lij", "vec"}, {"az", "tr", "crh", "tk"}, {"ru", "uk", "be", "bg", "mk"}, {"nl", "af", "fy"}, {"de", "lb"},
    {"fa", "ps"}, {"hi", "ne", "mr"}, {"ca", "oc"}, {"lt", "ltg", "lv"}, {"kk", "ky", "tt", "ba"}, {"fi", "et"},
)  # fmt: skip
"""Languages that are taken for each other; where one of them is usual the others are no surprise."""


class LanguageCheck:
    """Keeps two bytes for each row that it asks: its language, if that is certain, and its script.

    Args:
        rows: Split -> how many rows it has.
    """

    NAMES = ("unexpected-language",)

    def __init__(self, rows: Mapping[str, int]) -> None:
        self.step = {split: max(1, -(-count // MOST_ROWS)) for split, count in rows.items()}
        self.codes: dict[str, int] = {}
        self.rows: dict[str, array[int]] = {}
        self.languages: dict[str, array[int]] = {}
        self.scripts: dict[str, array[int]] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        step = self.step[batch.split]
        chosen = range(-batch.start % step, len(batch.inputs), step)
        texts = [batch.inputs[at] for at in chosen]
        self.rows.setdefault(batch.split, array("q")).extend(batch.start + at for at in chosen)
        self.scripts.setdefault(batch.split, array("b")).extend(map(main_script, texts))
        self.languages.setdefault(batch.split, array("h")).extend(
            self.codes.setdefault(code, len(self.codes)) if probability >= SURE and code != NO_LANGUAGE else NONE
            for code, probability in languages_of(texts)
        )

    def findings(self) -> list[Finding]:
        """See `Check`; a text in an unexpected script is left to the check of scripts."""
        total: Counter[int] = Counter()
        scripts: Counter[int] = Counter()
        for split, languages in self.languages.items():
            total.update(languages)
            scripts.update(self.scripts[split])
        known = sum(count for language, count in total.items() if language != NONE)
        if known < LEAST_SURE:
            return []
        name_of = {number: code for code, number in self.codes.items()}
        usual = {name_of[one] for one, count in total.items() if one != NONE and count >= USUAL * known}
        expected = usual.union(*(group for group in RELATED if group & usual))
        strange = [number for code, number in self.codes.items() if code not in expected]
        usual_scripts = [one for one, count in scripts.items() if one != NONE and count >= USUAL * known]
        found = []
        for split, languages in self.languages.items():
            numbers, of = np.array(languages), len(languages)
            odd = np.isin(numbers, strange) & np.isin(np.array(self.scripts[split]), usual_scripts)
            if odd.any():
                counts = Counter(name_of[one] for one in numbers[odd].tolist())
                told = ", ".join(f"{code} {count}" for code, count in counts.most_common(10))
                asked = f"; {of} rows were asked, evenly spaced" if self.step[split] > 1 else ""
                found.append(
                    Finding(
                        "unexpected-language", by_share(int(odd.sum()), of), split, int(odd.sum()), of,
                        f"are in another language than the rest ({told}; the rest: {', '.join(sorted(usual))}{asked})",
                        "Take them out, or add more of them if the model is to read them",
                        rows=np.array(self.rows[split], dtype=np.int64)[odd],
                    )
                )  # fmt: skip
        return found
