"""Labels: how many rows of each, labels that hardly occur, that only one split has, that are another one misspelt.

One row: label "positve" in 3 rows beside "positive" in 400 is most likely the same label.
"""

from __future__ import annotations

import difflib
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.stream import Batch

LEAST_ROWS = 10
LEAST_SHARE = 0.01
UNBALANCED = 4.0
VERY_UNBALANCED = 10.0
RARER = 0.1
"""A label is taken for a misspelt one only if it has less than a tenth of the rows of the other."""
ALIKE = 0.8
LEAST_LETTERS = 4
MOST_COMPARED = 500
SHIFTED = 0.15
ENOUGH_ROWS = 50
GIVEN_AWAY = 0.95
LEAST_GIVEN_AWAY = 0.05
NEGATIONS = ("un", "in", "im", "ir", "dis", "non", "not", "no", "a", "anti", "mis")
NUMBERS = re.compile(r"\d+")
WORD = re.compile(r"[^\W_]+")
EDGE_CHARACTERS = 40


class LabelCheck:
    """Counts the labels of each split.

    Args:
        known: The labels of the recipe (`dataset.label_names`); None: those of the training rows.
        weighs: Whether the task knows `loss.class_weight`, and the recipe does nothing of its kind yet.
        one_each: Whether each row has exactly one label.
        without: Names of findings that somebody else has told already.
    """

    def __init__(
        self,
        *,
        known: Sequence[str] | None = None,
        weighs: bool = False,
        one_each: bool = True,
        without: Sequence[str] = (),
    ) -> None:
        self.known = known
        self.weighs = weighs
        self.one_each = one_each
        self.without = frozenset(without)
        self.counts: dict[str, Counter[str]] = {}
        self.rows: dict[str, int] = {}
        self.rare: dict[str, dict[str, array[int]]] = {}
        self.edges: dict[str, dict[str, list[int]]] = {}
        self.folded: set[str] = set()

    def add(self, batch: Batch) -> None:
        """See `Check`; the rows of a label are kept as long as it has only a few."""
        counts = self.counts.setdefault(batch.split, Counter())
        rare = self.rare.setdefault(batch.split, {})
        edges = self.edges.setdefault(batch.split, {})
        self.rows[batch.split] = self.rows.get(batch.split, 0) + len(batch.targets)
        for at, names in enumerate(batch.labels):
            counts.update(names)
            for name in names:
                if name not in rare:
                    self.folded.add(name.casefold())
                kept = rare.setdefault(name, array("q"))
                if len(kept) < 10_000:
                    kept.append(batch.start + at)
            if self.one_each and names:
                self._meet(edges, batch.inputs[at], names[0])

    def _meet(self, edges: dict[str, list[int]], text: str, label: str) -> None:
        """Remembers that a text begins or ends with the name of a label: how often, and how often with its own."""
        first, last = WORD.search(text[:EDGE_CHARACTERS]), WORD.findall(text[-EDGE_CHARACTERS:])
        for word in {first[0].casefold() if first else "", last[-1].casefold() if last else ""}:
            if len(word) < LEAST_LETTERS:
                continue
            if word in self.folded:
                seen = edges.setdefault(word, [0, 0])
                seen[0] += 1
                seen[1] += word == label.casefold()

    def findings(self) -> list[Finding]:
        """See `Check`."""
        train = self.counts.get("train", Counter())
        found = [*self._balance(train), *self._rare(train), *self._misspelt(), *self._given_away()]
        for split in self.counts:
            if split != "train":
                found += self._differs(split, train)
        return [finding for finding in found if finding.name not in self.without]

    def _rows_of(self, split: str, names: Sequence[str]) -> Any:
        held = [np.array(self.rare.get(split, {}).get(name, ()), dtype=np.int64) for name in names]
        return np.unique(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)

    def _balance(self, train: Counter[str]) -> list[Finding]:
        """One class only, or one that has many times the rows of another."""
        present = {name: count for name, count in train.items() if count}
        of = self.rows.get("train", 0)
        if len(present) == 1 and self.one_each:
            (name,) = present
            remedy = "Add rows of another label, or check `dataset.columns.label`"
            return [Finding("one-class", "error", "train", of, of, f"all have the label {name!r}", remedy)]
        if len(present) < 2 or not self.one_each:
            return []
        (most, many), (least, few) = max(present.items(), key=_count), min(present.items(), key=_count)
        if many < UNBALANCED * few:
            return []
        told = f"have the label {most!r}, {many / few:.1f} times as many as {least!r} ({few})"
        remedy = (
            "Write `loss.class_weight: balanced` (or `balancing.strategy: oversample`), for two classes or several "
            "labels a row also `decision.threshold: tuned`. Judge by `training_args.metric_for_best_model: f1_macro`"
            if self.weighs
            else "Judge by a macro F1, not by accuracy; add rows of the small labels"
        )
        severity: Any = "warning" if many >= VERY_UNBALANCED * few else "note"
        return [Finding("unbalanced-labels", severity, "train", many, of, told, remedy)]

    def _rare(self, train: Counter[str]) -> list[Finding]:
        """Labels with so few training rows that they can hardly be learned."""
        total, of = sum(train.values()), self.rows.get("train", 0)
        few = [name for name, count in train.items() if count < LEAST_ROWS and count < LEAST_SHARE * total]
        if not few:
            return []
        shown = ", ".join(f"{name!r} {train[name]}" for name in sorted(few, key=lambda one: train[one])[:20])
        told = f"have a label with fewer than {LEAST_ROWS} training rows ({shown})"
        remedy = "Add rows of these labels, or join them to another: so few teach nothing and cannot be measured"
        count = sum(train[name] for name in few)
        return [Finding("rare-labels", "warning", "train", count, of, told, remedy, rows=self._rows_of("train", few))]

    def _misspelt(self) -> list[Finding]:
        """Labels that differ from a frequent one by case, blanks, signs, or a letter or two."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        frequent = [name for name, _ in total.most_common(MOST_COMPARED)]
        wrong = {}
        for name, count in total.items():
            meant = next((other for other in frequent if _is_misspelt(name, other, count, total[other])), None)
            if meant is not None:
                wrong[name] = meant
        found = []
        for split, counts in self.counts.items():
            names = [name for name in wrong if counts[name]]
            if names:
                shown = ", ".join(f"{name!r} {counts[name]} for {wrong[name]!r}" for name in names[:20])
                rows = self._rows_of(split, names)
                remedy = "Write the label as the others do; two spellings are two classes to the model"
                told = f"have a label that looks like another one misspelt ({shown})"
                count = sum(counts[name] for name in names)
                of = self.rows[split]
                found.append(Finding("misspelt-labels", "warning", split, count, of, told, remedy, rows=rows))
        return found

    def _given_away(self) -> list[Finding]:
        """Texts that begin or end with the name of their own label."""
        found = []
        for split, edges in self.edges.items():
            for name, count in self.counts[split].items():
                hits, own = edges.get(name.casefold(), (0, 0))
                if own >= LEAST_ROWS and own >= GIVEN_AWAY * hits and own >= LEAST_GIVEN_AWAY * count:
                    found.append(
                        Finding(
                            "label-in-text", "warning", split, own, self.rows[split],
                            f"begin or end with {name!r}, the name of their own label",
                            "Take it out of the texts: a model that reads the answer learns nothing else",
                        )
                    )  # fmt: skip
        return found

    def _differs(self, split: str, train: Mapping[str, int]) -> list[Finding]:
        """Labels that only one split has, and shares that differ between splits."""
        counts, of = self.counts[split], self.rows[split]
        found = []
        known = set(self.known) if self.known is not None else {name for name, count in train.items() if count}
        unknown = [name for name in counts if name not in known]
        if unknown and known:
            shown = ", ".join(f"{name!r} {counts[name]}" for name in unknown[:20])
            told = f"have a label that no training row has ({shown})"
            remedy = "Add training rows of it, mend the label, or take these rows out: training refuses them"
            rows = self._rows_of(split, unknown)
            found.append(Finding("unknown-labels", "error", split, len(rows), of, told, remedy, rows=rows))
        absent = [name for name, count in train.items() if count and not counts[name]]
        if absent:
            shown = ", ".join(map(repr, absent[:20]))
            told = f"labels of the training rows have no row here ({shown})"
            remedy = f"Add rows of them to {split}, or nobody sees how well they are learned"
            found.append(Finding("absent-labels", "note", split, len(absent), len(train), told, remedy))
        here, there = sum(counts.values()), sum(train.values())
        if min(here, there) >= ENOUGH_ROWS and self.one_each:
            apart = sum(abs(counts[name] / here - train.get(name, 0) / there) for name in {*counts, *train}) / 2
            if apart > SHIFTED:
                told = f"labels are shared out otherwise than in train: {apart:.0%} of the rows would have to change"
                remedy = f"Split again (`dataset.{split}: 0.1` keeps the shares), or say why they differ"
                found.append(Finding("shifted-labels", "note", split, round(apart * here), of, told, remedy))
        return found


def _count(item: tuple[str, int]) -> int:
    return item[1]


def _is_misspelt(name: str, other: str, count: int, others: int) -> bool:
    """Whether a label is most likely another, more frequent one written otherwise."""
    if name == other or count > others:
        return False
    if _plain(name) == _plain(other) and _plain(name):
        return count < others or name > other
    if count > RARER * others or min(len(name), len(other)) < LEAST_LETTERS:
        return False
    one, two = _plain(name), _plain(other)
    if NUMBERS.sub("", one) == NUMBERS.sub("", two) or _negates(one, two) or _negates(two, one):
        return False
    return difflib.SequenceMatcher(None, one, two, autojunk=False).ratio() >= ALIKE


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _negates(one: str, other: str) -> bool:
    return any(one == prefix + other for prefix in NEGATIONS)
