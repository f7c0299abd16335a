"""Which columns of the data are ours: the mapping, and every way in which it can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lora_ft.errors import DataError, closest
from lora_ft.recipe.schema import Column


def map_columns(
    columns: Sequence[Column],
    mapping: Mapping[str, str | tuple[str, ...]],
    *,
    available: Iterable[str],
    where: str,
    label_optional: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Finds the columns of the data behind our names.

    A required column that the mapping does not name is looked for under our own name; an optional one is left
    out.

    Args:
        columns: The columns that the task reads.
        mapping: `dataset.columns`: our name -> the data's name, or several names for a label.
        available: The columns that the data has.
        where: The file or table, for messages.
        label_optional: Whether a missing label column is left out instead of refused (prediction).

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
    found: dict[str, tuple[str, ...]] = {}
    for column in columns:
        wanted = mapping.get(column.name, column.name if column.required else ())
        names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        missing = [name for name in names if name not in there]
        if missing and label_optional and column.kind == "label":
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
    _check_used_once(found)
    return found


def _missing(
    column: Column,
    name: str,
    mapping: Mapping[str, str | tuple[str, ...]],
    *,
    there: Sequence[str],
    where: str,
) -> str:
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
