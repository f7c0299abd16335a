"""Which source of a mixture a training file belongs to: the recipe's key that names it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePath


def source_of(file: str, keys: Iterable[str]) -> str | None:
    """The first key that names a file: the file itself, a folder around it, or a pattern that it matches.

    Args:
        file: An absolute path.
        keys: The keys of `preparation.mixing_weights`, absolute.
    """
    path = PurePath(file)
    for key in keys:
        if file == key or fnmatchcase(file, key) or path.is_relative_to(key):
            return key
    return None
