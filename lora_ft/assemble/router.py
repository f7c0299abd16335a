"""Which adapter of a pool a row is for, where nobody says it: the one whose training rows lie nearest to it.

Nearest: Euclid's distance between the row's embedding by the bare base and the centroid of the adapter's training
rows. On 16 domains of reviews (docs/LOG.md) no other measure that needs only centroids was better.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.verify import read_manifest
from lora_ft.assemble.addressed import choosable
from lora_ft.assemble.embed import row_embeddings
from lora_ft.assemble.pooled import PooledAdapters, processor_key
from lora_ft.errors import InputError

TUNED = ("threshold", "thresholds", "null_threshold")
"""Settings that are chosen after training, adapter by adapter, and read only when an answer is decoded."""


class Route(NamedTuple):
    """Where a row goes.

    Attributes:
        adapter: The one with the nearest centroid.
        score: How much nearer it is than the second nearest: `1 - nearest distance / second nearest distance`, from 0
            (a toss-up) to 1 (the row is the centroid, or there is no other adapter).
    """

    adapter: str
    score: float


@dataclass(frozen=True)
class _Space:
    """Centroids of adapters that encode rows alike, so that a row has one embedding for all of them.

    Attributes:
        names: The adapters.
        means: Their centroids, `(adapters, width)`.
    """

    names: tuple[str, ...]
    means: torch.Tensor


@dataclass(frozen=True)
class Router:
    """Chooses the adapter of a row; made by `make_router`.

    Attributes:
        pooled: The adapters with their base.
        spaces: Centroids, by the way rows are encoded.
        without: Adapters that have no centroid and are never chosen.
    """

    pooled: PooledAdapters
    spaces: tuple[_Space, ...]
    without: tuple[str, ...]

    def choose(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        batch_size: int = 32,
        advance: Callable[[int], None] | None = None,
    ) -> list[Route]:
        """The nearest adapter of each row; a row's target, if it has one, is not looked at.

        Args:
            rows: Under our column names.
            batch_size: Features a batch.
            advance: Called with the number of rows done.
        """
        inputs = [column.name for column in self.pooled.task.inputs()]
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault(tuple(name for name in inputs if name in row), []).append(number)
        routes: list[Route | None] = [None] * len(rows)
        for names, numbers in alike.items():
            table = datasets.Dataset.from_list([{name: rows[number][name] for name in names} for number in numbers])
            for number, route in zip(numbers, self._routes(table, batch_size=batch_size), strict=True):
                routes[number] = route
            if advance is not None:
                advance(len(numbers))
        return [route for route in routes if route is not None]

    def _routes(self, rows: datasets.Dataset, *, batch_size: int) -> list[Route]:
        """The nearest adapter of rows with the same columns."""
        pooled = self.pooled
        distances = []
        for space in self.spaces:
            problem = pooled.member(space.names[0]).problem
            with pooled.pool.rows([None]):  # the bare base
                vectors = row_embeddings(
                    pooled.pool.model,
                    rows,
                    task=pooled.task,
                    problem=problem,
                    precision=pooled.precision,
                    batch_size=batch_size,
                )
            if vectors is None:
                raise InputError(
                    f"router: the base gives no embedding of rows for {pooled.task.name}. Give each row its adapter"
                )
            one = torch.from_numpy(vectors).double()
            distances.append(torch.cdist(one, space.means, compute_mode="donot_use_mm_for_euclid_dist"))
        names = [name for space in self.spaces for name in space.names]
        return nearest(torch.cat(distances, dim=1).numpy(), names)


def nearest(distances: np.ndarray, names: Sequence[str]) -> list[Route]:
    """The adapter with the smallest distance for each row; of equal ones the first.

    Args:
        distances: `(rows, adapters)`.
        names: The adapters.
    """
    routes = []
    for row in distances:
        best = int(row.argmin())
        others = np.delete(row, best)
        second = float(others.min()) if len(others) else float("inf")
        routes.append(Route(names[best], 1 - float(row[best]) / second if second > 0 else 0.0))
    return routes


def make_router(pooled: PooledAdapters) -> Router:
    """Reads the centroids of all adapters of a pool; none of them is loaded but one for each way to encode rows.

    Raises:
        InputError: No adapter has a centroid, or two come from different embeddings.
    """
    manifests = {name: read_manifest(pooled.pool.folder(name)) for name in pooled.pool.names()}
    spaces: dict[str, dict[str, list[float]]] = {}
    without = tuple(name for name, manifest in manifests.items() if manifest.centroid is None)
    for name in choosable(manifests):
        centroid = manifests[name].centroid
        assert centroid is not None, "what can be chosen has one"
        spaces.setdefault(_encoding(manifests[name]), {})[name] = centroid.mean
    widths = {len(mean) for means in spaces.values() for mean in means.values()}
    if len(widths) > 1:
        raise InputError(f"router: centroids of different widths {sorted(widths)} in one pool. Train again")
    return Router(
        pooled=pooled,
        spaces=tuple(
            _Space(tuple(means), torch.tensor(list(means.values()), dtype=torch.float64)) for means in spaces.values()
        ),
        without=without,
    )


def _encoding(manifest: Manifest) -> str:
    """Equal for adapters that make the same features of a row: same processor, settings, preparation."""
    settings = {name: value for name, value in manifest.settings.items() if name not in TUNED}
    return json.dumps([processor_key(manifest), settings, manifest.preparation], sort_keys=True)
