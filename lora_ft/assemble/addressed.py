r"""A file whose rows say which adapter they are for: first the names, without torch; then the rows as each reads them.

One row of a CSV: `text,domain\n"Broke after a week.",books`; `domain` is the column that names the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lora_ft.adapters.manifest import Manifest
from lora_ft.assemble.recorded import RecordedColumns, recorded_columns
from lora_ft.data.columns import is_target
from lora_ft.data.files import TEXT_FORMATS, file_format, read_rows
from lora_ft.data.rows import Origin, Splits
from lora_ft.data.sources import load_rows
from lora_ft.errors import DataError, InputError, closest
from lora_ft.tasks.base import Task


class AddressedRow(NamedTuple):
    """One row to answer.

    Attributes:
        row: Under our column names, with any other keys.
        adapter: The name that it gives; None: it does not say.
        where: What messages call it, `shop.csv, row 17`.
    """

    row: Mapping[str, Any]
    adapter: str | None
    where: str


@dataclass(frozen=True)
class Addresses:
    """Which adapter each row of a file names.

    Attributes:
        file: The file.
        names: One for each row; None: it does not say.
        origin: What messages call each row.
    """

    file: Path
    names: Sequence[str | None]
    origin: Origin


def read_addresses(file: Path, column: str) -> Addresses:
    """Reads the column of a file that names the adapter of each row.

    Args:
        file: A table: .csv, .tsv, .json, .jsonl or .parquet.
        column: Its column.

    Raises:
        DataError: The file cannot be read, or has no such column; lists those that it has.
    """
    if file_format(file) == ".parquet":
        values, origin, there = _parquet_column(file, column)
    elif file_format(file) in TEXT_FORMATS:
        rows = read_rows(file)
        values, origin, there = rows.columns.get(column), rows.origin(str(file)), list(rows.columns)
    else:
        raise DataError(
            f"{file}: --adapter-column {column}: this is no table with a column for it. Expected .csv, .tsv, .json, "
            ".jsonl or .parquet; for all rows of another file: --adapter NAME"
        )
    if values is None:
        raise DataError(
            f"{file}: --adapter-column {column}: there is no column {column!r}.{closest(column, there)} "
            f"The columns are: {', '.join(map(repr, there))}"
        )
    return Addresses(file=file, names=[named(value) for value in values], origin=origin)


def named(value: Any) -> str | None:
    """The name in a cell; None where there is none."""
    return None if value is None else str(value).strip() or None


def check_name(name: str, known: Collection[str], *, where: str) -> None:
    """Refuses a name that no adapter of the pool has.

    Args:
        name: What a row says.
        known: All adapters of the pool.
        where: What messages call the row.

    Raises:
        DataError: With the nearest name.
    """
    if name not in known:
        listed = ", ".join(sorted(known)[:10]) + (f", ... ({len(known)} in all)" if len(known) > 10 else "")
        raise DataError(f"{where}: there is no adapter {name!r}.{closest(name, known)} There are: {listed}")


def check_addresses(addresses: Addresses, known: Collection[str], *, default: bool, what_to_do: str) -> None:
    """Refuses rows that name an unknown adapter, or none where that is not provided for.

    Args:
        addresses: What the rows say.
        known: All adapters of the pool.
        default: Whether there is an adapter for rows that do not say.
        what_to_do: About rows that do not say.

    Raises:
        DataError: At the first unknown name, or with all rows that do not say.
    """
    seen = set(known)
    for index, name in enumerate(addresses.names):
        if name is not None and name not in seen:
            check_name(name, known, where=addresses.origin.describe([index]))
    silent = [index for index, name in enumerate(addresses.names) if name is None]
    if silent and not default:
        raise DataError(f"{addresses.origin.describe(silent)}: names no adapter. {what_to_do}")


def ways_to_read(
    names: Collection[str],
    folders: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
    *,
    task: Task,
    targets: bool,
) -> dict[str, RecordedColumns]:
    """How some adapters read a file, each as its own recipe did; adapters that read alike have an equal entry.

    Args:
        names: The adapters.
        folders: Name -> folder of all adapters.
        manifests: Name -> manifest of all adapters.
        task: Their task.
        targets: Whether what is to be learned is read too.
    """
    ways: dict[str, RecordedColumns] = {}
    for name in names:
        recorded = recorded_columns(folders[name])
        read = manifests[name].run.get("columns")
        wanted = [one.name for one in task.columns if not is_target(one) and (read is None or one.name in read)]
        aims = [one.name for one in task.columns if is_target(one) and targets]
        columns = {one: recorded.columns.get(one, one) for one in wanted if read or one in recorded.columns}
        columns |= {one: recorded.columns[one] for one in aims if one in recorded.columns}
        ways[name] = replace(recorded, columns=columns, label_delimiter=recorded.label_delimiter if targets else None)
    return ways


def load_each_way(
    file: Path,
    ways: Mapping[str, RecordedColumns],
    manifests: Mapping[str, Manifest],
    *,
    task: Task,
    targets: bool,
) -> dict[str, Splits]:
    """Reads a file once for each way to read it.

    Args:
        file: A file in any format of `lora_ft.data.sources`.
        ways: What `ways_to_read` found.
        manifests: Name -> manifest of all adapters.
        task: Their task.
        targets: As in `ways_to_read`.

    Returns:
        Name of an adapter -> all rows of the file under our column names, as the split `rows`; those of adapters that
        read alike are the same object.

    Raises:
        DataError: It cannot be read in one of these ways; names an adapter that reads so, where others read otherwise.
    """
    wanted = task.columns if targets else task.inputs()
    tables: dict[str, Splits] = {}
    loaded: dict[str, Splits] = {}
    for name, way in ways.items():
        kind = manifests[name].problem_type
        sets = {kind: task.column_sets[kind]} if kind in task.column_sets else task.column_sets
        key = json.dumps([way.columns, way.label_delimiter, way.sample_by, str(way.media_dir), list(sets)])
        if key not in loaded:
            try:
                loaded[key] = load_rows(
                    file, columns=way.columns, wanted=wanted, column_sets=sets, label_delimiter=way.label_delimiter,
                    sample_by=way.sample_by, media_dir=way.media_dir,
                )  # fmt: skip
            except DataError as error:
                raise DataError(f"adapter {name!r}: {error}") from error
        tables[name] = loaded[key]
    return tables


def addressed_rows(
    tables: Mapping[str, Splits], names: Sequence[str | None], *, undecided: str | None
) -> Iterator[AddressedRow]:
    """The rows of a file, one after the other, each as its own adapter reads it.

    Args:
        tables: What `load_each_way` read.
        names: The adapter of each row; None: it does not say.
        undecided: The adapter as which rows are read that do not say.
    """
    distinct = list({id(table): table for table in tables.values()}.values())
    place = {name: next(i for i, one in enumerate(distinct) if one is table) for name, table in tables.items()}
    origin = distinct[0].origins["rows"]
    rows = zip(names, *(table["rows"] for table in distinct), strict=True)
    for index, (name, *read) in enumerate(rows):
        yield AddressedRow(read[place[name or str(undecided)]], name, origin.describe([index]))


def choosable(manifests: Mapping[str, Manifest]) -> list[str]:
    """The adapters that rows can be sent to which do not say whose they are: those with a centroid.

    Raises:
        InputError: There is none.
    """
    known = [name for name, manifest in manifests.items() if manifest.centroid is not None]
    if not known:
        raise InputError(
            f"--adapter auto: none of the {len(manifests)} adapters has a centroid (trained by an older lora_ft, or on "
            "a base without embeddings), so none can be chosen. Give --adapter-column COLUMN, or train again"
        )
    return known


def check_one_way(ways: Mapping[str, RecordedColumns]) -> None:
    """Refuses adapters that read different columns, where nobody says which of them a row is for.

    Raises:
        InputError: Names two of them with their columns.
    """
    (first, way), *others = ways.items()
    for name, other in others:
        if (other.columns, other.sample_by) != (way.columns, way.sample_by):
            mine, theirs = (", ".join(f"{k}: {v}" for k, v in one.columns.items()) for one in (way, other))
            raise InputError(
                f"--adapter auto: {first!r} reads other columns ({mine}) than {name!r} ({theirs}), so a row cannot be "
                "read before it is known whose it is. Name the adapter of each row with --adapter-column"
            )


def _parquet_column(file: Path, column: str) -> tuple[Sequence[Any] | None, Origin, list[str]]:
    """Values of a column if it is there, the origin of the rows, and the names of all columns."""
    try:
        there = pq.read_schema(file).names
        values = pq.read_table(file, columns=[column])[column].to_pylist() if column in there else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Export it again") from error
    return values, Origin.of(str(file), range(1, 1 + len(values or ()))), there
