"""Progress bars of `datasets` for what takes long, silence for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import datasets
from datasets.utils import tqdm

WATCHED_ROWS = 5_000
WATCHED_S = 2.0

Item = TypeVar("Item")


def watched(items: Iterable[Item], *, total: int, description: str, after_s: float = WATCHED_S) -> Iterator[Item]:
    """The items, with a bar if going through them takes longer than two seconds.

    Args:
        items: What to go through.
        total: How many they are.
        description: What the bar says.
        after_s: Seconds until there is a bar.
    """
    yield from tqdm(items, total=total, desc=description, delay=after_s)


@contextmanager
def quiet(*, unless: bool = False) -> Iterator[None]:
    """Switches the bars of `datasets` off, and back to what they were.

    Args:
        unless: Leave them as they are: the work takes long enough to watch.
    """
    if unless or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
