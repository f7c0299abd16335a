"""What the rows of a run teach: how much of them, one example as the model gets it, and that answers come to an end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from lora_ft.assemble.encode import EncodedRows, references_of
from lora_ft.assemble.prepare import Prepared, label_column
from lora_ft.errors import GateError
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.gates import IGNORED_LABEL, check_alike, check_masked

AT_ONCE = 10_000
LEAST_SHARE = 0.01
MOST_WITHOUT = 0.1
MOST_SHOWN = 600
"""Characters of an example that are shown; what is learned of it is among them."""


@dataclass(frozen=True)
class Supervision:
    """How much of some features is learned.

    Attributes:
        tokens: Tokens, labelled or not.
        learned: Tokens with a label that is not -100.
        rows: Features.
        without: Features that have no such token.
    """

    tokens: int
    learned: int
    rows: int
    without: int

    @property
    def share(self) -> float:
        """Learned tokens over all tokens."""
        return self.learned / max(self.tokens, 1)

    def line(self) -> str:
        """What is logged of it."""
        none = f"; {self.without} of {self.rows} rows have none" if self.without else ""
        return f"labels: {self.learned} of {self.tokens} tokens are learned ({self.share:.1%}){none}"


def supervision_of(features: datasets.Dataset, columns: Sequence[str]) -> Supervision:
    """Counts the labels of features, without making Python's numbers of them.

    Args:
        features: The features of a split.
        columns: Those that hold a label for each token.
    """
    tokens = learned = without = 0
    table = features.with_format("arrow")
    for start in range(0, len(features), AT_ONCE):
        batch = table[start : start + AT_ONCE]
        of_row = np.zeros(len(batch), dtype=np.int64)
        for name in columns:
            lists = batch.column(name).combine_chunks()
            lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
            marks = lists.flatten().to_numpy(zero_copy_only=False) != IGNORED_LABEL
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
            of_row += np.bincount(np.repeat(np.arange(len(batch)), lengths)[marks], minlength=len(batch))
            tokens, learned = tokens + len(marks), learned + int(marks.sum())
        without += int((of_row == 0).sum())
    return Supervision(tokens, learned, len(features), without)


def check_supervision(prepared: Prepared) -> list[str]:
    """Stops a run whose rows teach nothing, or not what they should; see docs/gates.md.

    Args:
        prepared: Rows and features of the run.

    Returns:
        Lines to log: how much is learned, a warning where that is little, and one example.

    Raises:
        GateError: All labels are masked, all rows have the same one, an answer has no end, or padding is learned.
    """
    task, problem, off = prepared.task, prepared.problem, prepared.recipe.checks_off
    features, columns = prepared.features["train"], task.token_labels
    lines = []
    if isinstance(features, datasets.Dataset) and set(columns) <= set(features.column_names) and columns:
        found = supervision_of(features, columns)
        if not found.learned and "masked-labels" not in off:
            check_masked(features[columns[0]])
        lines.append(found.line())
        if "few-labels" not in off:
            lines += few_labels(found)
    if label_column(task) and "one-label" not in off:
        references = references_of(prepared.rows["train"], task=task, problem=problem)
        check_alike(references, labels_named=problem.labels)
    if columns and "end-token" not in off:
        check_ends(features, task=task, problem=problem)
        check_padding(features, task=task, problem=problem)
    if len(features):
        lines.append(f"example: {shortened(task.shown(features[0], problem))}")
    return lines


def few_labels(found: Supervision) -> list[str]:
    """A warning where hardly anything is learned; most often a wrong column, or `max_length` too small."""
    if found.share >= LEAST_SHARE and found.without <= MOST_WITHOUT * found.rows:
        return []
    return [
        f"few labels: {found.share:.2%} of the tokens are learned and {found.without} of {found.rows} rows teach "
        "nothing. Look at the example: is what stands in [[ ]] what is to be learned? If it is cut off, raise "
        "processor.max_length (checks: {few-labels: false} turns this warning off)"
    ]


def check_ends(features: EncodedRows, *, task: Task, problem: Problem) -> None:
    """Stops a run in which the end of an answer is not learned: the model would never stop.

    Answers that were cut at `max_length` have lost their end and are not asked for it.

    Raises:
        GateError: There are others without.
    """
    ends = set(task.end_tokens(problem))
    if not ends or not isinstance(features, datasets.Dataset):
        return
    behind = {IGNORED_LABEL, *problem.processor.all_special_ids} - ends  # a language code, as mBART writes it
    asked, without, first = 0, 0, 0
    looked_at = features.select_columns([*task.token_labels, "truncated"])
    for start in range(0, len(looked_at), AT_ONCE):
        batch = looked_at[start : start + AT_ONCE]
        answers = zip(*(batch[name] for name in task.token_labels), strict=True)
        for at, (cut, lists) in enumerate(zip(batch["truncated"], answers, strict=True)):
            if cut:
                continue
            asked += 1
            if not all(last_learned(labels, without=behind) in ends for labels in lists):
                first = first if without else start + at
                without += 1
    if without:
        named = " or ".join(repr(problem.processor.decode([end])) for end in sorted(ends))
        raise GateError(
            f"end token: {without} of {asked} answers (first: feature {first + 1}) do not end with {named}, so the "
            "model would never learn to stop. Take a tokenizer that writes its end token, or name it in the base's "
            "tokenizer_config.json (eos_token)",
            gate="end-token",
        )


def last_learned(labels: Sequence[int], *, without: Collection[int]) -> int | None:
    """The last label that is none of some others; None where there is none."""
    return next((label for label in reversed(labels) if label not in without), None)


def check_padding(features: EncodedRows, *, task: Task, problem: Problem) -> None:
    """Stops a run in which padding is learned, seen in a batch of a short and a long row.

    Raises:
        GateError: A batch has more labels than its rows.
    """
    lengths = np.asarray(features["length"][:])
    rows: list[Mapping[str, Any]] = [features[int(at)] for at in dict.fromkeys((lengths.argmin(), lengths.argmax()))]
    own = sum(label != IGNORED_LABEL for row in rows for name in task.token_labels for label in row[name])
    batch = task.collator(problem)(rows)
    learned = int(batch["labels"].ne(IGNORED_LABEL).sum())
    if learned > own:
        raise GateError(
            f"padding: a batch of {len(rows)} rows has {learned} labels, and its rows have {own}: the model would "
            "learn to write padding. The labels of padding must be -100; is the pad token the end token?",
            gate="end-token",
        )


def shortened(shown: str, most: int = MOST_SHOWN) -> str:
    """A long example cut so that its beginning, what is learned of it first, and its end stay."""
    if len(shown) <= most:
        return shown
    quarter, at = most // 4, max(shown.find("[["), 0)
    start = max(quarter, at - quarter // 2)
    end = min(start + 2 * quarter, len(shown) - quarter)
    middle = f"{shown[start:end]} ... " if end > start else ""
    return f"{shown[:quarter]} ... {middle}{shown[-quarter:]}"
