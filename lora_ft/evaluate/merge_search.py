"""Merged adapters on the validation rows of every domain they came from: measured, searched, and told in a table."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets
import numpy as np
import torch

from lora_ft.adapters.merge_plan import DENSITY, Plan, Source, one_rank, prunes, wants_one_rank
from lora_ft.adapters.merge_weights import Combined
from lora_ft.assemble.combined import OpenSources, asking, asking_combined
from lora_ft.assemble.encode import EncodedRows, references_of
from lora_ft.assemble.merged import drift, probe_answers, row_answers
from lora_ft.assemble.recorded import recorded_recipe
from lora_ft.assemble.saved import SavedAdapter
from lora_ft.errors import InputError, RunError
from lora_ft.evaluate.compare import rows_of_recipe
from lora_ft.recipe.schema import TaskFacts
from lora_ft.tasks.base import Task

logger = logging.getLogger(__name__)

SPLIT = "validation"
GRID_ADAPTERS = 4
"""Up to so many adapters a grid over the weights is tried; for more, adapters are added one by one."""

GRID_STEPS = 4
SEARCHED = ("cat", "linear", "ties", "dare_linear", "magnitude_prune")
"""Methods that `--search` tries where none is named; of adapters with different ranks their `_svd` kin."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Domain:
    """The validation rows of one adapter, encoded once, and what that adapter says of them.

    Attributes:
        name: Of the adapter.
        rows: Its rows, or None where they cannot be read.
        why: Why there are none.
        features: The rows encoded, or None.
        references: What predictions are compared with.
        own: Metrics of the adapter itself on them; empty without rows.
        own_probe: Its answers to the probe.
        own_rows: Its answers to the first rows, or None.
    """

    name: str
    rows: datasets.Dataset | None
    why: str | None
    features: EncodedRows | None
    references: Sequence[Any]
    own: Mapping[str, float]
    own_probe: torch.Tensor
    own_rows: torch.Tensor | None


@dataclass(frozen=True)
class Score:
    """What one combination is worth.

    Attributes:
        plan: The combination.
        main: The main metric on each domain, by name.
        mean: Its mean over the domains.
        kind: What it was tried as: `single`, `uniform`, `sum`, `leave one out`, `grid`, `soup`, or `given`.
    """

    plan: Plan
    main: Mapping[str, float]
    mean: float
    kind: str

    def to_mapping(self) -> dict[str, Any]:
        """As JSON; null for what is not finite."""
        main = {name: _finite(value) for name, value in self.main.items()}
        return {**self.plan.to_mapping(), "kind": self.kind, "main": main, "mean": _finite(self.mean)}


@dataclass(frozen=True)
class MergeReport:
    """What became of the merge, domain by domain.

    Attributes:
        plan: The combination that was kept.
        main_metric: Name of the metric in `domains`.
        domains: For each its `before` and `after` metrics, its `drift`, or `why` it was not measured.
        tried: Everything that `--search` tried, in order; empty without.
    """

    plan: Plan
    main_metric: str
    domains: Mapping[str, Mapping[str, Any]]
    tried: Sequence[Score] = field(default_factory=tuple)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON, without the sources."""
        return {
            **self.plan.to_mapping(),
            "main_metric": self.main_metric,
            "domains": {name: dict(one) for name, one in self.domains.items()},
            "tried": [score.to_mapping() for score in self.tried],
        }

    def mean_metrics(self) -> dict[str, dict[str, float]]:
        """`{"validation": {...}}`, the mean over the domains of every metric that all of them have; or empty."""
        after = [one["after"] for one in self.domains.values() if one["after"]]
        if not after or len(after) != len(self.domains):
            return {}
        names = [name for name in after[0] if all(name in one for one in after)]
        return {SPLIT: {name: float(np.mean([one[name] for one in after])) for name in names}}


def validation_rows(
    adapter: SavedAdapter, *, tasks: Mapping[str, TaskFacts]
) -> tuple[datasets.Dataset | None, str | None]:
    """The validation rows of the recipe in an adapter folder, or why they cannot be read."""
    try:
        return rows_of_recipe(adapter, recorded_recipe(adapter.folder, tasks=tasks), SPLIT)[1], None
    except InputError as error:
        return None, str(error).partition("\n")[0]


def measure(adapter: SavedAdapter, rows: datasets.Dataset, features: EncodedRows, references: Sequence[Any], *,
            batch_size: int, advance: Advance | None = None) -> dict[str, float]:  # fmt: skip
    """All metrics of an adapter on rows that are encoded already."""
    predictions = adapter.predict(rows, features=features, batch_size=batch_size, advance=advance)
    scorer = adapter.task.scorer(predictions, references, adapter.problem)
    return {name: float(value) for name, value in scorer(np.arange(len(references))).items()}


def open_domains(
    opened: OpenSources,
    *,
    tasks: Mapping[str, TaskFacts],
    batch_size: int,
    needed: bool,
    advance: Advance | None = None,
) -> list[Domain]:
    """Reads and encodes the validation rows of every adapter once, and measures each adapter on its own.

    Args:
        opened: The adapters on their base.
        tasks: The known tasks, for the recipes.
        batch_size: Features a batch.
        needed: Whether rows that cannot be read are an error.
        advance: Called with the number of features done.

    Raises:
        InputError: Rows are needed and cannot be read.
    """
    domains = []
    for index, source in enumerate(opened.sources):
        with asking(opened, index) as adapter:
            rows, why = validation_rows(adapter, tasks=tasks)
            if rows is None:
                if needed:
                    raise InputError(
                        f"--search: the validation rows of {source.name} cannot be read: {why}. Put the files "
                        "back where its recipe.yaml says, or leave --search out and give --weights"
                    )
                domains.append(Domain(source.name, None, why, None, (), {}, probe_answers(adapter), None))
                continue
            features = adapter.encode(rows)
            references = references_of(rows, task=adapter.task, problem=adapter.problem)
            own = measure(adapter, rows, features, references, batch_size=batch_size, advance=advance)
            answers = row_answers(adapter, features, batch_size=batch_size)
            domains.append(Domain(source.name, rows, None, features, references, own, probe_answers(adapter), answers))
    return domains


def finish(
    opened: OpenSources, plan: Plan, domains: Sequence[Domain], *, batch_size: int, tried: Sequence[Score] = (),
    advance: Advance | None = None,
) -> tuple[MergeReport, Combined]:  # fmt: skip
    """Combines the adapters as decided, measures the new one on every domain, and hands it out.

    Args:
        opened: The adapters on their base.
        plan: How they are combined.
        domains: What `open_domains` gave.
        batch_size: Features a batch.
        tried: What a search tried before.
        advance: Called with the number of features done.

    Returns:
        The report, and the new adapter as tensors.
    """
    told: dict[str, Mapping[str, Any]] = {}
    with asking_combined(opened, plan) as (adapter, new):
        answers = probe_answers(adapter)
        for domain in domains:
            one: dict[str, Any] = {"before": dict(domain.own), "after": {}, "why": domain.why}
            one["drift"] = {"probe": asdict(drift(answers, domain.own_probe))}
            if domain.rows is not None and domain.features is not None and domain.own_rows is not None:
                one["after"] = measure(
                    adapter, domain.rows, domain.features, domain.references, batch_size=batch_size, advance=advance
                )
                found = row_answers(adapter, domain.features, batch_size=batch_size)
                one["drift"][SPLIT] = asdict(drift(found, domain.own_rows))
            told[domain.name] = one
        task, problem_type = adapter.task, adapter.manifest.problem_type
    return MergeReport(plan, task.metrics[problem_type][0], told, tuple(tried)), new


def search(
    opened: OpenSources, domains: Sequence[Domain], *, methods: Sequence[str], density: float | None, seed: int,
    rank: int | None, batch_size: int, advance: Advance | None = None,
) -> list[Score]:  # fmt: skip
    """Tries combinations and weights on the validation rows of all domains.

    Up to four adapters: each alone, all alike, their sum, each left out once, and a grid over the weights in quarters.
    For more, in place of the grid: a greedy soup, which starts from the best single adapter and keeps each next one
    that does not lower the mean.

    Args:
        opened: The adapters on their base.
        domains: What `open_domains` gave, all with rows.
        methods: Methods to try.
        density: Of the methods that prune; None: 0.5.
        seed: Of what DARE drops.
        rank: Of the methods that end in `svd`.
        batch_size: Features a batch.
        advance: Called with 1 for each combination that was tried.

    Returns:
        All that was tried, in order; `best` picks from it.

    Source:
        Greedy soup: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    count = len(domains)
    task: Task = opened.views[0].task
    main = task.metrics[opened.views[0].manifest.problem_type][0]

    def plan_of(method: str, weights: tuple[float, ...]) -> Plan:
        pruned = (DENSITY if density is None else density) if prunes(method) else None
        return Plan(method, weights, pruned, seed, rank if method.endswith("svd") else None)

    def score(method: str, weights: tuple[float, ...], kind: str) -> Score:
        plan = plan_of(method, weights)
        found = {}
        with asking_combined(opened, plan) as (adapter, _):
            for domain in domains:
                if domain.rows is None or domain.features is None:
                    continue
                found[domain.name] = measure(
                    adapter, domain.rows, domain.features, domain.references, batch_size=batch_size
                )[main]
        if advance is not None:
            advance(1)
        return Score(plan, found, float(np.mean(list(found.values()))), kind)

    tried = [score("cat", single, "single") for single in _singles(count)]
    ranked = sorted(range(count), key=lambda index: _worth(tried[index], main, task), reverse=True)
    for method in methods:
        tried += [score(method, weights, kind) for weights, kind in weight_sets(count)]
        if count > GRID_ADAPTERS:
            kept: list[int] = []
            best_so_far: Score | None = None
            for index in ranked:
                one = score(method, _share(count, [*kept, index]), "soup")
                tried.append(one)
                if not math.isfinite(one.mean):
                    continue
                if best_so_far is None or _worth(one, main, task) >= _worth(best_so_far, main, task):
                    kept, best_so_far = [*kept, index], one
    return tried


def best(tried: Sequence[Score], task: Task, problem_type: str) -> Score:
    """The combination with the best mean; of equals the one that was tried first, never one that is not finite.

    Args:
        tried: What `search` gave.
        task: Says which way its main metric improves.
        problem_type: One of the keys of `Task.metrics`.

    Raises:
        RunError: No combination has a finite mean.
    """
    main = task.metrics[problem_type][0]
    if not any(math.isfinite(one.mean) for one in tried):
        raise RunError(
            f"--search: none of {len(tried)} combinations has a finite {main} on all validation rows. Nothing was "
            "written. Evaluate each adapter alone, leave out those that fail, or give --method and --weights."
        )
    return max(tried, key=lambda one: _worth(one, main, task))


def methods_to_search(given: Sequence[str], sources: Sequence[Source]) -> tuple[str, ...]:
    """The methods that `--search` tries: those named, else those that these adapters' ranks allow."""
    if given:
        return tuple(dict.fromkeys(given))
    if one_rank(sources):
        return SEARCHED
    return tuple(dict.fromkeys(f"{one}_svd" if wants_one_rank(one) and one != "linear" else "cat" for one in SEARCHED))


def tries(count: int, methods: int) -> int:
    """How many combinations `search` tries."""
    greedy = count if count > GRID_ADAPTERS else 0
    return count + methods * (sum(1 for _ in weight_sets(count)) + greedy)


def weight_sets(count: int) -> Iterator[tuple[tuple[float, ...], str]]:
    """The weights that are tried of every method, each once, with what they are.

    Args:
        count: How many adapters there are.
    """
    everyone = list(range(count))
    sets = [(_share(count, everyone), "uniform"), ((1.0,) * count, "sum")]
    if count > 2:
        sets += [(_share(count, [one for one in everyone if one != left]), "leave one out") for left in everyone]
    if count <= GRID_ADAPTERS:
        steps = itertools.product(range(GRID_STEPS + 1), repeat=count)
        sets += [(tuple(part / GRID_STEPS for part in one), "grid") for one in steps if sum(one) == GRID_STEPS]
    seen = set(_singles(count))
    for weights, kind in sets:
        if weights not in seen:
            seen.add(weights)
            yield weights, kind


def _singles(count: int) -> list[tuple[float, ...]]:
    """One adapter alone, each in turn."""
    return [tuple(float(index == one) for index in range(count)) for one in range(count)]


def _share(count: int, members: Sequence[int]) -> tuple[float, ...]:
    """The same weight for each member, 0 for the others, 1 in all."""
    return tuple(1 / len(members) if index in members else 0.0 for index in range(count))


def _worth(one: Score, main: str, task: Task) -> float:
    """The mean, turned so that more is better; what is not finite is worst."""
    if not math.isfinite(one.mean):
        return -math.inf
    return -one.mean if main in task.lower_is_better else one.mean


def _finite(value: float) -> float | None:
    """A number as JSON knows it."""
    return value if math.isfinite(value) else None
