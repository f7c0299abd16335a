"""Rows that are made piece by piece: in memory while they are few, then in a file of their own that is memory-mapped.

One piece: {"text": ["Broke after a week.", "Fine."]}, ten thousand of them at a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path

import datasets
import psutil
import pyarrow as pa
from datasets.table import MemoryMappedTable

from lora_ft.errors import DataError

HELD_BYTES = 64 << 20
"""Rows of a file up to this size stay in memory; of more, only what is being read does."""


PREFIX = "lora_ft_rows_"
ABANDONED_S = 86_400.0
"""A folder of a process that is not there any more; processes of other containers are not seen, hence a day."""


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user can read; it is removed when the process ends.

    One that was killed leaves its folder: it goes when the next process makes its own, a day later.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("_")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and time.time() - left.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}_")


class RowStore:
    """Takes tables of one schema one after the other, and gives them back as one.

    Args:
        schema: Of all of them.
        held_bytes: From how many bytes on they go into a file.
    """

    def __init__(self, schema: pa.Schema, *, held_bytes: int = HELD_BYTES) -> None:
        self.schema = schema
        self.held_bytes = held_bytes
        self.held: list[pa.Table] = []
        self.bytes = 0
        self.file: Path | None = None
        self.sink: pa.OSFile | None = None
        self.writer: pa.RecordBatchStreamWriter | None = None

    def append(self, table: pa.Table) -> None:
        """Adds rows after those that are there.

        Raises:
            DataError: There is no room for them on the disk.
        """
        table = table.cast(self.schema) if table.schema != self.schema else table
        self.bytes += table.nbytes
        self.held.append(table)
        if self.writer is not None or self.bytes > self.held_bytes:
            self._write()

    def _write(self) -> None:
        """Writes what is held to the file, and forgets it."""
        try:
            if self.writer is None:
                self.file = Path(_folder().name) / f"{uuid.uuid4().hex}.arrow"
                self.sink = pa.OSFile(str(self.file), "wb")
                self.writer = pa.ipc.new_stream(self.sink, self.schema)
            for table in self.held:
                self.writer.write_table(table)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: the rows cannot be kept there: {error.strerror or error}. Expected as much "
                "room as the data files take: free some, or set TMPDIR to another folder"
            ) from error
        self.held = []

    def dataset(self) -> datasets.Dataset:
        """All rows; nothing can be added afterwards."""
        fingerprint = uuid.uuid4().hex  # else `datasets` reads all rows to hash them
        if self.writer is None or self.sink is None:
            tables = [table.replace_schema_metadata(self.schema.metadata) for table in self.held]
            whole = pa.concat_tables(tables).combine_chunks() if tables else self.schema.empty_table()
            return datasets.Dataset(whole, fingerprint=fingerprint)
        self.writer.close()
        self.sink.close()
        return datasets.Dataset(MemoryMappedTable.from_file(str(self.file)), fingerprint=fingerprint)
