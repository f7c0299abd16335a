"""Several training files, drawn from by weight: `datasets.interleave_datasets` over the positions of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import datasets
import numpy as np

from lora_ft.data.preparation.counts import StepCount
from lora_ft.data.rows import Origin
from lora_ft.errors import DataError
from lora_ft.recipe.mixing import source_of


def mixed_rows(
    rows: Sequence[int],
    origin: Origin,
    *,
    weights: Mapping[str, float],
    stopping_strategy: Literal["first_exhausted", "all_exhausted"],
    seed: int,
) -> tuple[list[int], StepCount]:
    """Draws rows from several sources, each as often as its weight says.

    The rows of a source are shuffled first, so those that are not drawn are any of them.

    Args:
        rows: Positions of the training rows that are left.
        origin: Where all training rows came from.
        weights: File, folder or pattern -> weight; probabilities are these over their sum.
        stopping_strategy: As in `datasets.interleave_datasets`.
        seed: Seed of the shuffling and of the drawing.

    Returns:
        Positions in the order in which they were drawn, some of them several times if all sources are to be
        exhausted; and how many were drawn from each source.

    Raises:
        DataError: A source has no row left.
    """
    key_of_name = [source_of(name, weights) for name in origin.names]
    by_source: dict[str, list[int]] = {key: [] for key in weights}
    for row in rows:
        key = key_of_name[origin.source[row]]
        assert key is not None, "the rules give each training file a weight"
        by_source[key].append(row)
    empty = [key for key, found in by_source.items() if not found]
    if empty:
        raise DataError(
            f"preparation.mixing_weights: no row of {empty[0]} is left after the steps before. Expected rows of each "
            "file; take it out, or loosen the filters"
        )
    rng = np.random.default_rng(seed)
    sources = [datasets.Dataset.from_dict({"row": rng.permutation(found)}) for found in by_source.values()]
    total = sum(weights.values())
    drawn = datasets.interleave_datasets(
        sources,
        probabilities=[weight / total for weight in weights.values()],
        seed=seed,
        stopping_strategy=stopping_strategy,
    )["row"][:]
    names = _short(list(weights))
    counts = dict.fromkeys(weights, 0)
    for row in drawn:
        counts[str(key_of_name[origin.source[row]])] += 1
    return drawn, StepCount(
        "mixing_weights",
        "drew",
        {names[key]: count for key, count in counts.items()},
        {names[key]: len(found) for key, found in by_source.items()},
        note=f"{stopping_strategy}: {len(drawn)} rows in all",
    )


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The names of the files without their folders, where these differ."""
    names = {key: key.rpartition("/")[2] for key in keys}
    return names if len(set(names.values())) == len(names) else {key: key for key in keys}
