"""What leaves the frozen layers, row by row and without padding: in memory, or in a file that is mapped.

    ~/.cache/lora_ft/prefix/3f9a.../hidden.bin    the rows' hidden states, one after the other
                                    entry.json    {"bytes": 310250496, "sha256": "9c1e..."}

They tell what the user's texts say: only the user can read them, and the least recently used go first.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

HIDDEN, ENTRY = "hidden.bin", "entry.json"
ABANDONED_S = 86_400.0
READ_BYTES = 1 << 22
MOST_OF_FREE = 0.9
"""Share of a disk's free space that an entry may take."""


class HiddenRows:
    """The hidden states of rows, one row after the other.

    Args:
        values: `(tokens of all rows, width)`.
        lengths: Tokens of each row.
    """

    def __init__(self, values: torch.Tensor, lengths: Sequence[int]) -> None:
        self.values = values
        self.starts = starts_of(lengths)
        self.numbers: Sequence[int] = range(len(lengths))

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, numbers: Sequence[int]) -> HiddenRows:
        """Some of the rows, under numbers of their own; nothing is copied."""
        found = copy.copy(self)
        found.numbers = [self.numbers[number] for number in numbers]
        return found

    @property
    def bytes(self) -> int:
        """How large they are."""
        return self.values.numel() * self.values.element_size()

    def row(self, number: int) -> torch.Tensor:
        """Of one row, `(tokens, width)`."""
        at = self.numbers[number]
        return self.values[self.starts[at] : self.starts[at + 1]]

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Fills a row in, `(tokens, width)`."""
        self.row(number).copy_(hidden)

    def padded(self, rows: Sequence[int], tokens: int) -> torch.Tensor:
        """Of some rows, `(rows, tokens, width)`, zeros after the end of each.

        Args:
            rows: Their numbers.
            tokens: The width of the batch; no row is longer.
        """
        found = self.values.new_zeros(len(rows), tokens, self.values.shape[1])
        for place, number in zip(found, rows, strict=True):
            own = self.row(number)
            place[: len(own)] = own
        return found


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each row begins, and at last where all end."""
    ends: list[int] = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
    return [0, *ends]


class HiddenFile:
    """A file into which several processes may write hidden states, each its rows.

    Args:
        file: The file, which is there.
        starts: Where each row begins, in tokens.
        row_bytes: Bytes of a token.
    """

    def __init__(self, file: Path, starts: Sequence[int], *, token_bytes: int) -> None:
        self.file = file
        self.starts = starts
        self.token_bytes = token_bytes
        self._descriptor = os.open(file, os.O_WRONLY)

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Writes a row, `(tokens, width)`.

        Raises:
            OSError: The disk is full. A mapped file would end the process instead.
        """
        content = memoryview(hidden.contiguous().view(torch.uint8).numpy().tobytes())
        at = self.starts[number] * self.token_bytes
        while content:
            written = os.pwrite(self._descriptor, content, at)
            content, at = content[written:], at + written

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)


class HiddenFolder:
    """A folder of entries, each under a key that says all that it was made of.

    Args:
        folder: Where it is; made when it is first written to.
        most_bytes: What all entries together may take.
    """

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    def has_room(self, size: int) -> bool:
        """Whether an entry of so many bytes may be made."""
        if size > self.most_bytes:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return size <= MOST_OF_FREE * shutil.disk_usage(self.folder).free
        except OSError as error:
            logger.info("prefix cache: %s: cannot be used: %s", self.folder, error.strerror or error)
            return False

    def is_whole(self, key: str) -> bool:
        """Whether there is an entry of a key, to the last byte as it was written; a damaged one is removed."""
        place = self.folder / key
        if not place.is_dir():
            return False
        try:
            whole = bool(json.loads((place / ENTRY).read_text(encoding="utf-8")) == _record(place / HIDDEN))
            os.utime(place / ENTRY)
        except (OSError, ValueError):
            whole = False
        if not whole:
            logger.warning("prefix cache: %s: damaged, made anew", place)
            self.drop(key)
        return whole

    def read(self, key: str, lengths: Sequence[int], *, width: int, dtype: torch.dtype) -> HiddenRows | None:
        """Maps the entry of a key; None where it is not of that size."""
        return mapped(self.folder / key / HIDDEN, lengths, width=width, dtype=dtype)

    def begin(self, size: int) -> Path:
        """Makes an empty file of so many bytes, for `end`."""
        temporary = self.folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        with _private(temporary / HIDDEN) as stream:
            stream.truncate(size)
        return temporary / HIDDEN

    def end(self, file: Path, key: str, *, keep: Collection[str]) -> None:
        """Makes a file that was filled the entry of a key, and removes what was not used for longest.

        Args:
            file: What `begin` returned.
            key: Of all that it was made of.
            keep: Keys that stay, too.
        """
        with _private(file.parent / ENTRY) as stream:
            stream.write(json.dumps(_record(file)).encode())
        if (self.folder / key).exists():  # another run was quicker
            self.abandon(file)
            return
        file.parent.rename(self.folder / key)
        self._forget(keep={*keep, key})

    def abandon(self, file: Path) -> None:
        """Removes what `begin` made."""
        shutil.rmtree(file.parent, ignore_errors=True)

    def drop(self, key: str) -> None:
        """Removes the entry of a key."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _forget(self, *, keep: Collection[str]) -> None:
        """Drops what was not used for longest until the rest is small enough, and what crashed runs left."""
        for left in self.folder.glob(".tmp-*"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        entries = sorted(self.folder.glob(f"*/{ENTRY}"), key=lambda file: file.stat().st_mtime)
        sizes = {entry.parent: (entry.parent / HIDDEN).stat().st_size for entry in entries}
        total = sum(sizes.values())
        for place, size in sizes.items():
            if total > self.most_bytes and place.name not in keep:
                self.drop(place.name)
                total -= size


def mapped(file: Path, lengths: Sequence[int], *, width: int, dtype: torch.dtype) -> HiddenRows | None:
    """Maps a file of hidden states; None where it is not of the size that they have."""
    tokens = sum(lengths)
    if file.stat().st_size != tokens * width * dtype.itemsize:
        return None
    values = torch.from_file(str(file), shared=False, size=tokens * width, dtype=dtype)
    return HiddenRows(values.view(tokens, width), lengths)


def _record(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _private(file: Path) -> Any:
    """A file that only its owner may read."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
