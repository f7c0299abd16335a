"""Which columns rows must have, as far as the task and the recipe say it; the data chooses among the same sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lora_ft.recipe.schema import Column


def possible_sets(
    columns: Sequence[Column],
    column_sets: Mapping[str, tuple[str, ...]],
    *,
    mapped: Collection[str] = (),
    problem_type: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """The sets of columns that rows may have, in the order in which they are tried.

    Args:
        columns: All columns of the task.
        column_sets: Problem type -> the columns that rows of it must have; empty: the required columns.
        mapped: Our names on the left of `dataset.columns`: only sets with all of them come into question. Names that
            are in no set (`id`) do not narrow the choice.
        problem_type: `model.problem_type`, where it is given.

    Returns:
        Problem type -> columns that rows must have, in the order of the task; the problem type is empty where the
        task has no column sets. Empty where no set has all mapped names.
    """
    required = {column.name for column in columns if column.required}
    if not column_sets:
        return {"": tuple(column.name for column in columns if column.name in required)}
    choosing = {name for names in column_sets.values() for name in names}
    # A column that no set speaks of and that is required is required by every set.
    always = required - choosing
    asked = choosing & set(mapped)
    return {
        kind: tuple(column.name for column in columns if column.name in always or column.name in names)
        for kind, names in column_sets.items()
        if asked <= set(names) and (problem_type not in column_sets or kind == problem_type)
    }
