"""Features of large splits on disk, so that a second run, other processes and a resumed run need not make them again.

    ~/.cache/lora_ft/features/3f9a.../features.arrow    the features, memory-mapped when they are read
                                      entry.json        {"bytes": 41203344, "sha256": "9c1e..."}

They hold the user's texts as tokens: only the user can read them, and the least recently used go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import filelock
import pyarrow as pa

logger = logging.getLogger(__name__)

MOST_BYTES = 4 << 30
LEAST_ROWS = 2_000
"""Smaller splits are encoded in the time of a breath; see docs/gates.md for what was measured."""
PATIENCE_S = 5.0
ABANDONED_S = 86_400.0
DIGEST_ROWS = 1_000
FEATURES, ENTRY = "features.arrow", "entry.json"


class FeatureCache:
    """A folder of encoded splits, each under a key that says all that it was made of.

    Args:
        folder: Where it is; made when it is first written to.
        most_bytes: What all entries together may take.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    def get(self, key: str, make: Callable[[], datasets.Dataset]) -> datasets.Dataset:
        """The features of a key; one process of all that ask at once makes them, the others wait for its file.

        Args:
            key: Of all that they follow from.
            make: Makes them.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # no soft lock instead: that of a process which died on another machine would be waited for without end
            lock = filelock.FileLock(self.folder / f"{key}.lock", mode=0o600, fallback_to_soft=False)
            _acquire(lock)
        except (OSError, NotImplementedError) as error:
            logger.info("feature cache: %s: cannot be used: %s", self.folder, error)
            return make()
        try:
            found = self._read(key)
            if found is None:
                found = make()
                self._write(key, found)
            return found
        finally:
            lock.release()

    def _read(self, key: str) -> datasets.Dataset | None:
        """The entry of a key; None, and no entry, where there is none that is whole."""
        place, started = self.folder / key, time.perf_counter()
        if not place.is_dir():
            return None
        try:
            record = json.loads((place / ENTRY).read_text(encoding="utf-8"))
            whole = record == _record(place / FEATURES)
            found = datasets.Dataset.from_file(str(place / FEATURES)) if whole else None
        except (OSError, ValueError, pa.ArrowInvalid):
            found = None
        if found is None:
            logger.info("feature cache: %s: damaged, made anew", place)
            shutil.rmtree(place, ignore_errors=True)
            return None
        os.utime(place / ENTRY)
        logger.info("features: %d read from the cache in %.1f s", len(found), time.perf_counter() - started)
        return found

    def _write(self, key: str, features: datasets.Dataset) -> None:
        """Stores features under a temporary name and renames them; a full disk costs nothing but the entry."""
        temporary = self.folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            temporary.mkdir(mode=0o700)
            with _private(temporary / FEATURES) as stream:
                schema = features.features.arrow_schema
                with pa.ipc.new_stream(stream, schema) as writer:
                    for batch in features.data.table.cast(schema).to_batches(max_chunksize=DIGEST_ROWS):
                        writer.write_batch(batch)
            record = _record(temporary / FEATURES)
            if record["bytes"] > self.most_bytes:
                return
            with _private(temporary / ENTRY) as stream:
                stream.write(json.dumps(record).encode())
            temporary.rename(self.folder / key)
            self._forget(keep=key)
        except OSError as error:
            logger.info("feature cache: %s: cannot be written: %s", self.folder, error.strerror or error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _forget(self, *, keep: str) -> None:
        """Drops what was not used for longest until the rest is small enough, and what crashed runs left."""
        for left in self.folder.glob(".tmp-*"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        entries = sorted(self.folder.glob(f"*/{ENTRY}"), key=lambda file: file.stat().st_mtime)
        sizes = {file.parent: (file.parent / FEATURES).stat().st_size for file in entries}
        total = sum(sizes.values())
        for place, size in sizes.items():
            if total > self.most_bytes and place.name != keep:
                shutil.rmtree(place, ignore_errors=True)
                (self.folder / f"{place.name}.lock").unlink(missing_ok=True)
                total -= size


def rows_digest(rows: datasets.Dataset) -> str:
    """SHA-256 over the content of rows, column by column, however they lie in memory."""
    digest = hashlib.sha256(json.dumps(rows.column_names).encode())
    table = rows.with_format("arrow")
    for start in range(0, len(rows), DIGEST_ROWS):
        batch = table[start : start + DIGEST_ROWS].combine_chunks().replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _acquire(lock: filelock.BaseFileLock) -> None:
    try:
        lock.acquire(timeout=PATIENCE_S)
    except filelock.Timeout:
        logger.info("feature cache: waiting for another process that encodes the same rows")
        lock.acquire()


def _record(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _private(file: Path) -> Any:
    """A file that only its owner may read."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
