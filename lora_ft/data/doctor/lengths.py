"""How long texts are, in characters and tokens, what `max_length` cuts, and which texts are far from all others."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.stream import Batch

HELD = 0.99
"""The share of the training rows that a suggested max_length leaves whole."""
MULTIPLE = 8
LEAST = 16
MUCH_CUT = 0.05
LONG = 10
"""How many times the length that 95 % of the rows stay below makes a text one of another kind."""
SHORT = 20
BINS = 40
UNKNOWN = 0.2

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How lengths are spread over the rows of a split.

    Attributes:
        least: The shortest.
        median: Half of the rows are no longer.
        mean: On average.
        most_rows: 95 % of the rows are no longer.
        nearly_all: 99 % of the rows are no longer.
        most: The longest.
        edges: Edges of the bins of the histogram, one more than `counts`; the last bin holds all that is longer.
        counts: Rows in each bin.
    """

    least: int
    median: int
    mean: float
    most_rows: int
    nearly_all: int
    most: int
    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Lengths) -> Spread:
        """The spread of some lengths, at least one."""
        median, most_rows, nearly_all = (
            int(value) for value in np.quantile(lengths, (0.5, 0.95, 0.99), method="higher")
        )
        width = max(1, -(-nearly_all // BINS))
        bins = np.bincount(np.minimum(lengths // width, BINS), minlength=BINS + 1)
        return cls(
            int(lengths.min()), median, round(float(lengths.mean()), 1), most_rows, nearly_all, int(lengths.max()),
            tuple(width * edge for edge in range(BINS + 2)), tuple(bins.tolist()),
        )  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """How texts become tokens; made by whoever has the tokenizer.

    Attributes:
        count: Texts of one batch (one list for each part of a row, such as a pair) -> for each row its tokens, special
            ones included and nothing cut, and how many of them are unknown to the base.
        max_length: What the recipe has, or its default.
        limit: The most tokens that the base reads.
        cuts: Whether a row that is longer is cut; else it is read in windows.
    """

    count: Callable[[Sequence[Sequence[str]]], tuple[Sequence[int], Sequence[int]]]
    max_length: int
    limit: int
    cuts: bool = True


class LengthCheck:
    """Keeps twelve bytes for each row: its characters, tokens and unknown tokens.

    Args:
        tokens: How texts become tokens; None: only characters are counted.
        given: The columns whose tokens the model is given.
    """

    def __init__(self, tokens: Tokens | None = None, *, given: Sequence[str] = ()) -> None:
        self.tokens = tokens
        self.given = tuple(given)
        self.rows: dict[str, array[int]] = {}
        self.lengths: dict[str, tuple[array[int], array[int], array[int]]] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        self.rows.setdefault(batch.split, array("q")).extend(range(batch.start, batch.start + len(batch.inputs)))
        characters, tokens, unknown = self.lengths.setdefault(batch.split, (array("I"), array("I"), array("I")))
        characters.extend(map(len, batch.inputs))
        if self.tokens is not None:
            counted, strange = self.tokens.count([batch.texts[name] for name in self.given if name in batch.texts])
            tokens.extend(counted)
            unknown.extend(strange)

    def of(self, split: str) -> tuple[Lengths, Lengths, Lengths]:
        """Characters, tokens and unknown tokens of each row of a split; empty where tokens were not counted."""
        characters, tokens, unknown = (np.array(one, dtype=np.int64) for one in self.lengths[split])
        return characters, tokens, unknown

    def suggested(self) -> int | None:
        """The least max_length, a multiple of 8, that leaves 99 % of the training rows whole; None without tokens."""
        if self.tokens is None or "train" not in self.lengths:
            return None
        longest = int(np.quantile(self.of("train")[1], HELD, method="higher"))
        return min(self.tokens.limit, max(LEAST, -(-longest // MULTIPLE) * MULTIPLE))

    def findings(self) -> list[Finding]:
        """See `Check`."""
        found: list[Finding] = []
        for split in self.lengths:
            rows = np.array(self.rows[split], dtype=np.int64)
            found += self._odd(split, rows)
            if self.tokens is not None:
                found += self._tokens(split, rows, self.tokens)
        return found

    def _odd(self, split: str, rows: Lengths) -> list[Finding]:
        """Texts that are far longer or shorter than nearly all others."""
        characters, of = self.of(split)[0], len(rows)
        full = characters[characters > 0]
        if len(full) < SHORT:
            return []
        median, most_rows = np.quantile(full, (0.5, 0.95))
        long = rows[characters > LONG * most_rows]
        short = rows[(characters > 0) & (characters < median / SHORT)]
        remedies = (
            ("very-long-texts", long, f"are over {LONG * most_rows:.0f} characters; 95 % have at most {most_rows:.0f}",
             "Look at them: a missing quote joins rows, and whole documents slip in; split them or take them out"),
            ("very-short-texts", short, f"are under {median / SHORT:.0f} characters; half have {median:.0f} or more",
             "Look at them: a text that was cut off on its way says little of its label"),
        )  # fmt: skip
        return [
            Finding(name, by_share(len(one), of), split, len(one), of, told, remedy, rows=one)
            for name, one, told, remedy in remedies
            if len(one)
        ]

    def _tokens(self, split: str, rows: Lengths, how: Tokens) -> list[Finding]:
        """Rows that are cut, and rows that the base's vocabulary does not know."""
        _, tokens, unknown = self.of(split)
        of, found, suggested = len(rows), list[Finding](), self.suggested()
        cut = rows[tokens > how.max_length]
        if len(cut):
            would = int((tokens > suggested).sum()) if suggested else 0
            verb = "are cut" if how.cuts else "are read in windows, which costs more"
            if suggested and suggested > how.max_length:
                remedy = f"`processor.max_length: {suggested}` would leave {would} of them too long"
            else:
                remedy = "The base reads no more, or hardly a row needs it: look at what is cut, or shorten the texts"
            severity: Any = "warning" if how.cuts and len(cut) >= MUCH_CUT * of else "note"
            told = f"have more than max_length = {how.max_length} tokens and {verb}"
            found.append(Finding("longer-than-max-length", severity, split, len(cut), of, told, remedy, rows=cut))
        strange = rows[(unknown >= 2) & (unknown > UNKNOWN * tokens)]
        if len(strange):
            told = f"are to more than {UNKNOWN:.0%} made of tokens that the base does not know"
            remedy = (
                "Choose a base of this language (`model.pretrained_model_name_or_path`), or take them out: such a "
                "token says nothing"
            )
            severity = by_share(len(strange), of)
            found.append(Finding("unknown-tokens", severity, split, len(strange), of, told, remedy, rows=strange))
        return found
