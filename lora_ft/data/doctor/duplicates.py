"""Rows that say the same: exactly or nearly, within a split or across splits, under one label or under several.

One row: "Broke after a week, I want my money back" is a near duplicate of "Broke after one week, I want my money back".
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasketch
import numpy as np
import numpy.typing as npt

from lora_ft.data.doctor.findings import Finding, Rows, Severity
from lora_ft.data.doctor.stream import JOINT, Batch

ALIKE = 0.75
"""From this Jaccard similarity of their words and pairs of words on, two texts are near duplicates."""
BANDS, BAND_ROWS = 16, 5
"""Two texts with a similarity of 0.75 share one of the 16 bands of 5 hashes with a probability of 0.985, two with 0.3
with one of 0.04; who shares one is compared word by word."""
LEAST_WORDS = 6
LATER = 3
PAIRS_AT_ONCE = 2_000
MANY = 0.01
WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|\w+")

Numbers = npt.NDArray[np.int64]
Fetch = Callable[[str, Sequence[int]], Sequence[str]]
"""A split and positions in it -> the inputs of these rows as `Batch.inputs` has them."""


def folded(text: str) -> str:
    """A text without what nobody would call a difference: case and white space."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> set[str]:
    """The words of a text and its pairs of neighbours; signs count as words where a script has no blanks."""
    words = WORD.findall(text.casefold())
    found = set(words)
    found.update(map(" ".join, itertools.pairwise(words)))
    return found


def similarity(one: set[str], other: set[str]) -> float:
    """The Jaccard similarity of two sets, 0 to 1; two empty ones are alike."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


def parts_of(text: str) -> list[set[str]]:
    """The words and pairs of words of each input of a row."""
    return [shingles(part) for part in text.split(JOINT.strip())]


def least_similarity(one: Sequence[set[str]], other: Sequence[set[str]]) -> float:
    """How alike two rows are: as their least similar inputs, or all questions about one text would be alike."""
    return min(map(similarity, one, other))


class DuplicateCheck:
    """Keeps 84 bytes for each row: a hash of its text, the number of its target, and 16 bands of its MinHash.

    Near duplicates: MinHash (Broder 1997) by datasketch, candidates by locality-sensitive hashing, then compared word
    by word. The bands are kept in plain arrays and sorted, because the tables of datasketch's MinHashLSH take some
    kilobytes for each row.

    Args:
        fetch: Reads the inputs of some rows again, for those that seem alike; None: only exact duplicates are found.
        without: Names of findings that somebody else has told already.
    """

    NEAR = ("near-duplicates", "near-leakage")
    NAMES = ("exact-duplicates", "exact-leakage", *NEAR, "conflicting-labels")

    def __init__(self, fetch: Fetch | None, *, without: Sequence[str] = ()) -> None:
        self.fetch = fetch
        self.without = frozenset(without)
        self.splits: list[str] = []
        self.split_of = array("b")
        self.position = array("q")
        self.text = array("Q")
        self.target = array("i")
        self.bands: list[npt.NDArray[np.uint32]] = []
        self.targets: dict[str, int] = {}
        self.minhash = datasketch.MinHash(num_perm=BANDS * BAND_ROWS, seed=1, hashfunc=zlib.crc32, scheme="affine32")
        self.mixers = np.random.default_rng(1).integers(1, 2**63, BAND_ROWS, dtype=np.uint64) | np.uint64(1)

    def add(self, batch: Batch) -> None:
        """See `Check`; empty texts are all alike and are left to another check."""
        if batch.split not in self.splits:
            self.splits.append(batch.split)
        kept = [at for at, text in enumerate(batch.inputs) if text.strip()]
        self.split_of.extend([self.splits.index(batch.split)] * len(kept))
        self.position.extend(batch.start + at for at in kept)
        texts = [folded(batch.inputs[at]) for at in kept]
        self.text.extend(
            int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")
            for text in texts
        )
        for at in kept:
            target = batch.targets[at]
            self.target.append(-1 if target is None else self.targets.setdefault(target, len(self.targets)))
        if self.fetch is not None and kept:
            self.bands.append(self._bands(texts))

    def _bands(self, texts: Sequence[str]) -> npt.NDArray[np.uint32]:
        """The bands of some texts, `(texts, 16)`; 0 where a text is too short to be nearly like another."""
        signatures = np.zeros((len(texts), BANDS * BAND_ROWS), dtype=np.uint32)
        short = np.zeros(len(texts), dtype=bool)
        for at, text in enumerate(texts):
            found = shingles(text)
            if len(found) < LEAST_WORDS:
                short[at] = True
                continue
            self.minhash.clear()
            self.minhash.update_batch([one.encode("utf-8", "replace") for one in found])
            signatures[at] = self.minhash.hashvalues
        parts = signatures.reshape(len(texts), BANDS, BAND_ROWS).astype(np.uint64)
        mixed: npt.NDArray[np.uint32] = ((parts * self.mixers).sum(axis=2) >> np.uint64(32)).astype(np.uint32)
        mixed[short] = 0
        return mixed

    def findings(self) -> list[Finding]:
        """See `Check`."""
        text = np.array(self.text, dtype=np.uint64)
        if not len(text):
            return []
        _, first, group = np.unique(text, return_index=True, return_inverse=True)
        like = first[group]  # (rows,): the first row with the same text, often the row itself
        alone = like == np.arange(len(text))
        found = self._told(like, alone, near=False) + self._conflicts(group)
        if self.fetch is not None:
            near = self._near(np.flatnonzero(alone))
            found += self._told(near, near == np.arange(len(text)), near=True)
        return [finding for finding in found if finding.name not in self.without]

    def _told(self, like: Numbers, alone: npt.NDArray[np.bool_], *, near: bool) -> list[Finding]:
        """Findings of rows that are like an earlier one: in their own split, or in another."""
        split_of, position = np.array(self.split_of), np.array(self.position)
        target = np.array(self.target)
        found = []
        for number, split in enumerate(self.splits):
            own = split_of == number
            of = int(own.sum())
            repeats = np.flatnonzero(own & ~alone)
            leaked = split_of[like[repeats]] != number
            for rows, across in ((repeats[~leaked], False), (repeats[leaked], True)):
                if not len(rows):
                    continue
                others = [(self.splits[split_of[one]], int(position[one])) for one in like[rows]]
                differ = int(((target[rows] != target[like[rows]]) & (target[rows] >= 0)).sum())
                name = self.NAMES[2 * near + across]
                told, remedy, severity = _words(split, len(rows), of=of, near=near, across=across)
                told += f"; {differ} of them under another label" if differ and near else ""
                found.append(
                    Finding(name, severity, split, len(rows), of, told, remedy, rows=position[rows], others=others)
                )
        return found

    def _conflicts(self, group: Numbers) -> list[Finding]:
        """Rows whose text occurs under another target too."""
        target = np.array(self.target, dtype=np.int64)
        if (target < 0).all():
            return []
        least = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
        most = np.full(int(group.max()) + 1, -1)
        np.minimum.at(least, group, target)
        np.maximum.at(most, group, target)
        differ = (least != most)[group]
        split_of, position = np.array(self.split_of), np.array(self.position)
        names = list(self.targets)
        found = []
        for number, split in enumerate(self.splits):
            rows = np.flatnonzero(differ & (split_of == number))
            if len(rows):
                found.append(
                    Finding(
                        "conflicting-labels", "warning", split, len(rows), int((split_of == number).sum()),
                        "have a text that occurs under another label too",
                        "Decide which label is right, and take the other row out: no model can learn both",
                        rows=position[rows], details=[{"label": names[target[row]]} for row in rows],
                    )
                )  # fmt: skip
        return found

    def _near(self, rows: Numbers) -> Numbers:
        """For each row of all splits the earlier row that it is most like, if it is like one; else itself."""
        like, best = np.arange(len(self.text)), np.zeros(len(self.text))
        kept: dict[int, list[set[str]]] = {}
        pairs = self._candidates(rows)
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            chosen = pairs[start : start + PAIRS_AT_ONCE]
            wanted = np.unique(chosen)
            kept = {row: kept.get(row, []) for row in wanted.tolist()}
            missing = [row for row, parts in kept.items() if not parts]
            kept.update(zip(missing, map(parts_of, self._texts(missing)), strict=True))
            for one, other in chosen.tolist():
                alike = least_similarity(kept[one], kept[other])
                if alike >= ALIKE and alike > best[other]:
                    like[other], best[other] = one, alike
        return like

    def _candidates(self, rows: Numbers) -> Numbers:
        """Pairs of rows that share a band, earlier first, `(pairs, 2)`.

        Of many rows that share one, each is paired with the first and with the three before it, so that a template
        that fills half of the rows costs no more than linear time.
        """
        codes: list[Numbers] = []
        size = len(self.text)
        for band in range(BANDS):
            values = np.concatenate([part[:, band] for part in self.bands])[rows]
            order = np.argsort(values, kind="stable")
            order = order[values[order] != 0]
            sorted_values, sorted_rows = values[order], rows[order]
            begins = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]]) if len(order) else order
            heads = np.repeat(sorted_rows[begins], np.diff(np.r_[begins, len(order)])) if len(order) else order
            codes.append((heads * size + sorted_rows)[heads != sorted_rows])
            for back in range(1, LATER + 1):
                same = sorted_values[back:] == sorted_values[:-back]
                codes.append((sorted_rows[:-back] * size + sorted_rows[back:])[same])
            codes = [np.unique(np.concatenate(codes))]
        return np.stack(np.divmod(codes[0], size), axis=1) if codes else np.zeros((0, 2), dtype=np.int64)

    def _texts(self, rows: Sequence[int]) -> Iterator[str]:
        """The folded inputs of some rows of all splits, read again."""
        assert self.fetch is not None, "only asked where near duplicates are looked for"
        by_split: dict[str, list[int]] = {}
        for row in rows:
            by_split.setdefault(self.splits[self.split_of[row]], []).append(self.position[row])
        read: dict[tuple[str, int], str] = {}
        for split, positions in by_split.items():
            texts = self.fetch(split, positions)
            read.update(zip(((split, one) for one in positions), texts, strict=True))
        for row in rows:
            yield folded(read[self.splits[self.split_of[row]], self.position[row]])

    def distinct(self, split: str) -> set[int]:
        """Positions of the rows of a split whose text has not occurred before."""
        first = np.unique(np.array(self.text, dtype=np.uint64), return_index=True)[1]
        number = self.splits.index(split) if split in self.splits else -1
        mine: Rows = np.array(self.position)[first[np.array(self.split_of)[first] == number]]
        return set(mine.tolist())


def _words(split: str, count: int, *, of: int, near: bool, across: bool) -> tuple[str, str, Severity]:
    """What is said of rows that repeat others, what to do, and how bad it is."""
    how = "nearly the same text as" if near else "the same text as"
    if across:
        told = f"have {how} a row of an earlier split"
        remedy: Any = (
            f"Take them out of {split}: a model that knows the text by heart gets them right, and the metrics on "
            f"{split} look too good"
        )
        return told, remedy, "warning"
    told = f"have {how} an earlier row of the split"
    remedy = (
        "Keep one of each (`preparation.deduplicate`): a text that occurs often weighs as often in loss and metrics"
    )
    return told, remedy, "warning" if count >= MANY * of else "note"
