"""Progress bars of `datasets` for what takes long, silence for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets

WATCHED_ROWS = 5_000


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
