"""Images of rows: unreadable, tiny, turned by their EXIF tag, alike to the byte or to the eye.

One row: {"image": {"bytes": None, "path": "/photos/apple.jpg"}}
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lora_ft.data.doctor.findings import Finding, Rows, by_share
from lora_ft.data.doctor.stream import content_of

TINY = 16
TURNED = 0x0112
UPRIGHT = 1
HASH_SIDE = 8
ALIKE_BITS = 3
"""Of 200 photographs 195 differ in at most 3 of 64 bits when scaled and compressed again; no two different ones in
fewer than 9. More than 3 could fall into all four quarters, see `alike_before`."""
SAME_FILE = ("duplicate-images", "duplicate-images-leakage")
SAME_LOOK = ("look-alike-images", "look-alike-images-leakage")
FLAT = 4.0
"""A picture whose grey values differ by less has no hash worth comparing, 0 to 255."""


def difference_hash(picture: Image.Image) -> int:
    """Which of two neighbouring pixels is brighter, on an 8 by 8 grid: 64 bits; 0 of a picture without contrast."""
    small = np.asarray(picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    if small.max() - small.min() < FLAT:
        return 0
    bits = (small[:, 1:] > small[:, :-1]).ravel()  # (64,)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class ImageCheck:
    """Keeps two numbers of 8 bytes for each image: a hash of its bytes and one of what it looks like."""

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], array[int]] = {}
        self.looked: dict[str, int] = {}
        self.splits: list[str] = []
        self.split_of, self.position = array("b"), array("q")
        self.exact, self.seen = array("Q"), array("Q")

    def add(self, split: str, row: int, value: Mapping[str, Any]) -> None:
        """Looks at the image of one row."""
        if split not in self.splits:
            self.splits.append(split)
        self.looked[split] = self.looked.get(split, 0) + 1
        try:
            content = content_of(value)
            with Image.open(io.BytesIO(content)) as picture:
                turned = picture.getexif().get(TURNED, UPRIGHT) != UPRIGHT
                picture.load()
                seen, size = difference_hash(picture), min(picture.size)
                flat = seen == 0
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
            self._mark("unreadable-images", split, row)
            return
        if size < TINY:
            self._mark("tiny-images", split, row)
        if turned:
            self._mark("turned-images", split, row)
        if flat:
            self._mark("blank-images", split, row)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self.split_of.append(self.splits.index(split))
        self.position.append(row)
        self.exact.append(int.from_bytes(digest, "big"))
        self.seen.append(seen)

    def _mark(self, name: str, split: str, row: int) -> None:
        self.faults.setdefault((name, split), array("q")).append(row)

    def findings(self) -> list[Finding]:
        """What is wrong with all images that were looked at."""
        told = {
            "unreadable-images": ("cannot be read as an image", "Fetch them again, or take them out"),
            "tiny-images": (f"have a side of less than {TINY} pixels", "Take them out: scaled up they show nothing"),
            "turned-images": (
                "have an EXIF tag that says they lie on their side or head",
                "Turn the pixels and drop the tag (`mogrify -auto-orient FILE`), boxes with them: not every tool "
                "reads the tag",
            ),
            "blank-images": ("show one colour", "Take them out"),
        }
        found = []
        for (name, split), marked in self.faults.items():
            rows, of = np.array(marked, dtype=np.int64), self.looked[split]
            severity = "error" if name == "unreadable-images" else by_share(len(rows), of)
            found.append(Finding(name, severity, split, len(rows), of, *told[name], rows=rows))
        return found + self._repeated()

    def _repeated(self) -> list[Finding]:
        """Images that are like an earlier one, to the byte or to the eye."""
        exact = np.array(self.exact, dtype=np.uint64)
        if not len(exact):
            return []
        _, first, group = np.unique(exact, return_index=True, return_inverse=True)
        like = first[group]
        same = like != np.arange(len(exact))
        near = alike_before(np.array(self.seen, dtype=np.uint64), ~same)
        found = []
        for names, other in ((SAME_FILE, like), (SAME_LOOK, near)):
            mine = other != np.arange(len(exact))
            for number, split in enumerate(self.splits):
                found += self._told(names, split, np.flatnonzero(mine & (np.array(self.split_of) == number)), other)
        return found

    def _told(self, names: tuple[str, str], split: str, rows: Rows, like: Rows) -> list[Finding]:
        position, split_of = np.array(self.position), np.array(self.split_of)
        across = split_of[like[rows]] != self.splits.index(split)
        how = "are the same file as" if names == SAME_FILE else "look the same as"
        kinds = (
            (names[0], rows[~across], "an earlier image of the split", "Keep one of each"),
            (names[1], rows[across], "an image of an earlier split",
             f"Take them out of {split}, or its metrics look too good"),
        )  # fmt: skip
        found = []
        for label, chosen, where, remedy in kinds:
            if len(chosen):
                others = [(self.splits[split_of[one]], int(position[one])) for one in like[chosen]]
                of, at = self.looked[split], position[chosen]
                severity = "warning" if label.endswith("leakage") else by_share(len(chosen), of)
                told = f"{how} {where}"
                found.append(Finding(label, severity, split, len(chosen), of, told, remedy, rows=at, others=others))
        return found


def alike_before(hashes: npt.NDArray[np.uint64], alone: npt.NDArray[np.bool_]) -> Rows:
    """For each image an earlier one whose hash differs by at most three bits, else itself.

    Three of 64 bits cannot fall into all four quarters: hashes that are alike share one of 16 bits, so only those that
    do are compared, each with the first and the 32 before it.

    Args:
        hashes: `(images,)`; 0 of an image without contrast.
        alone: Images that are compared at all, `(images,)`.
    """
    like = np.arange(len(hashes))
    for quarter in range(4):
        key = (hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        rows = np.flatnonzero(alone & (hashes != 0))
        rows = rows[np.argsort(key[rows], kind="stable")]
        for back in range(1, 33):
            one, other = rows[:-back], rows[back:]
            differ = np.bitwise_count(hashes[one] ^ hashes[other])
            close = (key[one] == key[other]) & (differ <= ALIKE_BITS)
            later, earlier = np.maximum(one, other)[close], np.minimum(one, other)[close]
            like[later] = np.minimum(like[later], earlier)
    return like
