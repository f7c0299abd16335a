"""Which columns of the data are ours: the mapping, and every way in which it can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lora_ft.errors import DataError, closest
from lora_ft.recipe.schema import Column

ColumnSets = Mapping[str, Sequence[str]]
Mapped = Mapping[str, str | tuple[str, ...]]


def map_columns(
    columns: Sequence[Column],
    mapping: Mapped,
    *,
    available: Iterable[str],
    where: str,
    column_sets: ColumnSets | None = None,
    targets_optional: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Finds the columns of the data behind our names.

    A required column that the mapping does not name is looked for under our own name; an optional one is left
    out. With column sets the columns of the first complete set are required, and those of other sets are left out.

    Args:
        columns: The columns that the task reads.
        mapping: `dataset.columns`: our name -> the data's name, or several names for a label.
        available: The columns that the data has.
        where: The file or table, for messages.
        column_sets: Problem type -> columns one set of which must be complete; see `choose_set`.
        targets_optional: Whether missing target columns are left out instead of refused (prediction).

    Returns:
        Our name -> the names in the data; more than one only for a label made of 0/1 columns.

    Raises:
        DataError: An unknown name of ours, a missing column, or one column used twice.
    """
    known = {column.name: column for column in columns}
    there = tuple(available)
    for ours in mapping:
        if ours not in known:
            raise DataError(
                f"dataset.columns.{ours} = {_shown(mapping[ours])}: the task reads no column {ours!r}."
                f"{closest(ours, known)} Expected: {', '.join(known)}"
            )
    chosen = choose_set(
        columns,
        mapping,
        available=there,
        where=where,
        column_sets=column_sets or {},
        targets_optional=targets_optional,
    )
    needed = _needed(columns, column_sets or {}, chosen)
    found: dict[str, tuple[str, ...]] = {}
    for column in columns:
        names = _names(mapping.get(column.name, column.name if column.name in needed else ()))
        missing = [name for name in names if name not in there]
        if missing and targets_optional and is_target(column):
            continue
        if missing:
            raise DataError(_missing(column, missing[0], mapping, there=there, where=where))
        if len(names) > 1 and column.kind != "label":
            raise DataError(
                f"dataset.columns.{column.name} = {_shown(names)}: a {column.kind} column is one column of "
                "the data. Expected one name; join the texts in the file, or use text_pair for a second text"
            )
        if names:
            found[column.name] = names
    if not found:
        raise DataError(
            f"{where}: has none of the columns that are read: {', '.join(known)}. "
            f"The columns are: {', '.join(map(repr, there))}. Name them in `dataset.columns`"
        )
    _check_used_once({ours: names for ours, names in found.items() if known[ours].kind != "key"})
    return found


def is_target(column: Column) -> bool:
    """Whether a column is what is to be learned, which rows to predict do not have."""
    return column.target or column.kind == "label"


def choose_set(
    columns: Sequence[Column],
    mapping: Mapped,
    *,
    available: Sequence[str],
    where: str,
    column_sets: ColumnSets,
    targets_optional: bool = False,
) -> str | None:
    """Which set of columns the data has: the first complete one.

    Where the mapping names columns of sets, only sets with all of these come into question. For prediction a set is
    complete without its targets, unless another one is complete with them.

    Args:
        columns: The columns that are read.
        mapping: `dataset.columns`.
        available: The columns that the data has.
        where: The file or table, for messages.
        column_sets: Problem type -> its columns; names that are not among `columns` do not count.
        targets_optional: Whether targets may be missing.

    Returns:
        A key of `column_sets`; None if there are no sets.

    Raises:
        DataError: No set is complete, or none has all columns that the mapping names; lists the alternatives.
    """
    read = {column.name: column for column in columns}
    sets = {name: [ours for ours in ours_of if ours in read] for name, ours_of in column_sets.items()}
    sets = {name: ours_of for name, ours_of in sets.items() if ours_of}
    if not sets:
        return None
    explicit = [ours for ours in mapping if any(ours in ours_of for ours_of in sets.values())]
    candidates = {name: ours_of for name, ours_of in sets.items() if set(explicit) <= set(ours_of)}
    alternatives = ", or ".join(dict.fromkeys(" and ".join(ours_of) for ours_of in sets.values()))
    if not candidates:
        raise DataError(
            f"dataset.columns: maps {' and '.join(explicit)}, which do not belong together. "
            f"Expected: {alternatives}. Take out the others"
        )

    def lacks(ours_of: Sequence[str], *, targets: bool) -> list[str]:
        wanted = [ours for ours in ours_of if targets or not is_target(read[ours])]
        return [ours for ours in wanted if not set(_names(mapping.get(ours, ours))) <= set(available)]

    whole = [name for name, ours_of in candidates.items() if not lacks(ours_of, targets=True)]
    inputs = {
        name: ours_of for name, ours_of in candidates.items() if not all(is_target(read[ours]) for ours in ours_of)
    }
    if targets_optional:
        whole += [name for name, ours_of in inputs.items() if not lacks(ours_of, targets=False)]
    if whole or len(candidates) == 1:
        return (whole or list(candidates))[0]  # what a single candidate lacks is reported by its name
    raise DataError(
        _incomplete(
            {name: (ours_of, lacks(ours_of, targets=True)) for name, ours_of in candidates.items()},
            there=available,
            where=where,
        )
    )


def _incomplete(
    candidates: Mapping[str, tuple[Sequence[str], Sequence[str]]], *, there: Sequence[str], where: str
) -> str:
    """That no set is complete, with what each one lacks."""
    nearest = min((lacks for _, lacks in candidates.values()), key=len)[0]
    told = ", or ".join(
        f"{' and '.join(ours_of)} (there is no {', '.join(map(repr, lacks))})" for ours_of, lacks in candidates.values()
    )
    return (
        f"{where}: dataset.columns: the columns of no kind of data are complete. Expected {told}."
        f"{closest(nearest, there)} The columns are: {', '.join(map(repr, there))}. "
        f"Write `columns: {{{nearest}: <one of these>}}`"
    )


def _needed(columns: Sequence[Column], column_sets: ColumnSets, chosen: str | None) -> set[str]:
    """The columns that are read without being named: those of the chosen set, and required ones outside of all sets."""
    in_sets = {ours for ours_of in column_sets.values() for ours in ours_of}
    needed = {column.name for column in columns if column.required and column.name not in in_sets}
    return needed | set(column_sets[chosen] if chosen is not None else ())


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _missing(
    column: Column,
    name: str,
    mapping: Mapped,
    *,
    there: Sequence[str],
    where: str,
) -> str:
    if column.kind == "key":
        listed = f"The columns are: {', '.join(map(repr, there))}"
        return f"{where}: dataset.{column.name} = {name}: there is no such column.{closest(name, there)} {listed}"
    if column.name in mapping:
        given = _shown(mapping[column.name])
        told = f"{where}: dataset.columns.{column.name} = {given}: there is no column {name!r}."
    else:
        told = f"{where}: dataset.columns.{column.name}: not given, and there is no column {name!r}."
    return (
        f"{told}{closest(name, there)} The columns are: {', '.join(map(repr, there))}. "
        f"Write `columns: {{{column.name}: <one of these>}}`"
    )


def _check_used_once(found: Mapping[str, Sequence[str]]) -> None:
    used: dict[str, str] = {}
    for ours, names in found.items():
        for name in names:
            if name in used:
                raise DataError(
                    f"dataset.columns.{ours} = {_shown(name)}: this column is already used for "
                    f"{used[name]!r}. Expected a different column for each name"
                )
            used[name] = ours


def _shown(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else f"[{', '.join(names)}]"
