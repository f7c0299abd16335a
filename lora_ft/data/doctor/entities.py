"""Entities that are nearly always tagged as one thing and here as another, or not at all.

One row: tokens ["Paris", "is", "big"], tags ["B-PER", "O", "O"], where "Paris" is a LOC in 40 other rows.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lora_ft.data.contents import BEGINS, OUTSIDE, TAG, type_of
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.stream import Batch

LEAST_TIMES = 8
MOSTLY = 0.9
"""From this share of one tag on, what is tagged otherwise is odd."""
MOST_FORMS = 100_000
MOST_ROWS = 1_000
"""Places that are kept of a form under one tag: one that has more of them is not the odd one."""
PLACES = 1 << 40
"""Rows of a split are numbered from its number times this on."""
SHOWN = 5


class EntityCheck:
    """Counts the tags of each surface form, of a hundred thousand forms at most.

    Args:
        tokens: Whether rows have `tokens` and `tags`, else `text` and `spans`.
    """

    NAMES = ("inconsistent-tags",)

    def __init__(self, *, tokens: bool) -> None:
        self.tokens = tokens
        self.counts: dict[str, Counter[str]] = {}
        self.places: dict[tuple[str, str], array[int]] = {}
        self.looked: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        self.looked[batch.split] = self.looked.get(batch.split, 0) + len(batch.inputs)
        start = list(self.looked).index(batch.split) * PLACES + batch.start
        for at, forms in enumerate(self._forms(batch.raw)):
            for form, name in forms:
                if form not in self.counts and len(self.counts) >= MOST_FORMS:
                    continue
                self.counts.setdefault(form, Counter())[name] += 1
                kept = self.places.setdefault((form, name), array("q"))
                if len(kept) < MOST_ROWS:
                    kept.append(start + at)

    def _forms(self, raw: Mapping[str, Sequence[Any]]) -> Iterator[list[tuple[str, str]]]:
        if self.tokens:
            for words, tags in zip(raw["tokens"], raw["tags"], strict=True):
                yield list(entities(words, tags))
        else:
            for text, spans in zip(raw["text"], raw["spans"], strict=True):
                yield [(text[span["start"] : span["end"]], span["label"]) for span in spans]

    def findings(self) -> list[Finding]:
        """See `Check`."""
        odd: set[int] = set()
        shown: Counter[str] = Counter()
        for form, counts in self.counts.items():
            (usual, most), total = counts.most_common(1)[0], counts.total()
            if usual == OUTSIDE or len(counts) < 2 or total < LEAST_TIMES or most < MOSTLY * total:
                continue
            for name in counts.keys() - {usual}:
                odd.update(self.places[form, name])
                told = name if name != OUTSIDE else "nothing"
                shown[f"{form!r} {usual} {most}, {told} {counts[name]}"] += total
        found = []
        for number, (split, of) in enumerate(self.looked.items()):
            rows = np.array(sorted(one % PLACES for one in odd if one // PLACES == number), dtype=np.int64)
            if len(rows):
                examples = "; ".join(text for text, _ in shown.most_common(SHOWN))
                found.append(
                    Finding(
                        "inconsistent-tags", "note", split, len(rows), of,
                        f"tag something otherwise than nearly all other rows ({examples})",
                        "Look at them: one that was overlooked teaches the model to overlook it; a word that means two "
                        "things is right",
                        rows=rows,
                    )
                )  # fmt: skip
        return found


def entities(words: Sequence[str], tags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The surface form and type of each entity, and each single word that is none with `O`."""
    held: list[str] = []
    last = OUTSIDE
    for word, tag in zip(words, tags, strict=False):
        name, match = type_of(tag), TAG.fullmatch(tag)
        if held and (name != last or (match is not None and match[1] in BEGINS)):
            yield " ".join(held), last
            held = []
        if name == OUTSIDE:
            yield word, OUTSIDE
        else:
            held.append(word)
        last = name
    if held:
        yield " ".join(held), last
