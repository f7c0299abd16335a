"""Rows of many domains -> predictions, each by its own adapter of a pool, in the order of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_ft.assemble.addressed import AddressedRow, check_name, named
from lora_ft.assemble.pooled import PooledAdapters
from lora_ft.assemble.router import Route, Router
from lora_ft.errors import AdapterError, AdapterRefused, DataError
from lora_ft.serve.predict import shown, taken


def predict_many(
    pooled: PooledAdapters,
    rows: Iterable[AddressedRow],
    *,
    default: str | None = None,
    router: Router | None = None,
    batch_size: int = 32,
    window: int = 8,
    advance: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers rows as they come, those of different adapters in the same batches.

    Rows are read `window` batches at a time, so a stream of any length runs in bounded memory, and batches of like
    length can be formed inside a window.

    Args:
        pooled: The adapters on their base.
        rows: With the name of an adapter each, or None.
        default: The adapter of rows that do not say.
        router: Chooses the adapter of rows that do not say, where there is no default.
        batch_size: Features a batch.
        window: Batches read before the first of them is answered; 1 answers soonest.
        advance: Called with the number of rows done.

    Yields:
        Each row with `adapter`, with `adapter_score` where the router chose it, and with its prediction.

    Raises:
        DataError: A row names no adapter or an unknown one; or it cannot be used by its adapter, after those before it
            have been answered.
        AdapterRefused: An adapter is damaged, of another base, or does not answer as it did.
    """
    iterator, refused = iter(rows), None
    while refused is None:
        chunk, unread = taken(iterator, batch_size * window)
        routes = _routes(pooled, chunk, default=default, router=router, batch_size=batch_size)
        names = [route.adapter if isinstance(route, Route) else route for route in routes]
        wanted, unusable = taken(_usable(pooled, chunk, names), len(chunk))
        refused, count = unusable or unread, len(wanted)
        if not wanted:
            break
        predictions = pooled.predict(wanted, names[:count], batch_size=batch_size)
        for one, route, prediction in zip(chunk[:count], routes[:count], predictions, strict=True):
            given = {key: shown(value) for key, value in one.row.items()}
            who = {"adapter": route.adapter, "adapter_score": route.score} if isinstance(route, Route) else None
            yield {**given, **(who or {"adapter": route}), **prediction}
        if advance is not None:
            advance(count)
    if refused is not None:
        raise refused


def prove_all(pooled: PooledAdapters, names: Iterable[str], *, advance: Callable[[int], None] | None = None) -> None:
    """Proves adapters before anything is answered.

    Args:
        pooled: The adapters on their base.
        names: Those that will be asked.
        advance: Called with 1 after each.

    Raises:
        AdapterRefused: Lists all that cannot be used, each with its reason.
    """
    faults = []
    for name in names:
        try:
            pooled.member(name)
        except AdapterError as error:
            faults.append(f"{name}: {error}")
        if advance is not None:
            advance(1)
    if faults:
        raise AdapterRefused("\n".join(faults))


def addressed(rows: Iterable[Mapping[str, Any]], *, column: str | None, where: str = "row") -> Iterator[AddressedRow]:
    """Rows with the name of the adapter that stands under a key of each.

    Args:
        rows: Mappings.
        column: The key; None: no row says.
        where: What a row is called in messages, before its number.
    """
    for number, row in enumerate(rows, start=1):
        yield AddressedRow(row, None if column is None else named(row.get(column)), f"{where} {number}")


def _routes(
    pooled: PooledAdapters,
    chunk: Sequence[AddressedRow],
    *,
    default: str | None,
    router: Router | None,
    batch_size: int,
) -> list[str | Route]:
    """The adapter of each row: its own, the default, or what the router chooses."""
    known = pooled.pool.names()
    routes: list[str | Route] = []
    open_rows: list[int] = []
    for index, one in enumerate(chunk):
        name = one.adapter or default
        if name is None and router is None:
            raise DataError(
                f"{one.where}: names no adapter. Write one, or give --adapter NAME for such rows (auto: the nearest)"
            )
        if name is None:
            open_rows.append(index)
        else:
            check_name(name, known, where=one.where)
        routes.append(name or "")
    if router is not None and open_rows:
        for index in open_rows:
            _inputs(pooled, chunk[index], needed=())
        chosen = router.choose([chunk[index].row for index in open_rows], batch_size=batch_size)
        for index, route in zip(open_rows, chosen, strict=True):
            routes[index] = route
    return routes


def _usable(pooled: PooledAdapters, chunk: Sequence[AddressedRow], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The input columns of rows, none of which the task finds fault with; the same of all rows of an adapter."""
    columns: dict[str, list[str]] = {}
    for one, name in zip(chunk, names, strict=True):
        member = pooled.member(name)
        found = _inputs(pooled, one, needed=member.columns)
        before = columns.setdefault(name, found)
        if found != before:
            raise DataError(
                f"{one.where}: has {', '.join(found)}, the rows of {name!r} before it have {', '.join(before)}. "
                "Expected the same in every row of an adapter"
            )
        wanted = {column: one.row[column] for column in found}
        fault = pooled.task.fault(wanted, labels=member.problem.labels)
        if fault is not None:
            raise DataError(f"{one.where}: {fault}")
        yield wanted


def _inputs(pooled: PooledAdapters, one: AddressedRow, *, needed: Sequence[str]) -> list[str]:
    """The input columns of a row.

    Raises:
        DataError: It has none, or not those that its adapter was trained with.
    """
    found = [column.name for column in pooled.task.inputs() if column.name in one.row]
    if not found or not set(needed) <= set(found):
        known = [column.name for column in pooled.task.inputs()]
        raise DataError(
            f"{one.where}: has {', '.join(found) or 'none of the columns'}. Expected {', '.join(needed or known)}"
        )
    return found
