"""A folder of adapters + rows -> metrics of each on its own rows, all answered in one pass, and of the router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import numpy as np

from lora_ft.adapters.manifest import Manifest
from lora_ft.assemble.addressed import Addresses, load_each_way, ways_to_read
from lora_ft.assemble.encode import has_targets, references_of
from lora_ft.assemble.pooled import PooledAdapters
from lora_ft.assemble.router import Route, Router
from lora_ft.data.rows import Splits, take_rows, with_column
from lora_ft.data.values import settle_types
from lora_ft.errors import DataError
from lora_ft.evaluate.compare import canonical, rows_of_recipe
from lora_ft.metrics.intervals import RESAMPLES, Interval, bootstrap_intervals
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem

Scorer = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class PoolMember:
    """An adapter of a pool, as far as its rows depend on it.

    Attributes:
        task: Its task.
        manifest: What it says of itself.
        problem: What it was trained for.
    """

    task: Task
    manifest: Manifest
    problem: Problem


@dataclass(frozen=True)
class OwnRows:
    """The rows that an adapter is measured on.

    Attributes:
        split: What they are called: a split of its recipe, or a file.
        table: With canonical labels.
    """

    split: str
    table: datasets.Dataset


@dataclass(frozen=True)
class DomainResult:
    """One adapter on its own rows.

    Attributes:
        split: What the rows are called.
        main: Its main metric.
        metrics: Of its answers.
        intervals: 95 % interval of each metric.
        base: What it has to beat, as far as the manifest knows.
        base_answer: What that is.
        predictions: In the order of the rows.
        references: What they were compared with.
        routes: Where the router would send each row; None without a router.
        routed: Metrics of the answers of the adapters that the router chose; None where they cannot be compared.
    """

    split: str
    main: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    base: Mapping[str, float]
    base_answer: str
    predictions: Sequence[Mapping[str, Any]]
    references: Sequence[Any]
    routes: Sequence[Route] | None
    routed: Mapping[str, float] | None

    def sent_to(self, name: str) -> float | None:
        """Share of the rows that the router would send to an adapter."""
        return None if self.routes is None else fmean(route.adapter == name for route in self.routes)


@dataclass(frozen=True)
class PoolComparison:
    """All adapters of a pool, each on its own rows.

    Attributes:
        domains: By the name of the adapter.
        without_centroid: Adapters that the router never chooses.
        not_routed: Why there are no metrics of the router's choice; None if there are.
    """

    domains: Mapping[str, DomainResult]
    without_centroid: tuple[str, ...]
    not_routed: str | None

    def average(self, of: str) -> dict[str, float]:
        """Each metric that all adapters have, averaged over the adapters.

        Args:
            of: `metrics`, `base` or `routed`.
        """
        values = [
            {"metrics": one.metrics, "base": one.base, "routed": one.routed or {}}[of] for one in self.domains.values()
        ]
        return {name: fmean(one[name] for one in values) for name in values[0] if all(name in one for one in values)}

    def router_accuracy(self) -> float | None:
        """Share of all rows whose nearest centroid is that of their own adapter; None without a router."""
        routes = [(name, route) for name, one in self.domains.items() for route in one.routes or ()]
        return fmean(route.adapter == name for name, route in routes) if routes else None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "adapters": {
                name: {
                    "split": one.split,
                    "rows": len(one.references),
                    "main_metric": one.main,
                    "adapter": dict(one.metrics),
                    "interval_95": {metric: [value.low, value.high] for metric, value in one.intervals.items()},
                    "base": dict(one.base),
                    "base_answer": one.base_answer,
                    "sent_to_it_by_the_router": one.sent_to(name),
                    "routed": dict(one.routed) if one.routed is not None else None,
                }
                for name, one in self.domains.items()
            },
            "rows": sum(len(one.references) for one in self.domains.values()),
            "average": {of: self.average(of) for of in ("metrics", "base", "routed")},
            "router": {
                "accuracy": self.router_accuracy(),
                "without_centroid": list(self.without_centroid),
                "not_routed": self.not_routed,
            },
        }


def described(pooled: PooledAdapters, manifests: Mapping[str, Manifest], name: str) -> PoolMember:
    """An adapter of a pool as the readers of rows want it."""
    return PoolMember(pooled.task, manifests[name], pooled.member(name).problem)


def rows_of_recipes(
    pooled: PooledAdapters, manifests: Mapping[str, Manifest], recipes: Mapping[str, Recipe], *, split: str | None
) -> dict[str, OwnRows]:
    """The rows of a split of the recipe that made each adapter: the test split if there is one, else validation.

    Raises:
        DataError: A split does not exist, or has rows that cannot be used.
    """
    found = {}
    for name, recipe in recipes.items():
        try:
            found[name] = OwnRows(*rows_of_recipe(described(pooled, manifests, name), recipe, split))
        except DataError as error:
            raise DataError(f"adapter {name!r}: {error}") from error
    return found


def rows_of_addresses(
    pooled: PooledAdapters, manifests: Mapping[str, Manifest], folders: Mapping[str, Path], addresses: Addresses
) -> dict[str, OwnRows]:
    """The rows of a file, by the adapter that each one names; adapters that no row names are left out.

    Raises:
        DataError: The file cannot be read, has nothing to compare with, or has rows that cannot be used.
    """
    owners: dict[str, list[int]] = {}
    for number, name in enumerate(addresses.names):
        owners.setdefault(str(name), []).append(number)
    ways = ways_to_read(owners, folders, manifests, task=pooled.task, targets=True)
    tables = load_each_way(addresses.file, ways, manifests, task=pooled.task, targets=True)
    found = {}
    for name, numbers in owners.items():
        every = tables[name]
        if not has_targets(every["rows"], pooled.task):
            wanted = " or ".join(column.name for column in pooled.task.columns if column.target)
            raise DataError(
                f"{addresses.file}: there is no {wanted} column, so nothing can be measured. "
                "To predict without: lora-ft predict FOLDER --input FILE --adapter-column COLUMN"
            )
        own = Splits(
            {"rows": _own_types(take_rows(every["rows"], numbers))},
            origins={"rows": every.origins["rows"].take(numbers)},
        )
        try:
            table = canonical(described(pooled, manifests, name), own, on_bad_row="error")["rows"]
        except DataError as error:
            raise DataError(f"adapter {name!r}: {error}") from error
        found[name] = OwnRows(str(addresses.file), table)
    return {name: found[name] for name in folders if name in found}


def compare_many(
    pooled: PooledAdapters,
    rows: Mapping[str, OwnRows],
    manifests: Mapping[str, Manifest],
    *,
    router: Router | None,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    advance: Callable[[int], None] | None = None,
    advance_draw: Callable[[int], None] | None = None,
) -> PoolComparison:
    """Measures all adapters of a pool, each on its own rows, rows of all of them in the same batches.

    Args:
        pooled: The adapters on their base.
        rows: Name of an adapter -> its rows.
        manifests: Name -> manifest.
        router: Measured too, if there is one.
        batch_size: Features a batch.
        resamples: Bootstrap resamples of the 95 % intervals.
        advance: Called with the number of features answered, then of rows routed, then of features answered again.
        advance_draw: Called after each draw of the intervals, `resamples` times for each adapter.

    Returns:
        Metrics, intervals, predictions and routes.
    """
    task = pooled.task
    tables = {name: one.table for name, one in rows.items()}
    answers = pooled.predict_tables(tables, batch_size=batch_size, advance=advance)
    routes: dict[str, list[Route]] = {}
    if router is not None:
        for name, table in tables.items():
            inputs = [one.name for one in task.inputs() if one.name in table.column_names]
            routes[name] = router.choose(list(table.select_columns(inputs)), batch_size=batch_size, advance=advance)
    not_routed = _not_comparable(router, manifests, rows)
    routed = {} if not_routed else _routed(pooled, tables, answers, routes, batch_size=batch_size, advance=advance)
    domains = {}
    for name, own in rows.items():
        member = described(pooled, manifests, name)
        references = references_of(own.table, task=task, problem=member.problem)
        ours, count = task.scorer(answers[name], references, member.problem), len(references)
        base, base_answer = _base(member, own, references)
        domains[name] = DomainResult(
            split=own.split,
            main=task.metrics[member.problem.problem_type][0],
            metrics=ours(np.arange(count)),
            intervals=bootstrap_intervals(ours, count, resamples=resamples, advance=advance_draw),
            base=base,
            base_answer=base_answer,
            predictions=answers[name],
            references=references,
            routes=routes.get(name),
            routed=task.score(routed[name], references, member.problem) if name in routed else None,
        )
    return PoolComparison(domains, router.without if router is not None else tuple(manifests), not_routed)


def _routed(
    pooled: PooledAdapters,
    tables: Mapping[str, datasets.Dataset],
    answers: Mapping[str, Sequence[dict[str, Any]]],
    routes: Mapping[str, Sequence[Route]],
    *,
    batch_size: int,
    advance: Callable[[int], None] | None,
) -> dict[str, list[dict[str, Any]]]:
    """The answers of the adapters that the router chose; where it chose a row's own, the one that is there."""
    astray = [
        (name, number, route.adapter)
        for name, chosen in routes.items()
        for number, route in enumerate(chosen)
        if route.adapter != name
    ]
    routed = {name: list(own) for name, own in answers.items()}
    found = pooled.predict(
        [tables[name][number] for name, number, _ in astray],
        [adapter for _, _, adapter in astray],
        batch_size=batch_size,
        advance=advance,
    )
    for (name, number, _), prediction in zip(astray, found, strict=True):
        routed[name][number] = prediction
    return routed


def _not_comparable(
    router: Router | None, manifests: Mapping[str, Manifest], rows: Mapping[str, OwnRows]
) -> str | None:
    """Why the answers of the adapters that the router chooses cannot be measured; None if they can."""
    if router is None:
        return "no adapter has a centroid"
    concerned = {*rows, *(name for space in router.spaces for name in space.names)}
    kinds = {(manifests[name].problem_type, manifests[name].labels) for name in concerned}
    if len(kinds) > 1:
        return f"the adapters have {len(kinds)} different sets of labels, so one cannot be measured by another's rows"
    return None


def _base(one: PoolMember, own: OwnRows, references: Sequence[Any]) -> tuple[Mapping[str, float], str]:
    """What an adapter has to beat: the best constant answer on these rows, else what its run recorded of the split."""
    run = one.manifest.run
    constant = run.get("majority")
    if constant is not None and not run.get("base_answers"):
        answers = [dict(constant)] * len(references)
        return one.task.score(answers, references, one.problem), "the best constant answer"
    recorded: Mapping[str, Mapping[str, float]] = run.get("baseline") or {}
    if own.split in recorded:
        return recorded[own.split], "before training, as recorded"
    return {}, "not recorded"


def _own_types(table: datasets.Dataset) -> datasets.Dataset:
    """Rows of one adapter out of a file of several: labels that are texts only beside those of others are not."""
    if "label" not in table.column_names or table.features["label"] != datasets.Value("string"):
        return table
    (labels,) = settle_types([(table["label"][:], True)])
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    order = table.column_names
    feature = datasets.Value(kinds[type(labels[0])])
    return with_column(table.remove_columns("label"), "label", labels, feature=feature).select_columns(order)
