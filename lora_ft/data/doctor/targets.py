"""What is to be learned of a row, as something to compare and as labels to count.

One row: label ["quality", "refund"] -> "quality|refund", ["quality", "refund"]; tags ["B-LOC", "O"] -> ["LOC"].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from lora_ft.data.contents import names_in
from lora_ft.data.doctor.stream import NO_TARGET, TargetOf, target_column
from lora_ft.data.labels import REGRESSION, row_labels
from lora_ft.recipe.schema import Column


def target_reader(table: datasets.Dataset, columns: Sequence[Column], *, problem_type: str, names: Any) -> TargetOf:
    """How the values of the target column become something to compare, and labels to count.

    Args:
        table: The training rows.
        columns: The columns of the task.
        problem_type: As `lora_ft.data.labels.infer_problem_type` says.
        names: All labels in order, so that numbers can stand for them, or None.
    """
    column = target_column(table, columns)
    if column is not None and column.kind != "label":
        kind = column.kind
        return lambda value: (repr(value), names_in(value, kind))
    if problem_type == REGRESSION:
        return lambda _: NO_TARGET

    def label_of(value: Any) -> tuple[str, Sequence[str]]:
        found = row_labels([value], problem_type=problem_type, labels=names or ())[0]
        return "|".join(sorted(found)), found

    return label_of
