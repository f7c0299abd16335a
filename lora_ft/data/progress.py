"""Progress bars of `datasets` for what takes long, silence for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import datasets
from datasets.utils import tqdm
from tqdm import tqdm as plain_tqdm

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
def reading_bar(file: Path, *, total: int, unit: str, after_s: float = WATCHED_S) -> Iterator[Callable[[int], None]]:
    """A bar for reading a file at a terminal, if it takes longer than two seconds, whatever `datasets` is told.

    Args:
        file: The file.
        total: How much there is to read.
        unit: Of what: bytes (`B`) or rows.
        after_s: Seconds until there is a bar.

    Yields:
        What moves the bar to a position.
    """
    name, scaled = f"read {file.name}", unit == "B"
    with plain_tqdm(
        total=total, desc=name, delay=after_s, unit=unit, unit_scale=scaled, leave=False, disable=None
    ) as bar:

        def moved(position: int) -> None:
            bar.update(position - bar.n)

        yield moved


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
