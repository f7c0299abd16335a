"""Lays what stands under a misspelt section where it was meant, so that the faults inside it show too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_ft.recipe.faults import Document, KeyPath, nearest
from lora_ft.recipe.words import SECTIONS, TOP


def with_nearest_sections(document: Document) -> Document:
    """Gives every misspelt section its meaning besides its name.

    The misspelt section stays where it is: it is a fault by itself, so nothing is ever trained by a guess.

    Args:
        document: A recipe as written, overrides laid over it; it is not changed.

    Returns:
        The same document, and under the name of the nearest section the keys of each misspelt one; of a key that
        is in both, the one that was written later.
    """
    for written, inside in document.value.items():
        meant = _nearest_section(written)
        if not meant or not isinstance(inside, dict):
            continue
        value = {**document.value, meant: _merged(document, (meant,), (written,))}
        places = dict(document.places)
        for path, place in document.places.items():
            moved = (meant, *path[1:])
            if path[0] == written and (moved not in places or places[moved].order < place.order):
                places[moved] = place
        document = replace(document, value=value, places=places)
    return document


def _nearest_section(written: str) -> str:
    """The section that a misspelt one is nearest to; empty where none is, or where nothing is misspelt."""
    if written in (*TOP, *SECTIONS):
        return ""
    near = nearest(written, SECTIONS)
    return next((section for section in SECTIONS if f"'{section}'" in near), "")


def _merged(document: Document, right: KeyPath, wrong: KeyPath) -> Any:
    kept, more = document.find(right)[1], document.find(wrong)[1]
    if isinstance(kept, dict) and isinstance(more, dict):
        inner = {key: _merged(document, (*right, key), (*wrong, key)) for key in more}
        return {**kept, **inner}
    later = document.place(right).order < document.place(wrong).order
    return more if kept is None or later else kept
