"""Pairs of numbers in a recipe: `speed: [0.9, 1.1]`."""

from __future__ import annotations

from typing import Any


def pair_of(value: Any) -> tuple[Any, Any] | None:
    """Two numbers, or None where it is something else."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
        return value[0], value[1]
    return None
