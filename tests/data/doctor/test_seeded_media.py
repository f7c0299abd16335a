"""The doctor on seeded defects of images, boxes, sounds, questions, numbers and tags, beside a clean twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.doctor import seeded_media
from tests.data.doctor.seeded_media import Looked

LEAST_RECALL = 1.0
MOST_FALSE = 0
"""Set before the second seed was looked at: everything that is seeded here is plain to see."""
KINDS = ("images", "boxes", "sounds", "questions", "numbers", "tags")


def looked(kind: str, folder: Path, *, seed: int, spoiled: bool) -> Looked:
    if kind == "images":
        return seeded_media.images(folder / f"images{spoiled}", seed, spoiled=spoiled, count=36)
    if kind == "sounds":
        return seeded_media.sounds(folder / f"sounds{spoiled}", seed, spoiled=spoiled, count=30)
    made = {
        "boxes": seeded_media.boxes, "questions": seeded_media.questions, "numbers": seeded_media.numbers,
        "tags": seeded_media.tags,
    }  # fmt: skip
    return made[kind](seed, spoiled=spoiled)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seeded_is_found_and_clean_rows_are_left_alone(tmp_path: Path, kind: str, seed: int) -> None:
    findings, where, clean = looked(kind, tmp_path, seed=seed, spoiled=True)
    assert where
    for (name, split), rows in where.items():
        found = {row for one in findings if (one.name, one.split) == (name, split) for row in one.rows.tolist()}
        assert len(found & rows) >= LEAST_RECALL * len(rows), (name, split, sorted(rows - found))
        first_bad = min(min(rows) for (_, where_), rows in where.items() if where_ == split)
        assert len({row for row in found - rows if row < min(first_bad, clean)}) <= MOST_FALSE, (name, split)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_twin_has_no_finding(tmp_path: Path, kind: str, seed: int) -> None:
    findings, where, _ = looked(kind, tmp_path, seed=seed, spoiled=False)
    assert where == {}
    assert [(one.name, one.rows.tolist()) for one in findings] == []
