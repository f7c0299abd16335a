"""What the processes of a run tell each other; each must ask as often as all others."""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object


def told_by_each(mine: Any, *, world_size: int) -> list[Any]:
    """What each process says, in their order.

    Args:
        mine: What this one says; it is pickled.
        world_size: Number of processes.
    """
    told: list[Any] = gather_object([mine]) if world_size > 1 else [mine]
    return told


def first_told(mine: str | None, *, world_size: int) -> str | None:
    """What the first process said of all that had something to say; every process hears the same.

    Args:
        mine: What went wrong here, or None.
        world_size: Number of processes.
    """
    return next((one for one in told_by_each(mine, world_size=world_size) if one is not None), None)
