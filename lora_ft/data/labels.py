"""What the labels are: the problem type, the vocabulary in a stable order, and each label under its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from lora_ft.data.rows import Splits, describe_rows, each_value, with_column
from lora_ft.data.values import canonical_label
from lora_ft.errors import DataError, closest

__all__ = ["canonical_label", "canonical_labels", "infer_problem_type", "label_vocabulary", "row_labels"]

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
MOST_CLASSES = 50
SHOWN_NAMES = 20


def infer_problem_type(values: Sequence[Any], *, label_names: Sequence[str] | None) -> str:
    """Says what the labels of the training rows make of the problem.

    Args:
        values: The labels as `load_splits` gives them.
        label_names: The recipe's label names; with them numbers are classes.

    Returns:
        `multi_label_classification` for lists, `regression` for numbers that are not whole, else
        `single_label_classification`.

    Raises:
        DataError: So many distinct whole numbers or texts that the data leaves it open.
    """
    labels = values[:]  # a column of `datasets` becomes a list at once; row by row it is slow
    if any(isinstance(label, list) for label in labels):
        return MULTI
    if label_names is not None:
        return SINGLE
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        return REGRESSION
    distinct = set(labels)
    if len(distinct) <= MOST_CLASSES or isinstance(labels[0], bool):
        return SINGLE
    if not isinstance(labels[0], str):
        raise DataError(
            f"label: {len(distinct)} distinct whole numbers in {len(labels)} rows: numbers or classes? "
            f"Write `model.problem_type: regression`, or give the classes as `dataset.label_names`"
        )
    if 2 * len(distinct) > len(labels):
        raise DataError(
            f"label: {len(distinct)} distinct texts in {len(labels)} rows, such as {labels[0][:60]!r}: that "
            "looks like the wrong column, or like numbers with marks between them. Check "
            "`dataset.columns.label`; if these are the classes, give them as `dataset.label_names`"
        )
    return SINGLE


def label_vocabulary(
    splits: Mapping[str, datasets.Dataset], *, problem_type: str, label_names: Sequence[str] | None
) -> tuple[str, ...]:
    """All labels in a stable order.

    The recipe's order, else the source's own (a ClassLabel feature, several 0/1 columns), else that of the
    training
    rows: numbers by value, false before true, texts by alphabet.

    Args:
        splits: Rows of each split, with `train`.
        problem_type: What `infer_problem_type` said, or the recipe.
        label_names: The recipe's label names, or None.

    Returns:
        The labels as texts; empty for regression.

    Raises:
        DataError: The data has labels that `label_names` has not, there are no training rows, or labels do
            not fit the problem type.
    """
    if "train" not in splits or not len(splits["train"]):
        raise DataError("dataset: the train split has no rows. Expected rows to learn from")
    if problem_type == REGRESSION:
        return ()
    source = splits.label_names if isinstance(splits, Splits) else None
    if label_names is not None:
        names = tuple(label_names)
        _check_known(splits, names, problem_type)
        return names
    if source is not None:
        return source
    values = {label for row in each_value(splits["train"], "label") for label in _parts(row, problem_type)}
    if all(isinstance(value, int | float) for value in values):
        return tuple(canonical_label(value) for value in sorted(values))
    return tuple(sorted(canonical_label(value) for value in values))


def canonical_labels(table: datasets.Dataset, *, problem_type: str, labels: Sequence[str]) -> datasets.Dataset:
    """Puts each label under its name: a text, a list of texts, or a float for regression.

    Args:
        table: Rows with our column names; without a label column they are returned as they are.
        problem_type: As in `label_vocabulary`.
        labels: The vocabulary; whole numbers 0 to n-1 are positions in it unless it has numbers itself.

    Raises:
        DataError: A label is not in the vocabulary, or is no number in a regression.
    """
    if "label" not in table.column_names:
        return table
    rows = row_labels(each_value(table, "label"), problem_type=problem_type, labels=labels)
    if problem_type == REGRESSION:
        return _with_label(table, rows, datasets.Value("float64"))
    known = set(labels)
    unknown = Counter(label for row in rows for label in row if label not in known)
    if unknown:
        raise DataError(_unknown(unknown, labels))
    if problem_type == MULTI:
        return _with_label(table, rows, datasets.List(datasets.Value("string")))
    return _with_label(table, [row[0] for row in rows], datasets.Value("string"))


def row_labels(values: Iterable[Any], *, problem_type: str, labels: Sequence[str]) -> list[Any]:
    """The names of each row's labels, whether the vocabulary knows them or not.

    Args:
        values: The label column.
        problem_type: As in `label_vocabulary`.
        labels: The vocabulary.

    Returns:
        A list of names for each row (one name for single-label), or a float for regression.

    Raises:
        DataError: A list in a single-label problem, or no number in a regression; says the row's position.
    """
    if problem_type == REGRESSION:
        return [_number(value, position) for position, value in enumerate(values, start=1)]
    known = set(labels)
    folded = {name.casefold(): name for name in labels}
    positions = len(labels) if not any(re.fullmatch(r"-?\d+", name) for name in labels) else 0

    def name_of(value: Any) -> str:
        name = canonical_label(value)
        if name in known:
            return name
        if isinstance(value, bool) or name in ("true", "false"):
            return folded.get(name, name)
        if isinstance(value, int) and 0 <= value < positions:
            return labels[value]
        return name

    return [[name_of(label) for label in _parts(value, problem_type)] for value in values]


def _parts(value: Any, problem_type: str) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    if problem_type == SINGLE:
        raise DataError(
            f"label = {value}: a list of labels in a {SINGLE} problem. Expected one label a row, or "
            f"`model.problem_type: {MULTI}`"
        )
    return list(dict.fromkeys(value))


def _number(value: Any, position: int) -> float:
    if isinstance(value, bool | list | str):
        raise DataError(
            f"label = {value!r} (row {position} of the split): not a number, but the problem type is "
            "regression. Expected numbers only: mend the column, or change `model.problem_type`"
        )
    return float(value)


def _check_known(splits: Mapping[str, datasets.Dataset], names: Sequence[str], problem_type: str) -> None:
    counts: Counter[str] = Counter()
    known = set(names)
    where: dict[str, str] = {}
    for split, table in splits.items():
        rows: dict[str, list[int]] = {}
        for index, row in enumerate(row_labels(each_value(table, "label"), problem_type=problem_type, labels=names)):
            for name in row:
                if name not in known:
                    counts[name] += 1
                    rows.setdefault(name, []).append(index)
        for name, indices in rows.items():
            where.setdefault(name, describe_rows(splits, split, indices))
    if counts:
        raise DataError(_unknown(counts, names, where))


def _unknown(counts: Counter[str], names: Sequence[str], where: Mapping[str, str] | None = None) -> str:
    lines = [
        f"{(where or {}).get(name, 'label')}: label = {name!r}: not among the label names ({count} rows)."
        f"{closest(name, names)}"
        for name, count in counts.most_common(SHOWN_NAMES)
    ]
    more = [f"... and {len(counts) - SHOWN_NAMES} more labels"] if len(counts) > SHOWN_NAMES else []
    remedy = f"Expected: {_listed(names)}. Mend the data, or add these to `dataset.label_names`"
    return "\n".join([*lines, *more, remedy])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN_NAMES]))
    return shown + (f", ... ({len(names)} in all)" if len(names) > SHOWN_NAMES else "")


def _with_label(table: datasets.Dataset, values: Sequence[Any], feature: Any) -> datasets.Dataset:
    """The table with a new label column in the place of the old one."""
    order = table.column_names
    return with_column(table.remove_columns("label"), "label", values, feature=feature).select_columns(order)
